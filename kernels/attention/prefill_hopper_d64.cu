// Heads of up to 64 columns on Hopper. One source for each head size, so that they compile side by side.
#include "attention/prefill_short.cuh"
#include "attention/prefill_wgmma.cuh"

ATTENTION_PREFILL_SHORT(64)
ATTENTION_PREFILL_WGMMA(64)
