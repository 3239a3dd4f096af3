// What happens to a sum between the last multiplication and memory: scale, bias, activation, residual, gate, rounding.
//
// Every GEMM kernel ends here, four adjacent columns of one row at a time, with the sums in FP32: C is rounded once, after everything else.
// The epilogue is a template parameter, so that each kernel carries the code of one; a kernel for any epilogue passes ANY_EPILOGUE and
// decides by args.epilogue.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "abi.h"

constexpr int ANY_EPILOGUE = -1;

// 0.5 * x * (1 + erf(x / sqrt(2))): Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

// The same paper's approximation, 0.5 * x * (1 + tanh(u)) = x * sigmoid(2u) with u = sqrt(2 / pi) * (x + 0.044715 * x^3).
__device__ __forceinline__ float gelu_tanh(float x) {
    const float u = 0.79788456f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// Four halves that are 8-byte aligned, or the first `valid` of them one by one; the others read as 0.
__device__ __forceinline__ void load_4_halves(float (&values)[4], const __half *source, bool whole, uint32_t valid) {
    __half halves[4] = {};
    if (whole) {
        *reinterpret_cast<uint2 *>(halves) = *reinterpret_cast<const uint2 *>(source);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            if (i < valid) halves[i] = source[i];
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = __half2float(halves[i]);
}

// The converse. T is __half or float.
template <typename T, int COUNT>
__device__ __forceinline__ void store(T *target, const T (&values)[COUNT], bool whole, uint32_t valid) {
    struct alignas(sizeof(T) * COUNT) Vector {
        T values[COUNT];
    };
    if (whole) {
        Vector vector;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) vector.values[i] = values[i];
        *reinterpret_cast<Vector *>(target) = vector;
    } else {
#pragma unroll
        for (uint32_t i = 0; i < COUNT; ++i) {
            if (i < valid) target[i] = values[i];
        }
    }
}

// Finishes and stores columns `col` to `col + 3` of row `row`, as far as C has them. `col` is a multiple of 4.
template <int EPILOGUE>
__device__ __forceinline__ void finish(const GemmArgs &args, uint32_t row, uint32_t col, const float4 &sums) {
    if (row >= args.m || col >= args.n) return;
    const int epilogue = EPILOGUE == ANY_EPILOGUE ? static_cast<int>(args.epilogue) : EPILOGUE;
    const uint32_t valid = args.n - col;
    const bool whole = args.vectorised && valid >= 4;

    float x[4] = {sums.x * args.scale, sums.y * args.scale, sums.z * args.scale, sums.w * args.scale};
    if (epilogue == GEMM_BIAS || epilogue == GEMM_BIAS_GELU || epilogue == GEMM_BIAS_GELU_TANH || epilogue == GEMM_BIAS_RELU ||
        epilogue == GEMM_BIAS_RESIDUAL || (epilogue == GEMM_SILU_GATE && args.bias != 0)) {
        float bias[4];
        load_4_halves(bias, reinterpret_cast<const __half *>(args.bias) + col, whole, valid);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] += bias[i];
    }
    if (epilogue == GEMM_RESIDUAL || epilogue == GEMM_BIAS_RESIDUAL) {
        float residual[4];
        const __half *source = reinterpret_cast<const __half *>(args.residual) + static_cast<uint64_t>(row) * args.ld_residual + col;
        load_4_halves(residual, source, whole, valid);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] += residual[i];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (epilogue == GEMM_BIAS_GELU) x[i] = gelu(x[i]);
        if (epilogue == GEMM_BIAS_GELU_TANH) x[i] = gelu_tanh(x[i]);
        if (epilogue == GEMM_BIAS_RELU) x[i] = fmaxf(x[i], 0.0f);
    }

    const uint64_t row_start = static_cast<uint64_t>(row) * args.ldc;
    if (epilogue == GEMM_PLAIN_F32) {
        store(reinterpret_cast<float *>(args.c) + row_start + col, x, whole, valid);
    } else if (epilogue == GEMM_SILU_GATE) {
        const __half gated[2] = {__float2half(silu(x[0]) * x[1]), __float2half(silu(x[2]) * x[3])};
        store(reinterpret_cast<__half *>(args.c) + row_start + col / 2, gated, whole, valid / 2);
    } else {
        const __half rounded[4] = {__float2half(x[0]), __float2half(x[1]), __float2half(x[2]), __float2half(x[3])};
        store(reinterpret_cast<__half *>(args.c) + row_start + col, rounded, whole, valid);
    }
}
