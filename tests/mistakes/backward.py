"""Right and wrong backward kernels: dK and dV of grouped heads, and dQ."""
import torch

from helpers import check  # (before triton: helpers.device says why)
from mistakes.ways import beyond_the_end, in_place, mistaken, when, without_the_rest

import triton
import triton.language as tl


@triton.jit
def dkdv_kernel(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, group, N_q, N_k, scale,
                D: tl.constexpr, BLOCK: tl.constexpr, HOW: tl.constexpr):
    """HOW: "key heads" with a program for each; or, a program for each query head, "stores", "adds" or "atomics"."""
    program = tl.program_id(1)
    kv = program if HOW == "key heads" else program // group
    keys, n, d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK), tl.arange(0, D)
    place = (kv * N_k + keys[:, None]) * D + d[None, :]
    k_j = tl.load(k_ptr + place, mask=keys[:, None] < N_k, other=0.0)
    v_j = tl.load(v_ptr + place, mask=keys[:, None] < N_k, other=0.0)
    dk_j, dv_j = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK, D], tl.float32)
    heads = group if HOW == "key heads" else 1
    for h in range(program * heads, (program + 1) * heads):
        for i in range(0, N_q, BLOCK):
            rows = i + n
            at = (h * N_q + rows[:, None]) * D + d[None, :]
            q_i = tl.load(q_ptr + at, mask=rows[:, None] < N_q, other=0.0)
            do_i = tl.load(do_ptr + at, mask=rows[:, None] < N_q, other=0.0)
            lse_i = tl.load(lse_ptr + h * N_q + rows, mask=rows < N_q, other=float("inf"))
            delta_i = tl.load(delta_ptr + h * N_q + rows, mask=rows < N_q, other=0.0)
            p = tl.exp(scale * tl.dot(q_i, k_j.T, input_precision="ieee") - lse_i[:, None])
            dv_j = tl.dot(p.T, do_i, dv_j, input_precision="ieee")
            ds = p * (tl.dot(do_i, v_j.T, input_precision="ieee") - delta_i[:, None])
            dk_j = tl.dot(ds.T, q_i, dk_j, input_precision="ieee")
    inside = keys[:, None] < N_k
    if HOW == "atomics":
        tl.atomic_add(dk_ptr + place, scale * dk_j, mask=inside)
        tl.atomic_add(dv_ptr + place, dv_j, mask=inside)
    elif HOW == "adds":
        tl.store(dk_ptr + place, scale * dk_j + tl.load(dk_ptr + place, mask=inside, other=0.0), mask=inside)
        tl.store(dv_ptr + place, dv_j + tl.load(dv_ptr + place, mask=inside, other=0.0), mask=inside)
    else:
        tl.store(dk_ptr + place, scale * dk_j, mask=inside)
        tl.store(dv_ptr + place, dv_j, mask=inside)


def grouped_dkdv(q, k, v, do, lse, delta, how="key heads", group=None):
    (B, heads, N_q, D), (kv_heads, N_k) = q.shape, k.shape[1:3]
    dk, dv = (torch.zeros_like(x) if how in ("adds", "atomics") else torch.empty_like(x) for x in (k, v))
    grid = (triton.cdiv(N_k, 32), B * (kv_heads if how == "key heads" else heads))
    dkdv_kernel[grid](q, k, v, do, lse, delta, dk, dv, group or heads // kv_heads, N_q, N_k, D**-0.5, D, 32, how)
    return dk, dv


def expanded(q, k, v, *rest):
    """A key head for each query head, and the sum in PyTorch."""
    group = q.shape[1] // k.shape[1]
    dk, dv = grouped_dkdv(q, *(x.repeat_interleave(group, 1) for x in (k, v)), *rest)
    return [x.unflatten(1, (-1, group)).sum(2) for x in (dk, dv)]


def how(kind):
    return lambda *inputs: grouped_dkdv(*inputs, how=kind)


def where(applies, spoil, which=1):
    """dk (0) or dv (1) changed by spoil(x, *inputs) for B, heads, kv_heads, N_q, N_k to which that applies."""
    def both(out, *inputs):
        return tuple(spoil(x, *inputs) if i == which else x for i, x in enumerate(out))
    return when(grouped_dkdv, lambda q, k, *_: applies(*q.shape[:2], k.shape[1], q.shape[2], k.shape[2]), both)


def without_a_query(q, k, v, do, lse, delta):
    do, delta = do.clone(), delta.clone()
    do[:, :, -1] = delta[:, :, -1] = 0
    return grouped_dkdv(q, k, v, do, lse, delta)


def first_everywhere(dim):
    return lambda x, *_: x.narrow(dim, 0, 1).expand(x.shape).clone()


def zero_behind_32(x, *_):
    x[:, :, 32:] = 0
    return x


LENGTH = "a length that is no multiple of the block"
GROUPED = dict(right=[grouped_dkdv], wrong={
    "one head": [where(lambda *_: True, lambda x, *_: 1.1 * x, which=0), lambda *a: grouped_dkdv(*a)[::-1]],
    "several batches": where(lambda B, *_: B > 1, first_everywhere(0)),
    "several heads": where(lambda B, heads, *_: heads > 1, first_everywhere(1)),
    "grouped heads": [how("stores"), where(lambda B, heads, kv_heads, *_: heads > kv_heads, lambda x, *_: x / 2)],
    "more keys than queries": where(lambda B, heads, kv_heads, N_q, N_k: N_k > N_q, zero_behind_32),
    "more queries than keys": without_a_query,
    LENGTH: where(lambda B, heads, kv_heads, N_q, N_k: N_k % 32,
                  lambda x, *_: x * (torch.arange(x.shape[2], device=x.device) < 32)[:, None]),
    "batches, heads and lengths together": where(lambda B, heads, kv_heads, *_: B > 1 and heads > 1,
                                                 first_everywhere(0)),
    "every number is written by one program": [how("stores"), how("adds"), how("atomics"), expanded],
    "every output element is written": where(lambda B, heads, kv_heads, N_q, N_k: N_k > 16, without_the_rest),
    "nothing is written outside of the tensors": [where(lambda *_: True, beyond_the_end),
                                                  where(lambda *_: True, beyond_the_end, which=0)],
    "the inputs are left as they were": in_place(grouped_dkdv)})


# ---------------------------------------------------------------- the gradient of the queries

@triton.jit
def dq_kernel(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, N_q, N_k, scale,
              D: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr, TILES: tl.constexpr,
              STORE: tl.constexpr, SAFE: tl.constexpr):
    n, d = tl.arange(0, BLOCK), tl.arange(0, D)
    rows = tl.program_id(0) * BLOCK + n
    at = rows[:, None] * D + d[None, :]
    q_i = tl.load(q_ptr + at, mask=rows[:, None] < N_q, other=0.0)
    do_i = tl.load(do_ptr + at, mask=rows[:, None] < N_q, other=0.0)
    lse_i = tl.load(lse_ptr + rows, mask=rows < N_q, other=0.0)
    delta_i = tl.load(delta_ptr + rows, mask=rows < N_q, other=0.0)
    dq_i = tl.zeros([BLOCK, D], tl.float32)
    for j in range(0, tl.minimum(N_k, TILES * BLOCK), BLOCK):
        keys = j + n
        k_j = tl.load(k_ptr + keys[:, None] * D + d[None, :], mask=keys[:, None] < N_k, other=0.0)
        v_j = tl.load(v_ptr + keys[:, None] * D + d[None, :], mask=keys[:, None] < N_k, other=0.0)
        s = scale * tl.dot(q_i, k_j.T, input_precision="ieee")
        if MASK:
            s = tl.where(keys[None, :] < N_k, s, -float("inf"))
        p = tl.exp(s - lse_i[:, None]) if SAFE else tl.exp(s) / tl.exp(lse_i)[:, None]
        ds = p * (tl.dot(do_i, v_j.T, input_precision="ieee") - delta_i[:, None])
        dq_i = tl.dot(ds, k_j, dq_i, input_precision="ieee")
    tl.store(dq_ptr + at, scale * dq_i, mask=rows[:, None] < N_q + STORE)


def attention_dq(q, k, v, do, lse, delta, scale, mask=True, tiles=999, store=0, safe=True, grid=triton.cdiv):
    dq, (N_q, D) = torch.empty_like(q), q.shape
    dq_kernel[(grid(N_q, 32),)](q, k, v, do, lse, delta, dq, N_q, len(k), scale, D, 32, mask, tiles, store, safe)
    return dq


dq_by = mistaken(attention_dq)


def as_many_keys_as_queries(q, k, v, *rest):
    return attention_dq(q, *(torch.cat([x, torch.zeros_like(q)])[:len(q)] for x in (k, v)), *rest)


DQ = dict(right=[attention_dq], wrong={
    "one tile": [lambda *a: attention_dq(*a) * 1.1,
                 lambda q, k, v, do, lse, delta, scale: attention_dq(q, k, v, do, lse, 0 * delta, scale)],
    "several tiles of keys": [dq_by(tiles=1), dq_by(tiles=2)],
    "several tiles of queries": when(attention_dq, lambda q, *_: len(q) > 32,
                                     lambda z, *_: torch.cat([z[:32], 0 * z[32:]])),
    "lengths that are no multiple of the block": when(attention_dq, lambda q, *_: len(q) % 16,
                                                      lambda z, *_: torch.cat([z[:-1], 0 * z[-1:]])),
    "more keys than queries": as_many_keys_as_queries,
    "more queries than keys": when(attention_dq, lambda q, k, *_: len(q) > len(k),
                                   lambda z, q, k, *_: torch.cat([z[:len(k)], 0 * z[len(k):]])),
    "keys beyond the end add nothing, however low the scores": dq_by(mask=False),
    "the scale that it is given": [lambda *a: attention_dq(*a) / a[-1] / 4, lambda *a: attention_dq(*a[:-1], 0.25)],
    "logits of 1e4": dq_by(safe=False),
    "every output element is written": [dq_by(grid=lambda N, BLOCK: max(1, N // BLOCK)),
                                        lambda *a: without_the_rest(attention_dq(*a))],
    "nothing is written outside of the tensors": [dq_by(store=1), lambda *a: beyond_the_end(attention_dq(*a))],
    "the inputs are left as they were": in_place(attention_dq)})

CASES = {check.grouped_dkdv: GROUPED, check.attention_dq: DQ}
