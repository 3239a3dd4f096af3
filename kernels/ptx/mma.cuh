// The PTX that tensor-core kernels are made of, for sm_80 and newer: asynchronous copies, matrix loads from shared memory, and the
// m16n8k16 multiply. Each function is one instruction; the layouts are those of the PTX ISA manual, sections 9.7.9 (cp.async) and
// 9.7.14 (ldmatrix, mma).
//
// How the m16n8k16 product D[16x8] += A[16x16] * B[16x8] lies in a warp, with g = lane / 4 and t = lane % 4:
//
//   A  a[0]: (g,   2t..2t+1)   a[1]: (g+8, 2t..2t+1)   a[2]: (g,   2t+8..2t+9)   a[3]: (g+8, 2t+8..2t+9)      two halves a register
//   B  b[0]: (2t..2t+1,   g)   b[1]: (2t+8..2t+9, g)                                                          two halves a register
//   D  d[0], d[1]: (g, 2t..2t+1)                       d[2], d[3]: (g+8, 2t..2t+1)                            one float a register
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

// A shared-memory address as PTX wants it.
__device__ __forceinline__ uint32_t shared_address(const void *pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

// Copies `valid_bytes` (0 to 16) bytes from global to shared memory and fills the rest of the 16 with zeros. Both addresses are 16-byte aligned;
// with 0 valid bytes `source` is not read. Goes through L2 only: tiles are shared between SMs, not within one.
__device__ __forceinline__ void cp_async_16(uint32_t target, const void *source, uint32_t valid_bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid_bytes) : "memory");
}

// Closes the group of this thread's copies since the last commit.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `PENDING` of this thread's newest groups are still under way. Other threads see the data after a barrier.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8x8 matrices of halves. Lanes 8i..8i+7 give the addresses of the rows of matrix i (16 bytes each, 16-byte aligned); register i holds
// matrix i, row lane / 4, columns 2 * (lane % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&matrices)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row_address)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&matrices)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(row_address)
                 : "memory");
}

// Two 8x8 matrices; lanes 0..15 give the row addresses, those of the other lanes are not used.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&matrices)[2], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(row_address)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x2_transposed(uint32_t (&matrices)[2], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(matrices[0]), "=r"(matrices[1])
                 : "r"(row_address)
                 : "memory");
}

// sum += a * b, FP16 operands, FP32 sums; layouts at the top of this file.
__device__ __forceinline__ void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// An 8x8 matrix of halves, which lies in a warp as ldmatrix leaves it, transposed.
__device__ __forceinline__ uint32_t transposed_8x8(uint32_t matrix) {
    uint32_t transposed;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(matrix));
    return transposed;
}

// Two floats rounded to halves in one register, `low` in the lower half: the operand format of the next product.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

// Byte offset of 16-byte chunk `chunk` (0 to 7) of row `row` in a shared-memory tile with rows of 64 halves (128 bytes). The chunk's number is
// XORed with the row's lowest three bits, so that the eight rows that ldmatrix reads at one column lie in different banks.
__device__ __forceinline__ uint32_t swizzled_128(uint32_t row, uint32_t chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

// Four words to a 16-byte aligned shared-memory address.
__device__ __forceinline__ void store_shared_16(uint32_t target, const uint32_t (&words)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// Four words to a 16-byte aligned global address, in one store. Of an assignment the compiler may make four, each of which writes an eighth of every 32 bytes.
__device__ __forceinline__ void store_global_16(void *target, const uint32_t (&words)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}
