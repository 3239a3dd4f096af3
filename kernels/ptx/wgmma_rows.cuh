// Warpgroup matrix multiply with A in registers (sm_90a): the second product of attention, whose A is what the softmax left there.
//
//   D[64 x N] += A[64 x 16] * B[16 x N]      halves, sums in floats
//
// Each warp of the group holds its 16 rows of A as m16n8k16 does (mma.cuh), and of D as wgmma.cuh says: two neighbouring column groups of one
// product's D, rounded to halves, are the A of the next. B lies in shared memory as its 16 rows along k, each cut into pieces of 64 columns:
// rows of 128 bytes, swizzled by 128 bytes. PTX ISA manual, section 9.7.15.
#pragma once
#include <cstdint>

#include "ptx/wgmma_registers.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL

// Describes B: its first piece begins at `shared_address`, a multiple of 1024; groups of eight rows are 1024 bytes apart, and pieces of 64 columns
// `piece_bytes`. To step along k by 16 rows add 2048 bytes: 128 in the descriptor's unit of 16 bytes.
__device__ __forceinline__ uint64_t wgmma_rows_descriptor(uint32_t shared_address, uint32_t piece_bytes) {
    constexpr uint64_t SWIZZLE_128 = 1ull << 62, GROUP_STRIDE = (1024ull >> 4) << 32;
    return SWIZZLE_128 | GROUP_STRIDE | uint64_t(piece_bytes >> 4) << 16 | ((shared_address & 0x3ffff) >> 4);
}

// Products in flight write registers that the compiler believes written already: after waiting for them, this keeps it from having read them before.
template <int COUNT>
__device__ __forceinline__ void wgmma_settle(float (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// D += A * B for N columns: N / 2 registers of D.
template <int N>
__device__ __forceinline__ void wgmma_m64k16_rows(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);

// REGISTERS: the list of D in the instruction; A0 to B: the numbers of the operands after it; the rest: D for the compiler.
#define WGMMA(N, REGISTERS, A0, A1, A2, A3, B, ...)                                                                                     \
    template <>                                                                                                                         \
    __device__ __forceinline__ void wgmma_m64k16_rows<N>(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {                       \
        asm volatile("{\n.reg .pred accumulate;\nmov.pred accumulate, 1;\n"                                                             \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" REGISTERS "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3     \
                     "}, %" #B ", accumulate, 1, 1, 1;\n}\n"                                                                            \
                     : __VA_ARGS__                                                                                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                                              \
    }

WGMMA(32, WGMMA_R0_1, 16, 17, 18, 19, 20, WGMMA_D16(0))
WGMMA(64, WGMMA_R0_3, 32, 33, 34, 35, 36, WGMMA_D16(0), WGMMA_D16(16))
WGMMA(80, WGMMA_R0_3 ", " WGMMA_R4, 40, 41, 42, 43, 44, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D8(32))
WGMMA(96, WGMMA_R0_5, 48, 49, 50, 51, 52, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32))
WGMMA(128, WGMMA_R0_7, 64, 65, 66, 67, 68, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32), WGMMA_D16(48))
WGMMA(256, WGMMA_R0_15, 128, 129, 130, 131, 132, WGMMA_D16(0), WGMMA_D16(16), WGMMA_D16(32), WGMMA_D16(48), WGMMA_D16(64), WGMMA_D16(80), WGMMA_D16(96), WGMMA_D16(112))

#undef WGMMA

#endif
