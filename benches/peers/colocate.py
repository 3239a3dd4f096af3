"""PyTorch's side of the colocation figures: two or four tenants, each in a process of its own, under MPS with default settings.

A tenant is a Hugging Face model of published sizes with random weights, in FP16, one request captured in a CUDA graph and replayed in a closed loop. Attention is PyTorch's
`scaled_dot_product_attention`, GEMMs are cuBLAS's. Pairs, as in `run-colocation`:

    decode-prefill   llama-3.2-1b, one decode step of 8 sequences with a static cache at 128 tokens, beside the prefill of 8192 tokens of mistral-7b
    decode-encoder   the same beside bert-large, batch 64, 128 tokens
    encoders         four bert-base, batch 8, 128 tokens, on PyTorch's fused encoder layers

    python3 colocate.py [--pairs decode-prefill,...] [--seconds 6] [--timeout 300] [--no-mps]

prints one JSON object: for each pair and tenant requests per second, p50 and p99 alone and together. What fails has {"error": ...} in its place. The MPS daemon has private folders for its
pipes and logs, and is told to quit at the end. Only torch and transformers are needed.
"""

import argparse
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time

PAIRS = {
    "decode-prefill": ["decode", "prefill"],
    "decode-encoder": ["decode", "bert-large"],
    "encoders": ["bert-base"] * 4,
}
SHOULDER = 0.3
"""Seconds of load before and after what is measured, so that nobody is measured beside an idle neighbour."""
CONTROL = "nvidia-cuda-mps-control"


# A tenant's process.


def decode(torch):
    """One step of 8 sequences whose caches hold 128 tokens; each replay rewrites the same position, so that all do the same work."""
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    batch, context = 8, 128
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = on_device(torch, config, LlamaForCausalLM)
    cache = static_cache(torch, StaticCache, config, batch, context + 1)
    model(torch.ones(batch, context, dtype=torch.long, device="cuda"), past_key_values=cache, use_cache=True)
    token = torch.ones(batch, 1, dtype=torch.long, device="cuda")
    position = torch.tensor([context], device="cuda")
    options = {"past_key_values": cache, "use_cache": True, "position_ids": position.expand(batch, 1)}
    # Other versions of transformers keep count of the position in the cache itself.
    counted = [layer.cumulative_length for layer in getattr(cache, "layers", []) if torch.is_tensor(getattr(layer, "cumulative_length", None))]

    def step():
        for count in counted:
            count.fill_(context)
        try:
            logits = model(token, cache_position=position, **options).logits
        except TypeError:
            logits = model(token, **options).logits
        return logits[:, -1].argmax(-1)

    return step


def prefill(torch):
    """8192 tokens at once, to the first token drawn."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=32768,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        sliding_window=None,
        attn_implementation="sdpa",
    )
    model = on_device(torch, config, MistralForCausalLM)
    ids = torch.ones(1, 8192, dtype=torch.long, device="cuda")

    def request():
        return model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)

    return request


def encoder(torch, layers, hidden, heads, batch):
    """BERT of this size as PyTorch's own encoder, whose fused fast path is taken in inference: token embeddings, then the layers."""
    layer = torch.nn.TransformerEncoderLayer(hidden, heads, 4 * hidden, activation="gelu", batch_first=True)
    model = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).half().cuda().eval()
    words = torch.nn.Embedding(30522, hidden).half().cuda()
    ids = torch.ones(batch, 128, dtype=torch.long, device="cuda")
    return lambda: model(words(ids))


TENANTS = {
    "decode": decode,
    "prefill": prefill,
    "bert-large": lambda torch: encoder(torch, 24, 1024, 16, 64),
    "bert-base": lambda torch: encoder(torch, 12, 768, 12, 8),
}


def on_device(torch, config, kind):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.half)
    try:
        with torch.device("cuda"):
            return kind(config).half().eval()
    finally:
        torch.set_default_dtype(before)


def static_cache(torch, kind, config, batch, length):
    try:
        return kind(config=config, max_cache_len=length)
    except TypeError:
        return kind(config=config, max_batch_size=batch, max_cache_len=length, device="cuda", dtype=torch.half)


def serve(tenant):
    """Says `ready`, waits for a line with the seconds to measure, answers with one line of JSON."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch

    with torch.inference_mode():
        request = TENANTS[tenant](torch)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                request()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            request()
        # The launch's own warm-up.
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        print("ready", file=answers, flush=True)
        seconds = float(sys.stdin.readline())
        latencies = []
        begin = time.perf_counter() + SHOULDER
        end = begin + seconds
        now = time.perf_counter()
        while now < end + SHOULDER:
            graph.replay()
            torch.cuda.synchronize()
            start, now = now, time.perf_counter()
            if begin <= now < end:
                latencies.append((now - start) * 1e3)
    latencies.sort()
    result = {"throughput": len(latencies) / seconds, "requests": len(latencies)}
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        result[name] = latencies[min(int(share * len(latencies)), len(latencies) - 1)] if latencies else None
    result["torch"] = torch.__version__
    result["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(result), file=answers, flush=True)


# The coordinator.


class Daemon:
    """An MPS daemon of our own; whatever daemon the machine runs is left alone."""

    def __init__(self):
        if shutil.which(CONTROL) is None:
            raise RuntimeError(f"{CONTROL} is not on the PATH; --no-mps measures time slicing instead")
        # Short: the path of the daemon's socket must fit in 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="mps")
        self.environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": self.folder, "CUDA_MPS_LOG_DIRECTORY": self.folder}
        subprocess.run([CONTROL, "-d"], env=self.environment, check=True, timeout=30, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def serves(self):
        asked = subprocess.run([CONTROL], env=self.environment, input="get_server_list\n", text=True, capture_output=True, timeout=30)
        return bool(asked.stdout.strip())

    def quit(self):
        try:
            subprocess.run([CONTROL], env=self.environment, input="quit\n", text=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"the MPS daemon in {self.folder} was not quit: {error}", file=sys.stderr)
            return
        shutil.rmtree(self.folder, ignore_errors=True)


def line(process, until, what):
    """The next line of a process, or an error at the time `until`."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(max(until - time.monotonic(), 0)):
            raise TimeoutError(f"{what} took too long")
    text = process.stdout.readline()
    if not text:
        raise RuntimeError(f"{what} ended without an answer; its messages stand above")
    return text.strip()


def measure(tenants, seconds, timeout, daemon):
    """Runs the tenants side by side, one process each."""
    environment = dict(daemon.environment if daemon else os.environ)
    for variable in ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_CLIENT_PRIORITY"):
        environment.pop(variable, None)
    # The daemon sees the GPUs that this names, and its clients number those from 0.
    if daemon and environment.get("CUDA_VISIBLE_DEVICES"):
        environment["CUDA_VISIBLE_DEVICES"] = "0"
    until = time.monotonic() + timeout
    processes = []
    try:
        for tenant in tenants:
            command = [sys.executable, os.path.abspath(__file__), "--serve", tenant]
            processes.append(subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for process, tenant in zip(processes, tenants):
            answer = line(process, until, tenant)
            if answer != "ready":
                raise RuntimeError(f"{tenant} answered {answer!r}")
        if daemon and not daemon.serves():
            raise RuntimeError("the tenants did not connect to the MPS daemon")
        for process in processes:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        until = time.monotonic() + seconds + timeout
        return [json.loads(line(process, until, tenant)) for process, tenant in zip(processes, tenants)]
    finally:
        for process in processes:
            if process.poll() is None:
                # One that has answered is about to end by itself.
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def pair(tenants, seconds, timeout, daemon):
    alone = {tenant: measure([tenant], seconds, timeout, daemon)[0] for tenant in dict.fromkeys(tenants)}
    beside = measure(tenants, seconds, timeout, daemon)
    results = []
    for tenant, together in zip(tenants, beside):
        ratios = {"throughput_ratio": together["throughput"] / alone[tenant]["throughput"]} if alone[tenant]["throughput"] else {}
        if together["p99_ms"] and alone[tenant]["p99_ms"]:
            ratios["p99_ratio"] = together["p99_ms"] / alone[tenant]["p99_ms"]
        results.append({"tenant": tenant, "alone": alone[tenant], "beside": together, **ratios})
    return {"tenants": results, "total_normalised_throughput": sum(result.get("throughput_ratio", 0) for result in results)}


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(description="PyTorch's side of the colocation figures; prints one JSON object.")
    parser.add_argument("--pairs", default=",".join(PAIRS), help="some of " + ",".join(PAIRS))
    parser.add_argument("--seconds", type=float, default=6, help="measured for each phase")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that the processes of a phase may take to load and capture")
    parser.add_argument("--no-mps", action="store_true", help="time slicing in place of MPS")
    parser.add_argument("--serve", choices=TENANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    pairs = options.pairs.split(",")
    unknown = [name for name in pairs if name not in PAIRS]
    if unknown:
        parser.error(f"no such pair: {', '.join(unknown)}; there are {', '.join(PAIRS)}")
    # Otherwise the daemon would be left behind.
    for interrupt in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(interrupt, interrupted)
    results = {"sharing": "time-slice" if options.no_mps else "mps-default", "seconds": options.seconds, "pairs": {}}
    daemon = None
    try:
        daemon = None if options.no_mps else Daemon()
        for name in pairs:
            try:
                results["pairs"][name] = pair(PAIRS[name], options.seconds, options.timeout, daemon)
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                results["pairs"][name] = {"error": str(error)}
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        results["error"] = str(error)
    finally:
        if daemon:
            daemon.quit()
    print(json.dumps(results))
    failed = "error" in results or any("error" in result for result in results["pairs"].values())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
