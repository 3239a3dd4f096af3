// Heads of up to 96 columns. One source for each head size, so that they compile side by side.
#include "attention/prefill.cuh"

ATTENTION_PREFILL(96)
