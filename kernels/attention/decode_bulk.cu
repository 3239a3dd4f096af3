// Attention of one query a sequence by Hopper's copy engine, for heads of each compiled size.
#include "attention/decode_bulk.cuh"

ATTENTION_DECODE_BULK(32)
ATTENTION_DECODE_BULK(64)
ATTENTION_DECODE_BULK(80)
ATTENTION_DECODE_BULK(96)
ATTENTION_DECODE_BULK(128)
ATTENTION_DECODE_BULK(256)
