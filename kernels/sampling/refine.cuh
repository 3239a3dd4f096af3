// Cuts through bins that hold too many tokens to be put in order (finish.cuh): equal logits, or a temperature that makes them nearly so.
//
// A cut is found as radix selection finds it: a histogram of the integers that stand for the bin's logits, 10 bits of their range at a time,
// until one logit is left; then its tokens are counted in the order of their ids. One block reads the row a few times for each cut.
#pragma once
#include "sampling/order.cuh"

// A prefix of the row's order that ends in some bin: all tokens of a higher `order`, and the first `ties` (by id) of those that have this one.
struct Cut {
    uint32_t order;
    uint32_t ties;
    unsigned long long mass; // of the bin's tokens in the prefix, as Grid counts
};

// Dynamic shared memory of one histogram.
struct SubBins {
    uint32_t counts[BINS];
    uint32_t deficits[BINS];
    uint32_t carries[BINS]; // of the deficits
};

// One crossing of a running sum, found by one thread.
struct Crossing {
    uint32_t sub_bin;
    uint32_t count;             // before it
    unsigned long long deficit; // before it
};

class Refiner {
  public:
    __device__ Refiner(SubBins &shared, const LogitRow &row, const Grid &grid) : shared_(shared), row_(row), grid_(grid) {}

    // The shortest prefix that ends in the bin `offset` below `top`, the largest logit's, and whose part in that bin weighs more than `target`: a
    // mass, or if `counts` a count of tokens. All threads call it; the result is the same in each.
    __device__ Cut cut(bool counts, const double &top, uint32_t offset, unsigned long long target) const {
        // The orders in the bin, then those that occur.
        const uint32_t lowest = grid_.first_order(top - offset), highest = offset == 0 ? 0xffffffffu : grid_.first_order(top - offset + 1.0) - 1;
        uint32_t low = 0xffffffffu, high = 0;
        for_each([&](uint32_t, float logit) {
            const uint32_t order = order_of(logit);
            if (order < lowest || order > highest) return;
            low = min(low, order);
            high = max(high, order);
        });
        range_of_block(low, high);
        uint32_t count = 0; // of the bin's tokens above `high`
        unsigned long long deficit = 0;
        const auto passes = [&](uint32_t tokens, unsigned long long lacking) {
            const unsigned long long weight = counts ? tokens : Grid::weigh(static_cast<unsigned long long>(tokens) * Grid::UNIT - lacking, offset);
            return weight > target;
        };
        while (low < high) {
            const int shift = max(0, 22 - __clz(high - low)); // so that (high - low) >> shift is less than BINS
            find_histogram(top - offset, low, high, shift);
            const Crossing crossing = find_crossing(count, deficit, passes);
            count = crossing.count;
            deficit = crossing.deficit;
            high -= crossing.sub_bin << shift;
            low = high - low < (1u << shift) ? low : high - ((1u << shift) - 1);
        }
        const uint32_t each = grid_.deficit(logit_of(high), top - offset);
        uint32_t ties = 1, most = row_.vocabulary;
        while (ties < most) {
            const uint32_t middle = ties + (most - ties) / 2;
            if (passes(count + middle, deficit + static_cast<unsigned long long>(middle) * each)) most = middle;
            else ties = middle + 1;
        }
        const unsigned long long tokens = count + ties;
        return {high, ties, tokens * Grid::UNIT - (deficit + static_cast<unsigned long long>(ties) * each)};
    }

    // The id of a prefix's last token. Each warp counts the ties among neighbouring segments; one of them then finds the id.
    __device__ uint32_t id_of(const Cut &cut) const {
        __shared__ uint32_t ties[WARPS];
        __shared__ uint32_t found;
        const uint32_t segments = row_.segments(), warp = threadIdx.x / 32;
        const uint32_t run = (segments + WARPS - 1) / WARPS, first = min(warp * run, segments), end = min(first + run, segments);
        const auto ties_until = [&](uint32_t before, bool find) {
            for (uint32_t segment = first; segment < end; ++segment) {
                float logit[LogitRow::EACH];
                row_.load(segment, logit);
#pragma unroll
                for (uint32_t i = 0; i < LogitRow::EACH; ++i) {
                    const uint32_t id = LogitRow::id_of(segment, i);
                    const bool tie = id < row_.vocabulary && order_of(not_nan(logit[i])) == cut.order;
                    const uint32_t mask = __ballot_sync(0xffffffffu, tie);
                    const uint32_t rank = before + __popc(mask & ((2u << threadIdx.x % 32) - 1));
                    if (find && tie && rank == cut.ties) found = id;
                    before += __popc(mask);
                }
            }
            return before;
        };
        const uint32_t mine = ties_until(0, false);
        if (threadIdx.x % 32 == 0) ties[warp] = mine;
        if (threadIdx.x == 0) found = row_.vocabulary - 1;
        __syncthreads();
        uint32_t before = 0;
        for (uint32_t other = 0; other < warp; ++other) before += ties[other];
        if (before < cut.ties && cut.ties <= before + mine) ties_until(before, true);
        __syncthreads();
        const uint32_t id = found;
        __syncthreads();
        return id;
    }

  private:
    template <typename Visit>
    __device__ void for_each(Visit visit) const {
        row_.for_each(threadIdx.x / 32, row_.segments(), WARPS, visit);
    }

    __device__ static void range_of_block(uint32_t &low, uint32_t &high) {
        __shared__ uint32_t lowest, highest;
        if (threadIdx.x == 0) {
            lowest = 0xffffffffu;
            highest = 0;
        }
        __syncthreads();
        low = __reduce_min_sync(0xffffffffu, low);
        high = __reduce_max_sync(0xffffffffu, high);
        if (threadIdx.x % 32 == 0) {
            atomicMin(&lowest, low);
            atomicMax(&highest, high);
        }
        __syncthreads();
        low = lowest;
        high = highest;
        __syncthreads();
    }

    // Of the tokens whose order lies in [low, high], by falling order.
    __device__ void find_histogram(double bin, uint32_t low, uint32_t high, int shift) const {
        for (uint32_t word = threadIdx.x; word < sizeof(SubBins) / 4; word += THREADS) reinterpret_cast<uint32_t *>(&shared_)[word] = 0;
        __syncthreads();
        for_each([&](uint32_t, float logit) {
            const uint32_t order = order_of(logit);
            if (order < low || order > high) return;
            const uint32_t sub_bin = (high - order) >> shift, deficit = grid_.deficit(logit, bin);
            atomicAdd(&shared_.counts[sub_bin], 1u);
            if (atomicAdd(&shared_.deficits[sub_bin], deficit) + deficit < deficit) atomicAdd(&shared_.carries[sub_bin], 1u);
        });
        __syncthreads();
    }

    // The sub-bin, one for each thread, in which `passes(running count, running deficit)` becomes true.
    template <typename Passes>
    __device__ Crossing find_crossing(uint32_t count, unsigned long long deficit, Passes passes) const {
        __shared__ uint32_t warp_counts[WARPS];
        __shared__ unsigned long long warp_deficits[WARPS];
        __shared__ Crossing crossing;
        const uint32_t own_count = shared_.counts[threadIdx.x];
        const unsigned long long own_deficit = static_cast<unsigned long long>(shared_.carries[threadIdx.x]) << 32 | shared_.deficits[threadIdx.x];
        uint32_t all_counts;
        unsigned long long all_deficits;
        count += sum_before(own_count, warp_counts, all_counts);
        deficit += sum_before(own_deficit, warp_deficits, all_deficits);
        if (!passes(count, deficit) && passes(count + own_count, deficit + own_deficit)) crossing = {threadIdx.x, count, deficit};
        __syncthreads();
        const Crossing result = crossing;
        __syncthreads();
        return result;
    }

    SubBins &shared_;
    const LogitRow &row_;
    const Grid &grid_;
};
