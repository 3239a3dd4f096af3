// Attention of new rows over the cache. Several sources, so that they compile side by side.
#include "attention/chunk.cuh"

ATTENTION_CHUNK(80)
ATTENTION_CHUNK(96)
