// Barriers in shared memory on which threads and, on sm_90, the copy engine arrive. A barrier counts arrivals and, separately, bytes that copies have
// promised; when both are complete its phase flips, and it counts the next round. Whoever waits names the parity of the phase that
// it wants to see completed: 0 for the first, 1 for the second, 0 again. Waiting for parity 1 on a fresh barrier returns at once.
// PTX ISA manual, section 9.7.13.15.
#pragma once
#include <cstdint>

// `barrier` is a shared-memory address, 8-byte aligned; one thread initialises it for `arrivals` arrivals per phase.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Whether the phase of this parity is complete already; if so, what was written before it can be read.
__device__ __forceinline__ bool mbarrier_is_complete(uint32_t barrier, uint32_t parity) {
    uint32_t complete;
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}\n" : "=r"(complete) : "r"(barrier), "r"(parity) : "memory");
    return complete != 0;
}

// Waits until it is; what was written before it can then be read.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
        "@!complete bra again;\n"
        "}\n" ::"r"(barrier), "r"(parity) : "memory");
#else
    while (!mbarrier_is_complete(barrier, parity)) __nanosleep(64);
#endif
}

#if __CUDA_ARCH__ >= 900

// Makes initialised barriers visible to the copy engine; a block barrier must follow before other threads use them.
__device__ __forceinline__ void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// One arrival that also announces `bytes` bytes of copies still to come in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Announces `bytes` bytes of copies without arriving: the phase stays open.
__device__ __forceinline__ void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// A stage of a ring of STAGES, and the parity of its current round.
template <uint32_t STAGES>
struct RingPosition {
    uint32_t stage = 0, parity = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

#endif
