// The copy engine of Hopper (TMA): one thread asks for a whole tile of a matrix described by a TensorMap, and an mbarrier is told of the bytes as they
// arrive; stores are grouped and waited for by the thread that issued them. Coordinates count elements, dimension 0 first. Elements beyond the
// matrix read as zero and are not written. PTX ISA manual, section 9.7.9.27.
#pragma once
#include <cstdint>

#include "abi.h"

#if __CUDA_ARCH__ >= 900

// That L2 need not keep what is read: createpolicy's encoding of evict_first for all of the data.
constexpr uint64_t L2_EVICT_FIRST = 0x12f0000000000000ull;

// The first address in dynamic shared memory at which a swizzle pattern may begin. Opaque, or the compiler would work it out again at every use, from a
// special register that takes about 50 cycles to read.
__device__ __forceinline__ uint32_t swizzle_aligned(const uint8_t *dynamic_shared) {
    uint32_t aligned = (static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared)) + 1023) & ~1023u;
    asm volatile("mov.u32 %0, %0;" : "+r"(aligned));
    return aligned;
}

__device__ __forceinline__ void tma_prefetch(const TensorMap &map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// `target`: a shared-memory address, 128-byte aligned (1024 for 128-byte swizzle, so that the pattern begins there).
__device__ __forceinline__ void tma_load(uint32_t target, const TensorMap &map, uint32_t barrier, uint32_t x, uint32_t y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(target),
                 "l"(&map), "r"(barrier), "r"(x), "r"(y)
                 : "memory");
}

// The same of what is read once: neighbours keep what they have in L2.
__device__ __forceinline__ void tma_load_once(uint32_t target, const TensorMap &map, uint32_t barrier, uint32_t x, uint32_t y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
                     target),
                 "l"(&map), "r"(barrier), "r"(x), "r"(y), "l"(L2_EVICT_FIRST)
                 : "memory");
}

__device__ __forceinline__ void tma_load_once(uint32_t target, const TensorMap &map, uint32_t barrier, uint32_t x, uint32_t y, uint32_t z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::
                     "r"(target),
                 "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "l"(L2_EVICT_FIRST)
                 : "memory");
}

__device__ __forceinline__ void tma_load_once(uint32_t target, const TensorMap &map, uint32_t barrier, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(target),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w), "l"(L2_EVICT_FIRST)
        : "memory");
}

// Brings a tile to L2 only, and tells nobody.
__device__ __forceinline__ void tma_prefetch_to_l2(const TensorMap &map, uint32_t x, uint32_t y) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ void tma_prefetch_to_l2(const TensorMap &map, uint32_t x, uint32_t y, uint32_t z) {
    asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map), "r"(x), "r"(y), "r"(z) : "memory");
}

__device__ __forceinline__ void tma_prefetch_to_l2(const TensorMap &map, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %4}];" ::"l"(&map), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

// To each block of the cluster whose bit is set in `blocks`: a tile comes to the same place in its shared memory, and told to its own barrier.
__device__ __forceinline__ void tma_load_multicast(uint32_t target, const TensorMap &map, uint32_t barrier, uint32_t x, uint32_t y, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
            target),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "h"(blocks)
        : "memory");
}

__device__ __forceinline__ void tma_load(uint32_t target, const TensorMap &map, uint32_t barrier, uint32_t x, uint32_t y, uint32_t z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(target),
                 "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

__device__ __forceinline__ void tma_load(uint32_t target, const TensorMap &map, uint32_t barrier, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(target),
                 "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}

// Bytes that lie one after another: no map is needed. `bytes` and both addresses are multiples of 16.
__device__ __forceinline__ void bulk_load(uint32_t target, uint64_t source, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target), "l"(source), "r"(bytes),
                 "r"(barrier)
                 : "memory");
}

// Shared memory that ordinary stores wrote is read by the copy engine or by wgmma next: each writing thread fences, then a barrier.
__device__ __forceinline__ void fence_shared_for_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void tma_store(const TensorMap &map, uint32_t source, uint32_t x, uint32_t y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(source), "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until at most PENDING of this thread's newest groups still read shared memory: older sources may be overwritten.
template <int PENDING>
__device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// Until all of this thread's stores are complete and visible to it.
__device__ __forceinline__ void tma_store_wait_all() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

#endif
