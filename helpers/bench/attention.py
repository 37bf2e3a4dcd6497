"""The suites of attention: each kernel of the course, forward and backward, beside PyTorch's in the same process.

All are replayed as CUDA graphs: what the host takes for a launch is measured by itself, in helpers/bench/host.py.
"""
import functools
import statistics
import subprocess
import time

from helpers import reference
from helpers.bench import clock, kernels
from helpers.bench.run import suite
from helpers.device import DEVICE

import torch

TOKENS, HIDDEN = 16384, 2048                             # in all: shorter sequences mean larger batches
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]
ONE_HEAD = [*LENGTHS, 32768]
FLEX_LENGTHS = [4096, 16384]                             # torch.compile takes some ten seconds for each
WIDE_LENGTHS = [4096, 16384]                             # for D = 256
BACKWARD_BOUND = 5e-3                                    # of the relative error of dq, dk and dv in float16
LAST = 256                                       # queries that are compared where a float64 matrix of all would not fit


def random_inputs(*shape, dtype=torch.float16):
    """q, k and v of one shape, normally distributed."""
    return torch.randn(3, *shape, device=DEVICE).to(dtype)


def compared(fns: dict, shape: tuple, is_causal=False, dtype=torch.float16, last=None, times=None, more=None):
    """A job for each of fns, {name: fn(q, k, v)}, on random inputs of one shape [B, heads, N, D], forward.

    The last head (its `last` queries only, if given) is compared with float64 before times(call) takes the times, of a
    CUDA graph's replays; the rows hold the error and TFLOP/s, and what more(fn, q, k, v) adds.
    """
    (B, heads, N, D), inputs = shape, random_inputs(*shape, dtype=dtype)
    work = 4 * B * heads * N * N * D / (2 if is_causal else 1)
    want = functools.cache(functools.partial(reference.last_head, *inputs, is_causal=is_causal, last=last))
    for name, fn in fns.items():
        kind, bound = str(dtype).removeprefix("torch."), kernels.BOUNDS[dtype]
        if "fp8" in name:
            kind, bound = "float8_e4m3fn", kernels.FP8_BOUND
        facts = dict(name=name, **kernels.version(name), dtype=kind, batch=B, heads=heads, N=N, D=D, is_causal=is_causal)
        yield facts, functools.partial(kernels.tolerant, name, _forward, name, fn, inputs, want, bound, last, work,
                                       times or clock.timing, more)


def _forward(name, fn, inputs, want, bound, last, work, times, more):
    call, facts = clock.replayed(lambda: functools.partial(fn, *inputs))
    error = clock.verified(name, call()[-1, -1, -(last or 0):], want(), bound, f"N = {inputs[0].shape[2]}")
    taken = times(call) | facts
    added = more(fn, *inputs) if more else {}
    return dict(relative_error=error, tflops=work / taken["median_ms"] / 1e9, **taken, **added)


def _over_lengths(fns, lengths=LENGTHS, wide=(), **options):
    """Jobs of fns(D, N, is_causal) for TOKENS tokens in all and hidden size HIDDEN, without and with a causal mask."""
    for D, N in _sizes(lengths, wide):
        for is_causal in (False, True):
            yield from compared(fns(D, N, is_causal), (TOKENS // N, HIDDEN // D, N, D), is_causal, **options)


def _sizes(lengths, wide):
    """(D, N): lengths for D = 64 and 128, wide for 256."""
    return [(D, N) for D, each in ((64, lengths), (128, lengths), (256, wide)) for N in each]


@suite(seconds=35)
def flash_attention_v1():
    """The first kernel against standard attention and PyTorch's fused ones: one head, forward, no mask."""
    fns = {"v1": kernels.v1(), **kernels.peers(False)}
    for D in (64, 128, 256):
        for N in ONE_HEAD:
            yield from compared(fns, (1, 1, N, D), last=LAST)


@suite(seconds=175)
def forward():
    """v2, v3 and v4, in float16 and in FP8, against PyTorch's: 16384 tokens in all, hidden size 2048, forward."""
    yield from _over_lengths(lambda D, N, is_causal: {
        **versions(is_causal=is_causal), **eight_bits(D, is_causal=is_causal), **kernels.peers(is_causal),
        kernels.FA4: kernels.fa4(is_causal), **({"FlexAttention": kernels.flex(N, is_causal)} if N in FLEX_LENGTHS else {})},
        wide=WIDE_LENGTHS)


def versions(**options):
    """{name: fn(q, k, v)} of the course's kernels for any head dimension, heads and mask."""
    return {"v2": kernels.v2(**options), "v3": kernels.v3(**options), "v4": kernels.v4(**options)}


def eight_bits(D, **options):
    """{name: fn(q, k, v)} of those that compute in FP8, where they have been tuned."""
    made = {"v3 fp8": kernels.v3, "v4 fp8": kernels.v4} if D in (64, 128) else {}
    return {name: make(precision="fp8", **options) for name, make in made.items()}


@suite(seconds=62)
def ladder():
    """The steps from v2 to v4, one at a time: one sequence of 16384 tokens, hidden size 2048, forward."""
    yield from _over_lengths(kernels.steps, [TOKENS])


@suite(seconds=25)
def after_a_rest():
    """v3, v4 and PyTorch's, D = 128, no mask, N = 16384: 20 calls after 1.5 s of rest, 20 after 2 s of the same."""
    fns = {"v3": kernels.v3(), "v4": kernels.v4()} | {
        name: kernels.sdpa(kernels.BACKENDS[name], False) for name in ("SDPA flash", "SDPA cudnn")}
    work = 4 * HIDDEN * TOKENS**2
    yield from compared(fns, (1, HIDDEN // 128, TOKENS, 128), times=functools.partial(_busy, work))


def _busy(work, fn):
    """fn's times under load, its time and TFLOP/s after a rest, and the clock and the power under load."""
    time.sleep(1.5)
    scratch = clock.new_scratch()
    rested = statistics.median(clock.call_times(fn, 20, scratch))
    clock.call_times(fn, int(2000 / rested), scratch)
    taken = clock.quartiles(clock.call_times(fn, 20, scratch))
    for _ in range(int(1000 / taken["median_ms"])):      # a second of work in the queue, while nvidia-smi looks
        fn()
    seen = subprocess.run(["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits"],
                          capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    torch.cuda.synchronize()
    return dict(rested_ms=rested, rested_tflops=work / rested / 1e9, **taken, calls=20, clock_mhz=int(seen[0]),
                watts=float(seen[1]))


@suite(seconds=85)
def backward():
    """The backward pass by itself against PyTorch's: 16384 tokens in all, hidden size 2048, gradients of q, k and v."""
    def jobs(N, D, is_causal, inputs, do):
        fns = {"ours": kernels.flash(is_causal=is_causal), "v4": kernels.v4(is_causal=is_causal),
               **kernels.peers(is_causal), kernels.FA4: kernels.fa4(is_causal)}
        return {name: functools.partial(by_autograd, fn, inputs, do) for name, fn in fns.items()}
    yield from _gradients(jobs, LENGTHS, WIDE_LENGTHS)


@suite(seconds=20)
def backward_ladder():
    """The backward kernels by themselves, from two walks to v4's, and peers: one sequence, 16384 tokens, hidden 2048."""
    def jobs(N, D, is_causal, inputs, do):
        saved = functools.cache(lambda: kernels.forward_for_backward(*inputs, is_causal))
        steps = {name: lambda fn=fn: functools.partial(fn, *inputs, *saved(), do)
                 for name, fn in kernels.backward_steps(is_causal).items()}
        name = "SDPA cudnn"
        peers = {name: kernels.sdpa(kernels.BACKENDS[name], is_causal), kernels.FA4: kernels.fa4(is_causal)}
        return steps | {name: functools.partial(by_autograd, fn, inputs, do) for name, fn in peers.items()}
    yield from _gradients(jobs, [TOKENS])


def _gradients(jobs, lengths, wide=()):
    """Rows for each {name: make} that jobs(N, D, is_causal, inputs, do) returns, where make()() is dq, dk, dv."""
    for D, N in _sizes(lengths, wide):
        B, heads = TOKENS // N, HIDDEN // D
        *inputs, do = torch.randn(4, B, heads, N, D, device=DEVICE).to(torch.float16)
        for is_causal in (False, True):
            want = functools.cache(functools.partial(_exact_gradients, *inputs, do, is_causal))
            for name, make in jobs(N, D, is_causal, inputs, do).items():
                facts = dict(name=name, **kernels.version(name), dtype="float16", batch=B, heads=heads, N=N, D=D,
                             is_causal=is_causal)
                yield facts, functools.partial(kernels.tolerant, name, _backward, name, make, do, want, is_causal)


def by_autograd(fn, inputs, do):
    """A call that takes the gradients of fn, which was called once."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    o = fn(*leaves)
    return lambda: torch.autograd.grad(o, leaves, do, retain_graph=True)


def _backward(name, make, do, want, is_causal):
    B, heads, N, D = do.shape
    gradients, facts = clock.replayed(make)
    work = 2.5 * 4 * B * heads * N * N * D / (2 if is_causal else 1)     # five products, where forward has two
    error = max(clock.verified(f"{x} of {name}", dx[-1, -1], exact, BACKWARD_BOUND, f"N = {N}")
                for x, dx, exact in zip(("dq", "dk", "dv"), gradients(), want()))
    return dict(relative_error=error, **clock.rate(work, gradients) | facts)


def _exact_gradients(q, k, v, do, is_causal):
    """dq, dk and dv of the last head in float64, by autograd through standard attention."""
    head = [x[-1, -1].detach().double().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(reference.torch_attention(*head, is_causal=is_causal), head, do[-1, -1].double())
