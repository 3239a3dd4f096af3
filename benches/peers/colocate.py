"""PyTorch's side of the colocation figures: two or four tenants, each in a process of its own, under MPS with default settings.

A tenant is a Hugging Face model of published sizes with random weights, in FP16, one request captured in a CUDA graph and replayed. Attention is PyTorch's
`scaled_dot_product_attention`, GEMMs are cuBLAS's. Pairs, as in `run-colocation`:

    decode-prefill        llama-3.2-1b, one decode step of 8 sequences with a static cache at 128 tokens, beside the prefill of 8192 tokens of mistral-7b
    decode-encoder        the same beside bert-large, batch 64, 128 tokens
    decode-prefill-load   both pairs again, but requests to decode arrive at random times (Poisson), at --load of the rate that a closed loop reaches alone;
    decode-encoder-load   all other tenants serve a closed loop
    encoders              four bert-base, batch 8, 128 tokens, on PyTorch's fused encoder layers

    python3 colocate.py [--pairs decode-prefill,...] [--load 0.3] [--seconds 6] [--timeout 300] [--no-mps]

prints one JSON object: for each pair and tenant requests per second, p50 and p99 alone and together. Of requests that arrive at a rate latencies count from the arrival; `alone_at_rate` is
the tenant at that rate without a neighbour, its p99 is what p99 beside is set against, and `kept` is the share of requests within 1.5 times that. Requests that nobody has answered when the
measured time is over are `waiting`, and count as misses and as latencies that are at least as long as they have waited where that is more than the objective.

What fails has {"error": ...} in its place, with the end of what the process said. The tenants of a pair load and capture once, one after another; who is measured alone has the others beside it, idle. They have
an MPS daemon of their own with private folders for its pipes and logs, which is told to quit at their end. Only torch and transformers are needed.
"""

import argparse
import json
import os
import random
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
    "decode-prefill-load": ["decode", "prefill"],
    "decode-encoder-load": ["decode", "bert-large"],
    "encoders": ["bert-base"] * 4,
}
AT_A_RATE = "-load"
"""How the names of pairs end whose first tenant's requests arrive at a rate."""
OBJECTIVE = 1.5
"""Times the p99 that such a tenant has alone at its rate, as in `run-colocation`."""
SHOULDER = 0.3
"""Seconds of load before and after what is measured, so that nobody is measured beside an idle neighbour."""
TO_END = 60
"""Seconds that a process may take to end once it is asked nothing more. MPS does not promise anything to the other clients of a server one of whose clients was killed."""
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


def wait_until(at):
    """Sleeping may take some 60 us longer than it was asked for, so the rest is spent looking."""
    while (left := at - time.perf_counter()) > 0:
        if left > 2e-3:
            time.sleep(left - 1e-3)


def measured(request, seconds, rate=None, slo_ms=None):
    """Serves for `seconds` and the shoulders, one request after another: as soon as the last is answered or, at a rate, in the order of arrival."""
    gaps = random.Random(0)
    gap = (lambda: gaps.expovariate(rate)) if rate else (lambda: 0)
    now = time.perf_counter()
    begin = now + SHOULDER
    end = begin + seconds
    latencies, answered, waits, arrival = [], 0, [], now + gap()
    while now < end + SHOULDER and arrival < end + SHOULDER:
        if rate:
            wait_until(arrival)
        request()
        now = time.perf_counter()
        if begin <= now < end:
            answered += 1
            latencies.append((now - arrival) * 1e3)
        elif rate and now >= end > arrival:
            waits.append((end - arrival) * 1e3)
        arrival = arrival + gap() if rate else now
    while rate and arrival < end:
        waits.append((end - arrival) * 1e3)
        arrival += gap()
    result = {"throughput": answered / seconds, "requests": answered}
    if slo_ms:
        kept = sum(latency <= slo_ms for latency in latencies)
        latencies += [wait for wait in waits if wait > slo_ms]
        result.update(slo_ms=slo_ms, kept=kept / len(latencies) if latencies else None)
    if rate:
        result.update(rate=rate, waiting=len(waits))
    latencies.sort()
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        result[name] = latencies[min(int(share * len(latencies)), len(latencies) - 1)] if latencies else None
    return result


def serve(tenant):
    """Says `ready`; then answers each line of JSON, which says what to measure, with another, to the end of its input."""
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

        def replay():
            graph.replay()
            torch.cuda.synchronize()

        # The launch's own warm-up.
        for _ in range(3):
            replay()
        print("ready", file=answers, flush=True)
        for job in sys.stdin:
            result = measured(replay, **json.loads(job))
            result.update(torch=torch.__version__, gpu=torch.cuda.get_device_name())
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


class Tenant:
    """A tenant's process."""

    def __init__(self, name, environment):
        self.name = name
        self.messages = tempfile.TemporaryFile("a+", errors="replace")
        command = [sys.executable, os.path.abspath(__file__), "--serve", name]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=self.messages)

    def line(self, seconds):
        """The next line of its answers."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(max(seconds, 0)):
                raise TimeoutError(f"{self.name} did not answer within {seconds:.0f} s{self.said()}")
        text = self.process.stdout.readline()
        if not text:
            try:
                status = f"with status {self.process.wait(timeout=TO_END)}"
            except subprocess.TimeoutExpired:
                status = "its answers, and not itself"
            raise RuntimeError(f"{self.name} ended {status} without an answer{self.said()}")
        return text.strip()

    def said(self, most=1500):
        """The end of its messages, for an error."""
        self.messages.seek(0)
        text = self.messages.read().strip()
        return f"; it said: {text[-most:]}" if text else " and without a message"

    def ask(self, job):
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            # What it died of is told by whoever reads its answer.
            pass

    def end(self):
        """It ends by itself, whether or not it was asked anything; only one that hangs is killed."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        for stop in (None, self.process.terminate, self.process.kill):
            try:
                if stop:
                    stop()
                self.process.wait(timeout=TO_END if stop is None else 10)
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.stdout.close()
        self.messages.seek(0)
        shutil.copyfileobj(self.messages, sys.stderr)
        self.messages.close()


class Tenants:
    """Processes that have loaded and captured, under one daemon. Who is not asked anything is idle."""

    def __init__(self, names, options):
        self.names, self.timeout = names, options.timeout
        self.running, self.daemon = [], None if options.no_mps else Daemon()
        environment = dict(self.daemon.environment if self.daemon else os.environ)
        # Whatever was set for others, such as 32 connections for each process, of which MPS has few.
        for variable in ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_CLIENT_PRIORITY", "CUDA_DEVICE_MAX_CONNECTIONS"):
            environment.pop(variable, None)
        # The daemon sees the GPUs that this names, and its clients number those from 0.
        if self.daemon and environment.get("CUDA_VISIBLE_DEVICES"):
            environment["CUDA_VISIBLE_DEVICES"] = "0"
        try:
            for name in names:
                self.running.append(Tenant(name, environment))
                answer = self.running[-1].line(self.timeout)
                if answer != "ready":
                    raise RuntimeError(f"{name} answered {answer!r}")
            if self.daemon and not self.daemon.serves():
                raise RuntimeError("the tenants did not connect to the MPS daemon")
        except BaseException:
            self.end()
            raise

    def measure(self, jobs):
        """What the first tenants answer, each to a job of its own, while the others are idle."""
        return self.answers(list(zip(self.running, jobs)))

    def alone(self, name, job):
        return self.answers([(self.running[self.names.index(name)], job)])[0]

    def answers(self, asked):
        for tenant, job in asked:
            tenant.ask(job)
        return [json.loads(tenant.line(job["seconds"] + self.timeout)) for tenant, job in asked]

    def end(self):
        for tenant in self.running:
            tenant.end()
        if self.daemon:
            self.daemon.quit()


def compared(tenants, alone, seconds, load=None):
    """What the tenants do together beside what each does alone; with a `load`, the first one's requests arrive at that part of the rate that it reaches alone."""
    closed = {"seconds": seconds}
    jobs, at_rate = [closed] * len(tenants.names), None
    if load:
        first = tenants.names[0]
        rate = load * alone[first]["throughput"]
        if not rate:
            raise RuntimeError(f"{first} finished no request alone, so there is no rate to load it at; measure longer with --seconds")
        at_rate = tenants.alone(first, {**closed, "rate": rate})
        slo_ms = OBJECTIVE * at_rate["p99_ms"] if at_rate["p99_ms"] else None
        jobs[0] = {**closed, "rate": rate, "slo_ms": slo_ms}
    results = []
    for number, (name, together) in enumerate(zip(tenants.names, tenants.measure(jobs))):
        result = {"tenant": name, "alone": alone[name], "beside": together}
        undisturbed = alone[name]
        if at_rate and number == 0:
            undisturbed = at_rate
            result.update(load=load, alone_at_rate=at_rate)
        if alone[name]["throughput"]:
            result["throughput_ratio"] = together["throughput"] / alone[name]["throughput"]
        if together["p99_ms"] and undisturbed["p99_ms"]:
            result["p99_ratio"] = together["p99_ms"] / undisturbed["p99_ms"]
        results.append(result)
    return {"tenants": results, "total_normalised_throughput": sum(result.get("throughput_ratio", 0) for result in results)}


FAILURES = (OSError, RuntimeError, ValueError, subprocess.SubprocessError)


def pairs_of(names, pairs, options):
    """The results of all `pairs` whose tenants are `names`, or why there are none."""
    results = {}
    try:
        tenants = Tenants(names, options)
    except FAILURES as error:
        return {pair: {"error": str(error)} for pair in pairs}
    try:
        alone = {name: tenants.alone(name, {"seconds": options.seconds}) for name in dict.fromkeys(names)}
        for pair in pairs:
            results[pair] = compared(tenants, alone, options.seconds, options.load if pair.endswith(AT_A_RATE) else None)
    except FAILURES as error:
        # Whoever failed is not there for the other pairs either.
        results.update({pair: {"error": str(error)} for pair in pairs if pair not in results})
    finally:
        tenants.end()
    return results


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(description="PyTorch's side of the colocation figures; prints one JSON object.")
    parser.add_argument("--pairs", default=",".join(PAIRS), help="some of " + ",".join(PAIRS))
    parser.add_argument("--load", type=float, default=0.3, help=f"of the first tenant of pairs whose names end in {AT_A_RATE}")
    parser.add_argument("--seconds", type=float, default=6, help="measured for each phase")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that each process may take to load and capture")
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
    if not 0 < options.load < 1:
        parser.error("--load is a part of what the tenant does alone, such as 0.3")
    # Otherwise a daemon would be left behind.
    for interrupt in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(interrupt, interrupted)
    results = {"sharing": "time-slice" if options.no_mps else "mps-default", "seconds": options.seconds, "pairs": {}}
    for names in dict.fromkeys(tuple(PAIRS[pair]) for pair in pairs):
        results["pairs"].update(pairs_of(names, [pair for pair in pairs if tuple(PAIRS[pair]) == names], options))
    print(json.dumps(results))
    return 1 if any("error" in result for result in results["pairs"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
