// Warpgroup matrix multiply (sm_90a): four consecutive warps, the first a multiple of four, multiply tiles straight from shared memory.
//
//   D[64 x N] += A[64 x 16] * B[16 x N]      halves, sums in floats
//
// A and B lie in shared memory as rows of 64 halves (128 bytes) along k, swizzled by 128 bytes as the copy engine lays them down, so that B is
// given by its N rows. Warp w of the group holds rows 16w .. 16w + 15 of D; with g = lane / 4 and t = lane % 4, register 4j + i of a thread
// holds column 8j + 2t + i % 2 of row g + i / 2 * 8. PTX ISA manual, section 9.7.15.
#pragma once
#include <cstdint>

#include "ptx/wgmma_registers.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

// Describes a tile of rows of 128 bytes, 128-byte swizzled, beginning at a multiple of 1024: groups of eight rows are 1024 bytes apart.
// To step along k by 16 halves add 32 bytes: 2 in the descriptor's unit of 16 bytes.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t shared_address) {
    constexpr uint64_t SWIZZLE_128 = 1ull << 62, GROUP_STRIDE = (1024ull >> 4) << 32, LEADING = 1ull << 16;
    return SWIZZLE_128 | GROUP_STRIDE | LEADING | ((shared_address & 0x3ffff) >> 4);
}

// The descriptor of what lies `bytes` further on. An address is the low bits of a descriptor, and never carries out of them.
__device__ __forceinline__ uint64_t wgmma_descriptor_at(uint64_t first, uint32_t bytes) {
    return (first & 0xffffffff00000000ull) | (static_cast<uint32_t>(first) + bytes / 16);
}

// What all lanes have the same of, so that the compiler can tell: descriptors that are a constant away from one such address are held and added up in uniform
// registers, where multiplications want them.
__device__ __forceinline__ uint32_t uniform(uint32_t same_in_all_lanes) { return __shfl_sync(0xffffffff, same_in_all_lanes, 0); }

// Before the first multiplication, and after registers of D were touched otherwise.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most PENDING of the newest committed groups are still under way.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Hands registers from other warps of the block to this one, or back; see setmaxnreg in the PTX manual.
template <int REGISTERS>
__device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// D = A * B + (accumulate ? D : 0), for N columns: N / 2 registers of D.
template <int N>
__device__ __forceinline__ void wgmma_m64k16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate);

// REGISTERS: the list of D in the instruction; A, B, P: the numbers of the operands after it; OPERANDS: D for the compiler.
#define WGMMA(N, REGISTERS, A, B, P, ...)                                                                                                    \
    template <>                                                                                                                              \
    __device__ __forceinline__ void wgmma_m64k16<N>(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {                             \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\n"                                                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" REGISTERS "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n}\n"          \
                     : __VA_ARGS__                                                                                                           \
                     : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)));                                                               \
    }

WGMMA(8, WGMMA_R0_HALF, 4, 5, 6, WGMMA_D4(0))
WGMMA(16, WGMMA_R0, 8, 9, 10, WGMMA_D8(0))
WGMMA(32, WGMMA_R0_1, 16, 17, 18, WGMMA_D16(0))
WGMMA(64, WGMMA_R0_3, 32, 33, 34, WGMMA_D16(0), WGMMA_D16(16))
WGMMA(96, WGMMA_R0_5, 48, 49, 50, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32))
WGMMA(128, WGMMA_R0_7, 64, 65, 66, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32), WGMMA_D16(48))
WGMMA(160, WGMMA_R0_9, 80, 81, 82, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32), WGMMA_D16(48), WGMMA_D16(64))
WGMMA(192, WGMMA_R0_11, 96, 97, 98, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32), WGMMA_D16(48), WGMMA_D16(64), WGMMA_D16(80))
WGMMA(224, WGMMA_R0_13, 112, 113, 114, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32), WGMMA_D16(48), WGMMA_D16(64), WGMMA_D16(80), WGMMA_D16(96))
WGMMA(256, WGMMA_R0_15, 128, 129, 130, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32), WGMMA_D16(48), WGMMA_D16(64), WGMMA_D16(80), WGMMA_D16(96), WGMMA_D16(112))

#undef WGMMA

#endif
