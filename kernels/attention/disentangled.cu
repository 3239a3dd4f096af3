// Heads of up to 32 and of up to 64 columns: DeBERTa's all have 64.
#include "attention/disentangled.cuh"

ATTENTION_DISENTANGLED(32)
ATTENTION_DISENTANGLED(64)
