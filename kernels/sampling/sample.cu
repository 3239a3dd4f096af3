// The next token of each row, drawn from its logits.
//   logits: [rows, vocabulary] fp32; one block a row.
//
// Definition (src/reference/sampling.rs is the same on the CPU): tokens are ordered by falling logit, equal logits by rising id. Of that order,
// keep the first top_k; of those, the shortest prefix whose probability reaches top_p; then the token at which the cumulative probability of
// what is kept passes `draw`. Temperature 0 takes the first token. A NaN counts as the smallest logit.
//
// Probabilities are held as integers, exp((logit - max) / temperature) * 2^40, so that sums do not depend on the order of adding: the same
// token on any grid. All three cuts are then one operation, select(): walk the order until a weight (a count, or a mass) is passed. It looks
// at 8 bits of the logits' order-preserving pattern at a time, as radix selection does, so 4 passes find the logit and a fifth the id.
#include "elastic.cuh"

constexpr int THREADS = 1024;
constexpr int BINS = 256;

__device__ __forceinline__ float not_nan(float logit) { return logit == logit ? logit : -INFINITY; }

// Floats in an order that unsigned integers keep: negative ones reversed, positive ones above them.
__device__ __forceinline__ uint32_t order_of(float logit) {
    const uint32_t bits = __float_as_uint(logit + 0.0f); // -0 becomes +0: they are equal and tie
    return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// A prefix of the order: all tokens whose logit has a higher pattern than `order`, and the first `ties` (by id) of those that have this one.
struct Cut {
    uint32_t order;
    uint32_t ties;
};

struct Row {
    const float *logits;
    uint32_t vocabulary;
    float max;
    float inverse_temperature;

    __device__ float logit(uint32_t id) const { return not_nan(logits[id]); }

    __device__ unsigned long long mass(float logit) const {
        // The largest has all its mass even if it, or 1 / temperature, is infinite: 0 times infinity would be NaN.
        const float exponent = logit == max ? 0.0f : (logit - max) * inverse_temperature;
        return static_cast<unsigned long long>(expf(exponent) * 0x1p40f);
    }

    // The shortest prefix, no longer than `kept`, whose weight exceeds `target`. Weights are masses, or 1 each if COUNT.
    template <bool COUNT>
    __device__ Cut select(unsigned long long target, const Cut &kept) const {
        __shared__ unsigned long long bins[BINS];
        __shared__ unsigned long long passed; // weight of all tokens before the digits chosen so far
        __shared__ uint32_t prefix;
        if (threadIdx.x == 0) {
            passed = 0;
            prefix = 0;
        }
        for (int shift = 24; shift >= 0; shift -= 8) {
            if (threadIdx.x < BINS) bins[threadIdx.x] = 0;
            __syncthreads();
            const uint32_t chosen = prefix;
            for (uint32_t id = threadIdx.x; id < vocabulary; id += THREADS) {
                const uint32_t order = order_of(logit(id));
                const bool in_prefix = shift == 24 || order >> (shift + 8) == chosen >> (shift + 8);
                // Ties at the cut are weighed below, all at once: only some of them are kept.
                if (in_prefix && order > kept.order) atomicAdd(&bins[(order >> shift) % BINS], COUNT ? 1ull : mass(logit(id)));
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                if (shift == 24 || kept.order >> (shift + 8) == chosen >> (shift + 8))
                    bins[(kept.order >> shift) % BINS] += kept.ties * weight_at<COUNT>(kept.order);
                int bin = BINS - 1;
                while (bin > 0 && passed + bins[bin] <= target) passed += bins[bin--];
                prefix |= static_cast<uint32_t>(bin) << shift;
            }
            __syncthreads();
        }
        const unsigned long long each = weight_at<COUNT>(prefix);
        const unsigned long long beyond = target >= passed ? target - passed : 0;
        Cut cut = {prefix, each > 0 ? static_cast<uint32_t>(beyond / each) + 1 : 1u};
        if (cut.order == kept.order && cut.ties > kept.ties) cut.ties = kept.ties;
        __syncthreads();
        return cut;
    }

    template <bool COUNT>
    __device__ unsigned long long weight_at(uint32_t order) const {
        if (COUNT) return 1;
        const uint32_t bits = order ^ ((order >> 31) ? 0x80000000u : 0xffffffffu);
        return mass(__uint_as_float(bits));
    }

    // The weight of all that is kept.
    __device__ unsigned long long total(const Cut &kept) const {
        __shared__ unsigned long long sum;
        if (threadIdx.x == 0) sum = kept.ties * weight_at<false>(kept.order);
        __syncthreads();
        unsigned long long mine = 0;
        for (uint32_t id = threadIdx.x; id < vocabulary; id += THREADS)
            if (order_of(logit(id)) > kept.order) mine += mass(logit(id));
        atomicAdd(&sum, mine);
        __syncthreads();
        const unsigned long long all = sum;
        __syncthreads();
        return all;
    }

    // The id of a prefix's last token. Each thread counts the ties in a run of neighbouring ids; the runs are then walked in order.
    __device__ uint32_t id_of(const Cut &cut) const {
        __shared__ uint32_t ties[THREADS];
        __shared__ uint32_t found;
        if (cut.ties == 1) {
            // Nearly always: the lowest id with this logit, found by neighbouring threads reading neighbouring logits.
            if (threadIdx.x == 0) found = vocabulary - 1;
            __syncthreads();
            uint32_t lowest = vocabulary - 1;
#pragma unroll 8
            for (uint32_t id = threadIdx.x; id < vocabulary; id += THREADS) lowest = order_of(logit(id)) == cut.order ? min(lowest, id) : lowest;
            atomicMin(&found, lowest);
            __syncthreads();
            const uint32_t id = found;
            __syncthreads();
            return id;
        }
        const uint32_t run = (vocabulary + THREADS - 1) / THREADS;
        const uint32_t first = min(threadIdx.x * run, vocabulary), end = min(first + run, vocabulary);
        uint32_t mine = 0;
        for (uint32_t id = first; id < end; ++id) mine += order_of(logit(id)) == cut.order;
        ties[threadIdx.x] = mine;
        if (threadIdx.x == 0) found = 0;
        __syncthreads();
        uint32_t before = 0;
        if (mine > 0)
            for (uint32_t other = 0; other < threadIdx.x; ++other) before += ties[other];
        if (mine > 0 && before < cut.ties && cut.ties <= before + mine) {
            uint32_t rank = before;
            for (uint32_t id = first; id < end; ++id)
                if (order_of(logit(id)) == cut.order && ++rank == cut.ties) found = id;
        }
        __syncthreads();
        const uint32_t id = found;
        __syncthreads();
        return id;
    }
};

__device__ float block_max(const float *logits, uint32_t vocabulary) {
    __shared__ uint32_t best;
    if (threadIdx.x == 0) best = 0;
    __syncthreads();
    uint32_t mine = 0;
#pragma unroll 8
    for (uint32_t id = threadIdx.x; id < vocabulary; id += THREADS) mine = max(mine, order_of(not_nan(logits[id])));
    atomicMax(&best, mine);
    __syncthreads();
    const uint32_t order = best;
    __syncthreads();
    return __uint_as_float(order ^ ((order >> 31) ? 0x80000000u : 0xffffffffu));
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_tokens(SampleArgs args, Tiles tiles) {
    StridedTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const SampleParams params = reinterpret_cast<const SampleParams *>(args.params)[tile];
        const float *logits = reinterpret_cast<const float *>(args.logits) + static_cast<uint64_t>(tile) * args.vocabulary;
        const float max = block_max(logits, args.vocabulary);
        const Row row = {logits, args.vocabulary, max, params.temperature > 0.0f ? 1.0f / params.temperature : 1.0f};
        Cut cut = {order_of(max), 1};
        if (params.temperature > 0.0f) {
            Cut kept = {0, 0}; // everything: no number has the pattern 0
            if (params.top_k > 0 && params.top_k < args.vocabulary) kept = row.select<true>(params.top_k - 1, kept);
            if (params.top_p < 1.0f) {
                // The prefix reaches top_p with the token at which the running total exceeds one unit less.
                const unsigned long long reach = static_cast<unsigned long long>(ceil(static_cast<double>(params.top_p) * static_cast<double>(row.total(kept))));
                kept = row.select<false>(reach > 0 ? reach - 1 : 0, kept);
            }
            // Never beyond the last token: a draw may be rounded up to 1, and so may a large sum as a double.
            const unsigned long long total = row.total(kept);
            const double drawn = static_cast<double>(params.draw) * static_cast<double>(total);
            cut = row.select<false>(min(static_cast<unsigned long long>(drawn), total - 1), kept);
        }
        const uint32_t token = row.id_of(cut);
        if (threadIdx.x == 0) {
            reinterpret_cast<uint32_t *>(args.tokens)[tile] = token;
            if (args.positions) ++reinterpret_cast<uint32_t *>(args.positions)[tile];
            if (args.lengths) ++reinterpret_cast<uint32_t *>(args.lengths)[tile];
        }
    }
}
