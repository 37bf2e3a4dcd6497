"""The suite of lesson 10, part of helpers/bench.py: the backward pass by itself, beside PyTorch's."""
import functools

from helpers import bench_attention, lessons, reference
from helpers.bench_attention import peers, tolerant
from helpers.bench_run import row
from helpers.device import DEVICE
from helpers.measure import timing, verified

import torch

LENGTHS = [512, 2048, 4096, 8192, 16384]
BOUND = 5e-3                                             # of the relative error of dq, dk and dv in float16


def backward():
    """Lesson 10's backward pass against PyTorch's: 16384 tokens in all, hidden size 2048, gradients of q, k and v."""
    ours = lessons.backward_triton.flash_attention
    for D in (64, 128):
        for N in LENGTHS:
            B, heads = bench_attention.TOKENS // N, bench_attention.HIDDEN // D
            *inputs, do = torch.randn(4, B, heads, N, D, device=DEVICE).to(torch.float16)
            inputs = [x.detach().requires_grad_() for x in inputs]
            for is_causal in (False, True):
                want = functools.cache(lambda: _exact(*inputs, do, is_causal))
                work = 2.5 * 4 * B * heads * N * N * D / (2 if is_causal else 1)     # five products, where forward has two
                for name, fn in {"ours": lambda q, k, v: ours(q, k, v, is_causal=is_causal), **peers(is_causal)}.items():
                    facts = dict(name=name, dtype="float16", batch=B, heads=heads, N=N, D=D, is_causal=is_causal)
                    yield row(facts, lambda: tolerant(name, lambda: _measure(name, fn, inputs, do, want, work, N)))


def _measure(name, fn, inputs, do, want, work, N):
    o = fn(*inputs)
    gradients = lambda: torch.autograd.grad(o, inputs, do, retain_graph=True)
    error = max(verified(f"{x} of {name}", dx[-1, -1], exact, BOUND, f"N = {N}")
                for x, dx, exact in zip(("dq", "dk", "dv"), gradients(), want()))
    times = timing(gradients)
    return dict(relative_error=error, tflops=work / times["median_ms"] / 1e9, **times)


def _exact(q, k, v, do, is_causal):
    """dq, dk and dv of the last head in float64, by autograd through standard attention."""
    head = [x[-1, -1].detach().double().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(reference.torch_attention(*head, is_causal=is_causal), head, do[-1, -1].double())
