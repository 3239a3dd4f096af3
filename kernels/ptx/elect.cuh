// One lane for the whole warp (sm_90). PTX ISA manual, section 9.7.13.14.
#pragma once
#include <cstdint>

#if __CUDA_ARCH__ >= 900

// Whether this lane is the one, the same at every call. All lanes of the warp call it together. Copies asked for by the elected lane of a warp that
// stays together cost two instructions; by a thread chosen otherwise, ptxas wraps each in a loop over lanes and the copy takes about 100 cycles.
__device__ __forceinline__ bool elect_one() {
    uint32_t elected;
    asm volatile(
        "{\n"
        ".reg .pred elected;\n"
        "elect.sync _|elected, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, elected;\n"
        "}\n"
        : "=r"(elected));
    return elected != 0;
}

#endif
