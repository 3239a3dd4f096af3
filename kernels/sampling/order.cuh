// What sampling knows of one logit: its place in the order of all floats, and its mass on a grid of the temperature.
#pragma once
#include "elastic.cuh"

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
constexpr uint32_t SEGMENT = SAMPLE_SEGMENT;
constexpr int BINS = SAMPLE_BINS;
static_assert(BINS == THREADS, "each thread has one bin");

__device__ __forceinline__ float not_nan(float logit) { return logit == logit ? logit : -INFINITY; }

// Floats in an order that unsigned integers keep: negative ones reversed, positive ones above them.
__device__ __forceinline__ uint32_t order_of(float logit) {
    const uint32_t bits = __float_as_uint(logit + 0.0f); // -0 becomes +0: they are equal and tie
    return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float logit_of(uint32_t order) { return __uint_as_float(order ^ ((order >> 31) ? 0x80000000u : 0xffffffffu)); }

// The scale of logit / temperature, cut into bins of 1 / 32 around its multiples of that, so that every part of a row has the same bins. A
// token's mass is exp(logit / temperature) in units of UNIT-ths of exp(upper edge of its bin): an integer that no other token has a say in,
// whence sums of masses do not depend on the order of adding. In double precision, because logit / temperature may be large and its fraction
// counts; without conversions between doubles and integers, which are slow: a double plus ROUNDER has its integer in the low bits.
class Grid {
  public:
    static constexpr float BINS_PER_NAT = 32.0f;
    static constexpr uint32_t UNIT = 1u << 20;

    // An infinite temperature is as good as a very high one, and one whose bins would have no width as a very low one: zero times infinity is spared.
    __device__ explicit Grid(float temperature)
        : logits_per_bin_(fmaxf(fminf(temperature, 0x1p100f), 0x1p-100f) / BINS_PER_NAT), bins_per_logit_(1.0 / logits_per_bin_) {}

    // The number of a logit's bin, an integer. Rounded as written wherever this is inlined: were the compiler free to fuse the product with the
    // sum in one place and not in another, a logit on an edge would have two bins.
    __device__ double bin(float logit) const { return __dadd_rn(__fma_rn(logit, bins_per_logit_, ROUNDER), -ROUNDER); }

    // The least order whose logit lies in `bin` or in a higher one.
    __device__ uint32_t first_order(double bin) const {
        uint32_t order = order_of(__double2float_rn((bin - 0.5) * logits_per_bin_));
        // The product is rounded: the edge is a step or two away.
        while (this->bin(logit_of(order - 1)) >= bin) --order;
        while (this->bin(logit_of(order)) < bin) ++order;
        return order;
    }

    // UNIT less the mass of a logit in `bin`: UNIT * (1 - exp(-x)), x at most 1 / 32, by its series to the fourth power of x.
    __device__ uint32_t deficit(float logit, double bin) const {
        const float to_edge = static_cast<float>(__fma_rn(-logit, bins_per_logit_, bin + 0.5));
        const float x = to_edge <= 1.0f ? to_edge / BINS_PER_NAT : 0.0f; // infinity has no place inside its bin
        // Fused as written, for the same reason.
        const float series = __fmaf_rn(-x, __fmaf_rn(-x, 1.0f / 6.0f, 0.5f), 1.0f);
        return __float2uint_rn(__fmul_rn(__fmul_rn(x, series), static_cast<float>(UNIT)));
    }

    // How many bins `bin` lies below `top`; BINS if that is too far to matter. `largest`: the bins are the same, even if they are infinite.
    __device__ static uint32_t offset_below(double top, double bin, bool largest) {
        const double offset = largest ? 0.0 : top - bin;
        return offset < static_cast<double>(BINS) ? static_cast<uint32_t>(__double2loint(offset + ROUNDER)) : static_cast<uint32_t>(BINS);
    }

    // `mass`, a sum of masses in the bin `offset` below the largest logit's: in units of 2^-40 of exp(upper edge of the largest's bin).
    __device__ static unsigned long long weigh(unsigned long long mass, uint32_t offset) {
        const float below = expf(-static_cast<float>(offset) / BINS_PER_NAT);
        return static_cast<unsigned long long>(__dmul_rn(static_cast<double>(mass), static_cast<double>(below) * 0x1p20));
    }

  private:
    static constexpr double ROUNDER = 0x1.8p52;

    float logits_per_bin_; // exact
    double bins_per_logit_;
};

// The largest of some logits, and the lowest id that has it.
struct Best {
    uint32_t order;
    uint32_t id;

    // The best of a warp's, in each of its threads.
    __device__ Best of_warp() const {
        const uint32_t highest = __reduce_max_sync(0xffffffffu, order);
        return {highest, __reduce_min_sync(0xffffffffu, order == highest ? id : 0xffffffffu)};
    }

    __device__ void take(const Best &other) {
        if (other.order > order || (other.order == order && other.id < id)) *this = other;
    }
};

// One row of logits in device memory.
struct LogitRow {
    static constexpr uint32_t EACH = SEGMENT / 32; // logits of a segment that a lane has

    const float *logits;
    uint32_t vocabulary;

    __device__ uint32_t segments() const { return (vocabulary + SEGMENT - 1) / SEGMENT; }

    // This lane's logits of a segment: the ids segment * SEGMENT + lane + 32 i. Those beyond the vocabulary are NaN.
    __device__ void load(uint32_t segment, float (&logit)[EACH]) const {
        const bool whole = (segment + 1) * SEGMENT <= vocabulary; // nearly always, and spares eight comparisons
#pragma unroll
        for (uint32_t i = 0; i < EACH; ++i) logit[i] = whole || id_of(segment, i) < vocabulary ? logits[id_of(segment, i)] : NAN;
    }

    // The same, in fewer registers.
    __device__ void load_in_few_registers(uint32_t segment, float (&logit)[EACH]) const {
#pragma unroll
        for (uint32_t i = 0; i < EACH; ++i) logit[i] = id_of(segment, i) < vocabulary ? logits[id_of(segment, i)] : NAN;
    }

    __device__ static uint32_t id_of(uint32_t segment, uint32_t i) { return segment * SEGMENT + i * 32 + threadIdx.x % 32; }

    // Calls visit(id, logit) for every token of the segments first, first + step, ... below `end`, in the thread that read it. The next segment is on
    // its way meanwhile.
    template <typename Visit>
    __device__ void for_each(uint32_t first, uint32_t end, uint32_t step, Visit visit) const {
        float logit[EACH], next[EACH];
        if (first < end) load_in_few_registers(first, next);
#pragma unroll 1
        for (uint32_t segment = first; segment < end; segment += step) {
#pragma unroll
            for (uint32_t i = 0; i < EACH; ++i) logit[i] = next[i];
            if (segment + step < end) load_in_few_registers(segment + step, next);
            visit_segment(segment, logit, visit);
        }
    }

    template <typename Visit>
    __device__ void visit_segment(uint32_t segment, const float (&logit)[EACH], Visit visit) const {
#pragma unroll
        for (uint32_t i = 0; i < EACH; ++i)
            if (id_of(segment, i) < vocabulary) visit(id_of(segment, i), not_nan(logit[i]));
    }
};

// The sum of `value` over the block's threads before this one, and over all of them. `scratch` holds WARPS values; a barrier must lie between
// two uses of it.
template <typename T>
__device__ __forceinline__ T sum_before(T value, T *scratch, T &all) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    T sum = value;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        const T lower = __shfl_up_sync(0xffffffffu, sum, distance);
        if (lane >= distance) sum += lower;
    }
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    T of_warps = scratch[lane];
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        const T lower = __shfl_up_sync(0xffffffffu, of_warps, distance);
        if (lane >= distance) of_warps += lower;
    }
    all = __shfl_sync(0xffffffffu, of_warps, 31);
    const T before = __shfl_sync(0xffffffffu, of_warps, warp > 0 ? warp - 1 : 0);
    return sum - value + (warp > 0 ? before : T(0));
}
