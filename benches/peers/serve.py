"""PyTorch's side of the table in docs/kernels.md, one measurement at a time.

The benchmark `reach` starts this program and asks for one sample after another, so that its own kernels and these run in turn on an equally warm GPU. Questions
are lines on stdin, answers are lines of JSON on stdout:

    prepare WORK   builds the work, tries what PyTorch offers for it, keeps the fastest:  {"what": ..., "us": ...}
    sample WORK    device time of one execution, microseconds:                            {"us": ...}
    drop WORK      gives its memory back:                                                 {}

What fails is answered by {"error": ...}. WORK is a key of `WORKS`. Only torch and transformers are needed. `serve.py --check WORK...` prepares and samples once
and prints a line for each.
"""

import gc
import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE = torch.device("cuda")
L2_BYTES = 60 * 2**20
"""Operands rotate over twice this."""


class Replay:
    """`body` captured in a CUDA graph, timed by events around `replays` replays of it."""

    def __init__(self, body, executions, replays=1, before=None):
        self.executions, self.replays, self.before = executions, replays, before
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._reset()
                body()
        torch.cuda.synchronize()
        self._reset()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            body()
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def _reset(self):
        if self.before:
            self.before()

    def sample(self):
        """Microseconds of one execution."""
        self._reset()
        # One unmeasured replay fills the instruction caches and lets the clock rise.
        self.graph.replay()
        self._reset()
        self.start.record()
        for _ in range(self.replays):
            self.graph.replay()
        self.end.record()
        torch.cuda.synchronize()
        return self.start.elapsed_time(self.end) * 1e3 / (self.executions * self.replays)

    def median(self, samples=5):
        return sorted(self.sample() for _ in range(samples))[samples // 2]


def attention(batch, heads, length, head_dim, causal):
    """`scaled_dot_product_attention`, each back end in a graph of its own; heads interleaved as a fused QKV projection leaves them."""
    elements = batch * length * heads * head_dim
    copies = max(2, -(-2 * L2_BYTES // (4 * 2 * elements)))
    rows = [torch.randn(batch, length, 3, heads, head_dim, device=DEVICE, dtype=torch.half) for _ in range(copies)]
    operands = [tuple(row[:, :, part].transpose(1, 2) for part in range(3)) for row in rows]

    def body():
        for query, key, value in operands:
            F.scaled_dot_product_attention(query, key, value, is_causal=causal)

    found = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        try:
            with sdpa_kernel(backend):
                replay = Replay(body, copies)
            found[backend.name.removesuffix("_ATTENTION").lower()] = (replay.median(), replay)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as reason:
            print(f"{backend.name}: {reason}", file=sys.stderr)
            torch.cuda.synchronize()
    times = ", ".join(f"{name} {us:.1f} us" for name, (us, _) in found.items())
    best = min(found, key=lambda name: found[name][0])
    return found[best][1], f"scaled_dot_product_attention, {best} (of {times})"


def bert_base(batch, length):
    """BERT-base's twelve layers by PyTorch's fused encoder layer (its fast path for inference), without the embedding."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, activation="gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).eval().half().to(DEVICE)
    x = torch.randn(batch, length, 768, device=DEVICE, dtype=torch.half)

    def body():
        with torch.inference_mode():
            encoder(x)

    return Replay(body, 1, replays=8), "torch.nn.TransformerEncoder, 12 layers, fast path, CUDA graph"


def llama_1b(batch, context):
    """One greedy decode step of Llama 3.2 1B by transformers with a static cache, compiled with max-autotune; random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        vocab_size=128256, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    with torch.device(DEVICE):
        torch.set_default_dtype(torch.half)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    steps = 16
    cache = StaticCache(config=config, max_cache_len=context + steps)
    ids = torch.randint(0, config.vocab_size, (batch, context), device=DEVICE)
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    token = ids[:, -1:].clone()
    lengths = [layer.cumulative_length for layer in cache.layers]
    position = torch.full((batch, 1), context, device=DEVICE)

    def stand_at_context():
        with torch.inference_mode():
            for length in lengths:
                length.fill_(context)

    def step():
        logits = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    compiled = torch.compile(step, mode="max-autotune-no-cudagraphs")

    def body():
        with torch.inference_mode():
            token.copy_(compiled())

    started = time.monotonic()
    replay = Replay(body, 1, replays=steps, before=stand_at_context)
    seconds = time.monotonic() - started
    return replay, f"transformers LlamaForCausalLM, torch.compile max-autotune (compiled in {seconds:.0f} s), static cache, CUDA graph"


WORKS = {
    "attention-causal-4096": lambda: attention(1, 32, 4096, 128, True),
    "attention-8x128": lambda: attention(8, 12, 128, 64, False),
    "bert-base": lambda: bert_base(8, 128),
    "llama-3.2-1b": lambda: llama_1b(8, 128),
}


def answer(prepared, line):
    """What to reply to one line."""
    verb, work = line.split()
    if verb == "prepare":
        prepared[work], what = WORKS[work]()
        return {"what": f"{what}, torch {torch.__version__}", "us": prepared[work].median()}
    if verb == "sample":
        return {"us": prepared[work].sample()}
    if verb == "drop":
        prepared.pop(work, None)
        gc.collect()
        torch.cuda.empty_cache()
        return {}
    raise ValueError(f"unknown question: {line}")


def serve():
    # Libraries print to stdout as they please: answers keep it to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    prepared = {}
    for line in sys.stdin:
        try:
            reply = answer(prepared, line)
        except Exception as reason:  # One work that fails must not end the others.
            reply = {"error": f"{type(reason).__name__}: {reason}"}
        answers.write(json.dumps(reply) + "\n")


def check(works):
    prepared = {}
    for work in works:
        started = time.monotonic()
        ready = answer(prepared, f"prepare {work}")
        seconds = time.monotonic() - started
        samples = ", ".join(f"{answer(prepared, f'sample {work}')['us']:.1f}" for _ in range(5))
        print(f"{work}: {ready['us']:.1f} us; again {samples}; {ready['what']}; ready in {seconds:.1f} s", flush=True)
        answer(prepared, f"drop {work}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        check(sys.argv[2:] or WORKS)
    else:
        serve()
