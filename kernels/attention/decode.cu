// Attention of one query a sequence, for heads of up to each compiled size.
#include "attention/decode.cuh"

ATTENTION_DECODE(32)
ATTENTION_DECODE(64)
ATTENTION_DECODE(80)
ATTENTION_DECODE(96)
ATTENTION_DECODE(128)
ATTENTION_DECODE(256)
