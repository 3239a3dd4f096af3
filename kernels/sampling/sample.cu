// The next token of each row, drawn from its logits.
//   logits: [rows, vocabulary] fp32
//
// Definition (src/reference/sampling.rs is the same on the CPU): tokens are ordered by falling logit, equal logits by rising id. Of that order,
// keep the first top_k; of those, the shortest prefix whose probability reaches top_p; then the token at which the cumulative probability of
// what is kept passes `draw`. Temperature 0 takes the first token. A NaN counts as the smallest logit.
//
// Rows are cut into parts, so that a few rows fill the GPU. A block finds the largest logit of its part and, where the row is not greedy, a
// histogram of its logits. The block that is last of its row to arrive takes the largest of the largest, or draws (finish.cuh); no block
// waits for another. Read order.cuh, this, finish.cuh, refine.cuh. The parts follow from the shape, and no sum depends on its order, so the
// token is the same on any SM count.
#include "sampling/finish.cuh"

// Dynamic shared memory while a part is read.
struct Histogram {
    uint32_t counts[BINS];
    uint32_t deficits[BINS];
};

static_assert(sizeof(Finish) <= SAMPLE_SHARED_BYTES && sizeof(Histogram) <= SAMPLE_SHARED_BYTES, "abi.h says what a block has");

// The segments of one part of a row.
struct Part {
    uint32_t first;
    uint32_t end;
};

// The block's best, in each of its threads.
__device__ Best best_of_block(Best best) {
    __shared__ Best of_warps[WARPS];
    best = best.of_warp();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = best;
    __syncthreads();
    return of_warps[threadIdx.x % 32].of_warp();
}

// The largest logit of a part; each segment's goes to `segments`.
__device__ Best find_best(const LogitRow &row, const Part &part, uint32_t *segments) {
    Best best = {0, 0xffffffffu};
    for (uint32_t segment = part.first + threadIdx.x / 32; segment < part.end; segment += WARPS) {
        float logit[LogitRow::EACH];
        row.load(segment, logit);
        Best of_segment = {0, 0xffffffffu};
#pragma unroll
        for (uint32_t i = 0; i < LogitRow::EACH; ++i) {
            // Ids rise with i, so the first of equals stays. What lies beyond the vocabulary is at most equal, and has higher ids.
            const uint32_t order = order_of(not_nan(logit[i]));
            if (order > of_segment.order) of_segment = {order, LogitRow::id_of(segment, i)};
        }
        best.take(of_segment);
        const uint32_t highest = __reduce_max_sync(0xffffffffu, of_segment.order);
        if (threadIdx.x % 32 == 0) segments[segment] = highest;
    }
    return best_of_block(best);
}

// The histogram of a part, from its largest logit down, to `bins`; its length is the result in every thread.
__device__ uint32_t find_histogram(Histogram &histogram, const LogitRow &row, const Part &part, const Best &best, float temperature,
                                   SampleBin *bins) {
    const Grid grid(temperature);
    const double top = grid.bin(logit_of(best.order));
    uint32_t length = 0;
    row.for_each(part.first + threadIdx.x / 32, part.end, WARPS, [&](uint32_t, float logit) {
        const double bin = grid.bin(logit);
        const uint32_t offset = Grid::offset_below(top, bin, order_of(logit) == best.order);
        if (offset >= BINS) return;
        atomicAdd(&histogram.counts[offset], 1u);
        atomicAdd(&histogram.deficits[offset], grid.deficit(logit, bin));
        length = max(length, offset + 1);
    });
    __shared__ uint32_t lengths[WARPS];
    length = __reduce_max_sync(0xffffffffu, length);
    if (threadIdx.x % 32 == 0) lengths[threadIdx.x / 32] = length;
    __syncthreads();
    length = __reduce_max_sync(0xffffffffu, lengths[threadIdx.x % 32]);
    if (threadIdx.x < length) bins[threadIdx.x] = {histogram.counts[threadIdx.x], histogram.deficits[threadIdx.x]};
    return length;
}

// Whether this block is the last of `count` to come here for the row; then it can read all that the others wrote. Counts itself back to 0.
__device__ bool last_to_arrive(uint32_t *arrivals, uint32_t count) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(arrivals, count - 1) == count - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// The largest logit of all parts, in every thread.
__device__ Best best_of_parts(const SamplePart *parts, uint32_t count) {
    Best best = {0, 0xffffffffu};
    for (uint32_t part = threadIdx.x % 32; part < count; part += 32) {
        const uint2 found = __ldcg(reinterpret_cast<const uint2 *>(parts + part)); // order and id of a SamplePart
        best.take({found.x, found.y});
    }
    return best.of_warp();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) sample_tokens(SampleArgs args, Tiles tiles) {
    extern __shared__ __align__(16) unsigned char shared[];
    Histogram &histogram = *reinterpret_cast<Histogram *>(shared);
    ElasticTiles queue(tiles);
    for (uint32_t tile; queue.next(tile);) {
        const uint32_t number = tile / args.parts_per_row, part_number = tile % args.parts_per_row;
        const SampleParams params = reinterpret_cast<const SampleParams *>(args.params)[number];
        const LogitRow row = {reinterpret_cast<const float *>(args.logits) + static_cast<uint64_t>(number) * args.vocabulary, args.vocabulary};
        const Part part = {part_number * args.segments_per_part, min((part_number + 1) * args.segments_per_part, row.segments())};
        SamplePart *parts = reinterpret_cast<SamplePart *>(args.parts) + static_cast<uint64_t>(number) * args.parts_per_row;
        uint32_t *segments = reinterpret_cast<uint32_t *>(args.segments) + static_cast<uint64_t>(number) * row.segments();
        SampleBin *histograms =
            reinterpret_cast<SampleBin *>(args.histograms) + static_cast<uint64_t>(number) * args.parts_per_row * BINS;

        histogram.counts[threadIdx.x] = 0;
        histogram.deficits[threadIdx.x] = 0;
        Best best = find_best(row, part, segments);
        // Not looked at before the logits are under way.
        const bool greedy = !(params.temperature > 0.0f);
        uint32_t length = 0;
        if (!greedy) length = find_histogram(histogram, row, part, best, params.temperature, histograms + part_number * BINS);
        if (threadIdx.x == 0) parts[part_number] = {best.order, best.id, length, 0};
        if (!last_to_arrive(reinterpret_cast<uint32_t *>(args.arrivals) + number, args.parts_per_row)) continue;

        best = best_of_parts(parts, args.parts_per_row);
        uint32_t token = best.id;
        if (!greedy) {
            Finisher finisher(*reinterpret_cast<Finish *>(shared), row, best, params);
            token = finisher.draw(parts, histograms, args.parts_per_row, segments);
        }
        if (threadIdx.x == 0) {
            reinterpret_cast<uint32_t *>(args.tokens)[number] = token;
            if (args.positions) ++reinterpret_cast<uint32_t *>(args.positions)[number];
            if (args.lengths) ++reinterpret_cast<uint32_t *>(args.lengths)[number];
        }
    }
}
