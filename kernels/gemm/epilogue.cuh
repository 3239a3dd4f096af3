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

// max(x, 0), and NaN of NaN, which fmaxf would turn into 0: Nair and Hinton, "Rectified Linear Units Improve Restricted Boltzmann Machines", 2010.
__device__ __forceinline__ float relu(float x) {
    float positive;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(positive) : "f"(x));
    return positive;
}

// Both forms of GELU are max(x, 0) - |x| * tail(|x|), which cancels nowhere: what lies above zero and what lies below it are alike but for x. An epilogue runs this for
// every element of C and is bound by the instructions that it issues, so the tail is one power of two of a polynomial: fitted to log2(tail) on [0, END] by
// reweighted least squares, the weight being what an error does to the result in units of FP16's last place. Beyond END |x| * tail rounds to zero, and
// counts as at END. No branch and no select: a NaN passes through the maximum, and infinities become infinity and zero.
template <int COEFFICIENTS>
__device__ __forceinline__ float less_its_tail(float x, const float (&log2_tail)[COEFFICIENTS], float end) {
    const float a = fminf(fabsf(x), end);
    float exponent = log2_tail[0];
#pragma unroll
    for (int i = 1; i < COEFFICIENTS; ++i) exponent = fmaf(exponent, a, log2_tail[i]);
    float tail;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(tail) : "f"(exponent));
    return fmaf(-a, tail, relu(x));
}

// 0.5 * x * (1 + erf(x / sqrt(2))): Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; the tail is 0.5 * erfc(|x| / sqrt(2)). Rounded to FP16, all
// results are within 0.509 units in the last place.
__device__ __forceinline__ float gelu(float x) {
    constexpr float LOG2_TAIL[] = {3.29851682e-05f, -0.000755069486f, 0.00797286909f, -0.0531173497f, -0.45910421f, -1.15106428f, -1.00000584f};
    return less_its_tail(x, LOG2_TAIL, 5.8f);
}

// The same paper's approximation, 0.5 * x * (1 + tanh(u)) with u = sqrt(2 / pi) * (x + 0.044715 * x^3); the tail is 1 / (1 + exp(2u)) of |x|. Rounded to
// FP16, all results are within 0.531 units in the last place of this formula.
__device__ __forceinline__ float gelu_tanh(float x) {
    constexpr float LOG2_TAIL[] = {-2.03502859e-05f, 0.000311197684f, -0.00145732285f, 0.000141892015f, 0.0109340437f,
                                   -0.0567714684f,   -0.456067413f,   -1.15174818f,    -0.999976575f};
    return less_its_tail(x, LOG2_TAIL, 5.3f);
}

// x / (1 + exp(-x)): Elfwing, Uchibe and Doya, "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in Reinforcement Learning", 2017.
__device__ __forceinline__ float silu(float x) {
    float power, sigmoid;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.44269504f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(1.0f + power));
    return x * sigmoid;
}

template <int EPILOGUE>
__device__ __forceinline__ float activation(float x) {
    if (EPILOGUE == GEMM_BIAS_GELU) return gelu(x);
    if (EPILOGUE == GEMM_BIAS_GELU_TANH) return gelu_tanh(x);
    if (EPILOGUE == GEMM_BIAS_RELU) return relu(x);
    return x;
}

// The bias of column `col`; 0 where the epilogue or C has none.
__device__ __forceinline__ __half bias_of(const GemmArgs &args, uint32_t col) {
    const __half *bias = reinterpret_cast<const __half *>(args.bias);
    return bias != nullptr && col < args.n ? bias[col] : __half();
}

struct alignas(8) FourHalves {
    __half of[4];
};

// Four halves that are 8-byte aligned, or the first `valid` of them one by one; the others read as 0.
__device__ __forceinline__ FourHalves load_4_halves(const __half *source, bool whole, uint32_t valid) {
    FourHalves halves = {};
    if (whole) {
        halves = *reinterpret_cast<const FourHalves *>(source);
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            if (i < valid) halves.of[i] = source[i];
        }
    }
    return halves;
}

__device__ __forceinline__ bool has_residual(int epilogue) { return epilogue == GEMM_RESIDUAL || epilogue == GEMM_BIAS_RESIDUAL; }

// What is added to columns `col` to `col + 3` of row `row`, as far as C has them. `col` is a multiple of 4.
__device__ __forceinline__ FourHalves load_residual(const GemmArgs &args, uint32_t row, uint32_t col) {
    const __half *source = reinterpret_cast<const __half *>(args.residual) + static_cast<uint64_t>(row) * args.ld_residual + col;
    return load_4_halves(source, args.vectorised && args.n - col >= 4, args.n - col);
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

// Finishes and stores columns `col` to `col + 3` of row `row`, as far as C has them. `col` is a multiple of 4. Where the epilogue
// adds a residual, residual() loads those four of it. A rehearsal ends where a result would be stored.
template <int EPILOGUE, typename Residual>
__device__ __forceinline__ void finish(
    const GemmArgs &args, uint32_t row, uint32_t col, const float4 &sums, const Residual &residual, bool rehearses = false) {
    if (row >= args.m || col >= args.n) return;
    const int epilogue = EPILOGUE == ANY_EPILOGUE ? static_cast<int>(args.epilogue) : EPILOGUE;
    const uint32_t valid = args.n - col;
    const bool whole = args.vectorised && valid >= 4;

    float x[4] = {sums.x * args.scale, sums.y * args.scale, sums.z * args.scale, sums.w * args.scale};
    if (epilogue == GEMM_BIAS || epilogue == GEMM_BIAS_GELU || epilogue == GEMM_BIAS_GELU_TANH || epilogue == GEMM_BIAS_RELU ||
        epilogue == GEMM_BIAS_RESIDUAL || (epilogue == GEMM_SILU_GATE && args.bias != 0)) {
        const FourHalves bias = load_4_halves(reinterpret_cast<const __half *>(args.bias) + col, whole, valid);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] += __half2float(bias.of[i]);
    }
    if (has_residual(epilogue)) {
        const FourHalves addends = residual();
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] += __half2float(addends.of[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if (epilogue == GEMM_BIAS_GELU) x[i] = gelu(x[i]);
        if (epilogue == GEMM_BIAS_GELU_TANH) x[i] = gelu_tanh(x[i]);
        if (epilogue == GEMM_BIAS_RELU) x[i] = relu(x[i]);
    }

    if (rehearses) return;
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

template <int EPILOGUE>
__device__ __forceinline__ void finish(const GemmArgs &args, uint32_t row, uint32_t col, const float4 &sums) {
    finish<EPILOGUE>(args, row, col, sums, [&] { return load_residual(args, row, col); });
}

// The entry points of one tile shape, one for each epilogue; variant.rs lists the names in the order of GemmEpilogue.
#define GEMM_WITH_EACH_EPILOGUE(ENTRY, TILE, SHAPE)                                                                                         \
    ENTRY(TILE, SHAPE, plain, GEMM_PLAIN)                                                                                                   \
    ENTRY(TILE, SHAPE, plain_f32, GEMM_PLAIN_F32)                                                                                           \
    ENTRY(TILE, SHAPE, bias, GEMM_BIAS)                                                                                                     \
    ENTRY(TILE, SHAPE, bias_gelu, GEMM_BIAS_GELU)                                                                                           \
    ENTRY(TILE, SHAPE, bias_gelu_tanh, GEMM_BIAS_GELU_TANH)                                                                                 \
    ENTRY(TILE, SHAPE, bias_relu, GEMM_BIAS_RELU)                                                                                           \
    ENTRY(TILE, SHAPE, residual, GEMM_RESIDUAL)                                                                                             \
    ENTRY(TILE, SHAPE, bias_residual, GEMM_BIAS_RESIDUAL)                                                                                   \
    ENTRY(TILE, SHAPE, silu_gate, GEMM_SILU_GATE)
