// The end of sampling: one block draws a row's token from what all its parts found (sample.cu).
//
// The parts' histograms, laid one upon the other, say how many tokens and how much mass lie in each bin; running sums over the bins then
// place every cut to within a few bins. Tokens of those bins alone are fetched from the row, put in order, and decide the cuts exactly.
#pragma once
#include "sampling/refine.cuh"

constexpr uint32_t CANDIDATES = 4096; // tokens of undecided bins there is room for
constexpr uint32_t MAX_STAGED_PARTS = 64;

// A range of bins; empty if first > last.
struct Range {
    uint32_t first;
    uint32_t last;
};

// A range of logits; empty if lowest > highest.
struct LogitRange {
    float lowest;
    float highest;

    __device__ bool contains(float logit) const { return (lowest <= logit) & (logit <= highest); }
};

// Dynamic shared memory while a row is finished.
struct Finish {
    uint32_t count_before[BINS + 1];          // tokens in higher bins
    unsigned long long mass_before[BINS + 1]; // mass of all higher bins
    union {
        struct {
            unsigned long long candidates[CANDIDATES]; // order in the high half, the id's complement in the low: falling in the tokens' order
            uint32_t sums[CANDIDATES + 1];             // of the masses of the candidates before each
            uint16_t bins[CANDIDATES];
        };
        SubBins sub_bins; // where there are too many candidates
    };
    unsigned long long warp_masses[WARPS];
    uint32_t warp_counts[WARPS];
    uint32_t shifts[MAX_STAGED_PARTS]; // of a part's bins against the row's
    uint32_t lengths[MAX_STAGED_PARTS];
    SampleParams params;
    double top; // the bin of the largest logit
    LogitRange undecided[3]; // where top_k, top_p and the draw may cut
    uint32_t candidate_count;
    uint32_t found_bins[2];
    unsigned long long found_mass;
    uint32_t found_token;
};

class Finisher {
  public:
    __device__ Finisher(Finish &shared, const LogitRow &row, const Best &best, const SampleParams &params)
        : shared_(shared), row_(row), highest_(best.order), params_(shared.params), grid_(params.temperature),
          top_(shared.top) {
        if (threadIdx.x == 0) { // add_histograms() has a barrier before anyone reads them
            shared.params = params;
            shared.top = grid_.bin(logit_of(best.order));
        }
    }

    // The token drawn, in every thread. `parts`, `histograms` and `segments` (the order of each segment's largest logit): what was found.
    __device__ uint32_t draw(const SamplePart *parts, const SampleBin *histograms, uint32_t part_count, const uint32_t *segments) {
        add_histograms(parts, histograms, part_count);
        bound_cuts();
        gather(segments);
        __syncthreads();
        // As many as there is room for could have a mass of 2^32, which `sums` cannot hold.
        if (shared_.candidate_count >= CANDIDATES) return decide_among_many();
        sort();
        return decide();
    }

  private:
    // Each thread has one bin. After this, count_before and mass_before are right.
    __device__ void add_histograms(const SamplePart *parts, const SampleBin *histograms, uint32_t part_count) {
        const uint32_t bin = threadIdx.x;
        unsigned long long count = 0, deficit = 0;
        for (uint32_t staged = 0; staged < part_count; staged += MAX_STAGED_PARTS) {
            const uint32_t here = min(MAX_STAGED_PARTS, part_count - staged);
            __syncthreads();
            if (threadIdx.x < here) {
                const uint4 part = __ldcg(reinterpret_cast<const uint4 *>(parts + staged + threadIdx.x)); // a SamplePart
                shared_.shifts[threadIdx.x] = Grid::offset_below(top_, grid_.bin(logit_of(part.x)), part.x == highest_);
                shared_.lengths[threadIdx.x] = part.z;
            }
            __syncthreads();
#pragma unroll 8
            for (uint32_t part = 0; part < here; ++part) {
                const uint32_t at = bin - shared_.shifts[part]; // wraps where the part's bins are all lower
                const uint2 *histogram = reinterpret_cast<const uint2 *>(histograms + static_cast<uint64_t>(staged + part) * BINS);
                const uint2 in_bin = at < shared_.lengths[part] ? __ldcg(histogram + at) : make_uint2(0, 0); // a SampleBin
                count += in_bin.x;
                deficit += in_bin.y;
            }
        }
        const unsigned long long mass = Grid::weigh(count * Grid::UNIT - deficit, bin);
        uint32_t all_count;
        unsigned long long all_mass;
        shared_.count_before[bin] = sum_before(static_cast<uint32_t>(count), shared_.warp_counts, all_count);
        shared_.mass_before[bin] = sum_before(mass, shared_.warp_masses, all_mass);
        if (threadIdx.x == 0) {
            shared_.count_before[BINS] = all_count;
            shared_.mass_before[BINS] = all_mass;
            shared_.candidate_count = 0;
        }
        __syncthreads();
    }

    // The bins in which the running sum `before` passes two targets: before[bin] <= target < before[bin + 1].
    template <typename T>
    __device__ Range bins_passing(const T *before, T target, T other) {
        const uint32_t bin = threadIdx.x;
        if (before[bin] <= target && target < before[bin + 1]) shared_.found_bins[0] = bin;
        if (before[bin] <= other && other < before[bin + 1]) shared_.found_bins[1] = bin;
        __syncthreads();
        const Range found = {shared_.found_bins[0], shared_.found_bins[1]};
        __syncthreads();
        return found;
    }

    template <typename T>
    __device__ uint32_t bin_passing(const T *before, T target) {
        return bins_passing(before, target, target).first;
    }

    __device__ bool cuts_count() const { return params_.top_k > 0 && params_.top_k < shared_.count_before[BINS]; }
    __device__ bool cuts_mass() const { return params_.top_p < 1.0f; }

    // Of a total, the running mass at which top_p is reached.
    __device__ unsigned long long reach(unsigned long long total) const {
        const auto reach = static_cast<unsigned long long>(ceil(static_cast<double>(params_.top_p) * static_cast<double>(total)));
        return max(reach, 1ull);
    }

    // Of a total, the running mass that the drawn token passes. Never the total itself: a draw may be rounded up to 1, and so may a large sum.
    __device__ unsigned long long target(unsigned long long total) const {
        const auto target = static_cast<unsigned long long>(static_cast<double>(params_.draw) * static_cast<double>(total));
        return min(target, max(total, 1ull) - 1);
    }

    // Where each cut may lie, given the least and the most that the cuts before it may keep.
    __device__ void bound_cuts() {
        Range bins[3] = {{1, 0}, {1, 0}, {1, 0}};
        unsigned long long least = shared_.mass_before[BINS], most = least;
        if (cuts_count()) {
            bins[0].first = bins[0].last = bin_passing(shared_.count_before, params_.top_k - 1);
            least = shared_.mass_before[bins[0].first];
            most = shared_.mass_before[bins[0].first + 1];
        }
        if (cuts_mass()) {
            bins[1] = bins_passing(shared_.mass_before, reach(least) - 1, reach(most) - 1);
            least = shared_.mass_before[bins[1].first];
            most = shared_.mass_before[bins[1].last + 1];
        }
        bins[2] = bins_passing(shared_.mass_before, target(least), target(most));
#pragma unroll
        for (uint32_t cut = 0; cut < 3; ++cut) {
            // Falling bins are rising logits. One warp each, for the sake of the edges' latency.
            if (threadIdx.x != 32 * cut) continue;
            const Range range = bins[cut];
            if (range.first > range.last) {
                shared_.undecided[cut] = {INFINITY, -INFINITY};
            } else {
                const float highest = range.first == 0 ? INFINITY : logit_of(grid_.first_order(top_ - range.first + 1.0) - 1);
                shared_.undecided[cut] = {logit_of(grid_.first_order(top_ - range.last)), highest};
            }
        }
        __syncthreads();
    }

    // All tokens of undecided bins, in any order, into shared memory. Segments without a logit so large are not read.
    __device__ void gather(const uint32_t *segments) {
        const LogitRange(&undecided)[3] = shared_.undecided;
        const float lowest = fminf(fminf(undecided[0].lowest, undecided[1].lowest), undecided[2].lowest);
        const uint32_t lowest_order = order_of(lowest), segment_count = row_.segments();
        for (uint32_t base = threadIdx.x / 32; base < segment_count; base += WARPS * 32) {
            // Each lane looks at one of the warp's next 32 segments.
            const uint32_t mine = base + threadIdx.x % 32 * WARPS;
            uint32_t left = __ballot_sync(0xffffffffu, mine < segment_count && __ldcg(segments + mine) >= lowest_order);
            while (left != 0) {
                // Two segments on their way at once.
                const uint32_t first = base + (__ffs(left) - 1) * WARPS;
                left &= left - 1;
                const uint32_t second = left != 0 ? base + (__ffs(left) - 1) * WARPS : segment_count; // which has no tokens
                left &= left - 1;
                float logit[2][LogitRow::EACH];
                row_.load(first, logit[0]);
                row_.load(second, logit[1]);
                uint32_t large = 0; // a bit for each of this thread's tokens
#pragma unroll
                for (uint32_t i = 0; i < 2 * LogitRow::EACH; ++i)
                    large |= !(logit[i / LogitRow::EACH][i % LogitRow::EACH] < lowest) ? 1u << i : 0;
                // Few: they are read again, so that the code for them stands here once.
                for (; large != 0; large &= large - 1) {
                    const uint32_t i = __ffs(large) - 1;
                    const uint32_t id = LogitRow::id_of(i < LogitRow::EACH ? first : second, i % LogitRow::EACH);
                    if (id >= row_.vocabulary) continue;
                    const float number = not_nan(row_.logits[id]);
                    if (!(undecided[0].contains(number) | undecided[1].contains(number) | undecided[2].contains(number))) continue;
                    const uint32_t place = atomicAdd(&shared_.candidate_count, 1u);
                    if (place < CANDIDATES) shared_.candidates[place] = static_cast<unsigned long long>(order_of(number)) << 32 | ~id;
                }
            }
        }
    }

    // Puts the candidates in order.
    __device__ void sort() {
        constexpr uint32_t FEW = 256; // so few are sooner compared with each other than sent through a network
        if (shared_.candidate_count <= FEW) sort_few();
        else sort_many();
    }

    // Counts for each candidate those that come before it. Several threads share out a candidate's comparisons.
    __device__ void sort_few() {
        const uint32_t count = shared_.candidate_count;
        uint32_t each = 32; // threads for a candidate, a power of two
        while (each * count > THREADS) each /= 2;
        const uint32_t mine = threadIdx.x / each;
        unsigned long long candidate = 0;
        uint32_t before = 0;
        if (mine < count) {
            candidate = shared_.candidates[mine];
#pragma unroll 4
            for (uint32_t other = threadIdx.x % each; other < count; other += each) before += shared_.candidates[other] > candidate;
        }
        for (uint32_t distance = each / 2; distance > 0; distance /= 2) before += __shfl_xor_sync(0xffffffffu, before, distance);
        __syncthreads();
        if (mine < count && threadIdx.x % each == 0) shared_.candidates[before] = candidate;
        __syncthreads();
    }

    // A bitonic network (Batcher 1968).
    __device__ void sort_many() {
        const uint32_t count = shared_.candidate_count;
        uint32_t size = 64; // a power of two
        while (size < count) size *= 2;
        for (uint32_t i = count + threadIdx.x; i < size; i += THREADS) shared_.candidates[i] = 0;
        __syncthreads();
        for (uint32_t run = 2; run <= size; run *= 2) {
            for (uint32_t distance = run / 2; distance > 0; distance /= 2) {
                for (uint32_t pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                    const uint32_t low = 2 * pair - (pair & (distance - 1)), high = low + distance;
                    const unsigned long long a = shared_.candidates[low], b = shared_.candidates[high];
                    if ((a < b) == ((low & run) == 0)) {
                        shared_.candidates[low] = b;
                        shared_.candidates[high] = a;
                    }
                }
                // The next pairs stay within a warp's 64 elements unless they are further apart.
                const uint32_t next = distance > 1 ? distance / 2 : run;
                if (next > 32 || distance > 32) __syncthreads();
                else __syncwarp();
            }
        }
        __syncthreads();
    }

    // The token, from all candidates in order, a thread for each at a time; whichever has the one that a cut looks for tells all.
    __device__ uint32_t decide() {
        const uint32_t count = shared_.candidate_count;
        uint32_t passed = 0; // mass of the candidates before this thousand
        for (uint32_t first = 0; first < count; first += THREADS) {
            const uint32_t at = first + threadIdx.x;
            uint32_t mass = 0, all;
            if (at < count) {
                const uint32_t order = static_cast<uint32_t>(shared_.candidates[at] >> 32);
                const double bin = grid_.bin(logit_of(order));
                mass = Grid::UNIT - grid_.deficit(logit_of(order), bin);
                shared_.bins[at] = static_cast<uint16_t>(Grid::offset_below(top_, bin, order == highest_));
            }
            const uint32_t before = passed + sum_before(mass, shared_.warp_counts, all);
            if (at < count) shared_.sums[at] = before;
            passed += all;
            if (threadIdx.x == 0) shared_.sums[min(first + THREADS, count)] = passed;
            __syncthreads();
        }
        unsigned long long kept = shared_.mass_before[BINS];
        if (cuts_count()) {
            for_each_candidate([&](uint32_t, uint32_t rank, unsigned long long, unsigned long long to) {
                if (rank == params_.top_k - 1) shared_.found_mass = to;
            });
            kept = shared_.found_mass;
            __syncthreads();
        }
        if (cuts_mass()) {
            const unsigned long long target = reach(kept) - 1;
            for_each_candidate([&](uint32_t, uint32_t, unsigned long long from, unsigned long long to) {
                if (from <= target && target < to) shared_.found_mass = to;
            });
            kept = shared_.found_mass;
        }
        const unsigned long long target = this->target(kept);
        for_each_candidate([&](uint32_t at, uint32_t, unsigned long long from, unsigned long long to) {
            if (from <= target && target < to) shared_.found_token = ~static_cast<uint32_t>(shared_.candidates[at]);
        });
        return shared_.found_token;
    }

    // Calls visit(candidate, its place in the row's order, running mass before it, running mass with it) for each, then meets at a barrier.
    template <typename Visit>
    __device__ void for_each_candidate(Visit visit) const {
        for (uint32_t at = threadIdx.x; at < shared_.candidate_count; at += THREADS) {
            const uint32_t bin = shared_.bins[at], start = first_of(bin, at);
            const unsigned long long before = shared_.mass_before[bin];
            const uint32_t from = shared_.sums[at] - shared_.sums[start], to = shared_.sums[at + 1] - shared_.sums[start];
            visit(at, shared_.count_before[bin] + (at - start), before + Grid::weigh(from, bin), before + Grid::weigh(to, bin));
        }
        __syncthreads();
    }

    // The first candidate of `bin`, to which the candidate `at` belongs.
    __device__ uint32_t first_of(uint32_t bin, uint32_t at) const {
        uint32_t low = 0, high = at;
        while (low < high) {
            const uint32_t middle = (low + high) / 2;
            if (shared_.bins[middle] < bin) low = middle + 1;
            else high = middle;
        }
        return low;
    }

    // decide(), by refining each cut's bin. What is kept from one cut to the next waits in shared memory.
    __device__ uint32_t decide_among_many() {
        enum { TOP_K, TOP_P, DRAW };
        const Refiner refiner(shared_.sub_bins, row_, grid_);
        if (threadIdx.x == 0) shared_.found_mass = shared_.mass_before[BINS];
        Cut cut = {0, 0, 0};
#pragma unroll 1
        for (int step = TOP_K; step <= DRAW; ++step) {
            __syncthreads();
            if ((step == TOP_K && !cuts_count()) || (step == TOP_P && !cuts_mass())) continue;
            const unsigned long long kept = shared_.found_mass;
            const unsigned long long target = step == TOP_K ? params_.top_k - 1 : step == TOP_P ? reach(kept) - 1 : this->target(kept);
            const uint32_t bin = step == TOP_K ? bin_passing(shared_.count_before, static_cast<uint32_t>(target)) : bin_passing(shared_.mass_before, target);
            const unsigned long long before = step == TOP_K ? shared_.count_before[bin] : shared_.mass_before[bin];
            cut = refiner.cut(step == TOP_K, top_, bin, target - before);
            if (threadIdx.x == 0) shared_.found_mass = shared_.mass_before[bin] + Grid::weigh(cut.mass, bin);
        }
        return refiner.id_of(cut);
    }

    Finish &shared_;
    const LogitRow &row_;
    const uint32_t highest_; // the order of the largest logit
    const SampleParams &params_; // in shared memory: registers are short here
    const Grid grid_;
    const double &top_; // the same
};
