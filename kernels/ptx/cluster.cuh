// Thread block clusters (sm_90): blocks that run at one time and reach into each other's shared memory. Ours are pairs. PTX ISA manual, sections 9.7.13.4,
// 9.7.13.15 and 9.7.9.24.
#pragma once
#include <cstdint>

#if __CUDA_ARCH__ >= 900

// This block's number in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of the cluster meet. Each thread calls it; the threads of a warp need not come together.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// The same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ uint32_t in_block(uint32_t shared_address, uint32_t rank) {
    uint32_t address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address), "r"(rank));
    return address;
}

// Arrives at a barrier of any block of the cluster, at an address of in_block(). It orders this thread's accesses within its own block only: the release
// at cluster scope that PTX also offers costs a memory fence, about 0.6 us, and whoever only says "I have read it" needs none.
__device__ __forceinline__ void mbarrier_arrive_in_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The same, and announces `bytes` bytes still to come.
__device__ __forceinline__ void mbarrier_arrive_expect_in_cluster(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// A word of any block's shared memory, at an address of in_block(): what was stored there before a cluster_barrier(). Blocks must have met once before any
// of them touches another's memory, which may belong to a block that has not started.
__device__ __forceinline__ uint32_t load_in_cluster(uint32_t source) {
    uint32_t word;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(word) : "r"(source) : "memory");
    return word;
}

// Stores a word in any block's shared memory and completes 4 bytes of that block's barrier. Both addresses are of in_block().
__device__ __forceinline__ void store_async(uint32_t target, uint32_t word, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(target), "r"(word), "r"(barrier)
                 : "memory");
}

// The same for four floats; `target` is a multiple of 16.
__device__ __forceinline__ void store_async(uint32_t target, const float4 &values, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(target), "f"(values.x),
                 "f"(values.y), "f"(values.z), "f"(values.w), "r"(barrier)
                 : "memory");
}

#endif
