// Heads of up to 96 columns on Hopper. One source for each head size, so that they compile side by side.
#include "attention/prefill_wgmma.cuh"

ATTENTION_PREFILL_WGMMA(96)
