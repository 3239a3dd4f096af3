// The shapes of skinny GEMM, by rows of A and most columns of C; skinny.rs says which problem takes which. Each keeps 128 KiB of B under way on every SM with as
// many blocks as fit: at 32 SMs, where one SM takes in 100 GB/s and a copy about 1 us, that is what the memory latency needs.
#include "gemm/skinny.cuh"

using Skinny8x16 = SkinnyShape<8, 2, 1, 4, 8, 4, 2, 2>;
using Skinny8x32 = SkinnyShape<8, 4, 1, 4, 4, 4, 2, 2>;
using Skinny16x64 = SkinnyShape<16, 4, 2, 4, 4, 2, 3, 1>;
using Skinny32x128 = SkinnyShape<32, 4, 4, 2, 4, 2, 3, 1>;

static_assert(Skinny8x16::SHARED_BYTES == SKINNY_GEMM_8X16_SHARED_BYTES, "abi.h says otherwise");
static_assert(Skinny8x32::SHARED_BYTES == SKINNY_GEMM_8X32_SHARED_BYTES, "abi.h says otherwise");
static_assert(Skinny16x64::SHARED_BYTES == SKINNY_GEMM_16X64_SHARED_BYTES, "abi.h says otherwise");
static_assert(Skinny32x128::SHARED_BYTES == SKINNY_GEMM_32X128_SHARED_BYTES, "abi.h says otherwise");

GEMM_SKINNY_ENTRY(8x16, Skinny8x16)
GEMM_SKINNY_ENTRY(8x32, Skinny8x32)
GEMM_SKINNY_ENTRY(16x64, Skinny16x64)
GEMM_SKINNY_ENTRY(32x128, Skinny32x128)
