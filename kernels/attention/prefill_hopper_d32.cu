// Heads of up to 32 columns on Hopper. One source for each head size, so that they compile side by side.
#include "attention/prefill_short.cuh"
#include "attention/prefill_wgmma.cuh"

ATTENTION_PREFILL_SHORT(32)
ATTENTION_PREFILL_WGMMA(32)
