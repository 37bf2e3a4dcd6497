"""Right and wrong versions of attention for one head, blocked, with a switch for each mistake."""
import functools

import numpy as np
import torch

from helpers import check, device  # (before triton: helpers.device says why)
from mistakes.ways import beyond_the_end, in_place, when, without_the_last

import triton
import triton.language as tl

OWN, LAST = "each row has a maximum of its own", "the largest score comes last"
LENGTH = "a length that is no multiple of the block"
LITTLE = "maxima that move a little, in each row differently"
LOW = {False: "keys beyond the end weigh nothing, however low the scores",
       True: "a later key weighs nothing, however low the scores"}
ALPHAS = [lambda x: x**2, lambda x: x**0.5, lambda x: x**np.log(2), lambda x: 1 / x, lambda x: 1.0 * (x == 1),
          lambda x: 1.0 * (x > 0), lambda x: x[::-1], lambda x: x[:1], lambda x: x.max(), lambda x: x.mean(),
          lambda x: 1.0, lambda x: 0 * x]                # in the place of alpha; the third is 2^(m - m_new)


def blocked(q, k, v, BLOCK_M=32, BLOCK_N=16, *, is_causal=False, return_lse=False, scale=True,
            maximum=lambda m, s: np.maximum(m, s.max(1)), of_l=lambda x: x, of_acc=lambda x: x, mask=-np.inf,
            pad=None, first_row=True, lazy=True, in_place=False, spoil=None, all_count=False):
    N, D = q.shape
    o, lse = np.empty_like(v), np.empty(N)
    for i in range(0, N, BLOCK_M):
        q_i = q[i:i + BLOCK_M] * (D**-0.5 if scale else 1)
        rows = i + np.arange(len(q_i))
        m, l, acc = np.full(len(q_i), -3e38), np.zeros(len(q_i)), np.zeros((len(q_i), D))
        for j in range(0, min(i + BLOCK_M, N) if is_causal and lazy else N, BLOCK_N):
            s = q_i @ k[j:j + BLOCK_N].T
            if pad is not None:
                s = np.pad(s, ((0, 0), (0, BLOCK_N - s.shape[1])), constant_values=pad)
            keys, counted = j + np.arange(s.shape[1]), s.copy() if all_count else s
            if is_causal:
                s[(keys > rows[:, None]) & ((rows[:, None] > 0) | first_row)] = mask
            m_new = maximum(m, counted)
            p = np.exp(s - np.reshape(m_new, (-1, 1)))
            alpha = np.exp(m - m_new)
            l = of_l(alpha) * l + p.sum(1)
            acc = np.reshape(of_acc(alpha), (-1, 1)) * acc + p[:, :len(v[j:j + BLOCK_N])] @ v[j:j + BLOCK_N]
            m = m_new
        o[i:i + BLOCK_M], lse[i:i + BLOCK_M] = acc / l[:, None], m + np.log(l)
    if in_place:
        q *= 2
    if spoil:
        spoil(o, BLOCK_N)
    return (o, lse) if return_lse else o


def last_row(value, applies=lambda o, BLOCK_N: True):
    """A way to spoil an output."""
    def spoil(o, BLOCK_N):
        if applies(o, BLOCK_N):
            o[-1] = value(o)
    return spoil


def versions(is_causal, return_lse):
    def make(**mistake):
        def fn(q, k, v, BLOCK_M=32, BLOCK_N=16):
            return blocked(q, k, v, BLOCK_M, BLOCK_N, is_causal=is_causal, return_lse=return_lse, **mistake)
        return fn

    wrong = {"the result is attention": make(scale=False),
             LITTLE: [make(**dict.fromkeys(where, spoil)) for spoil in ALPHAS
                      for where in (["of_l", "of_acc"], ["of_l"], ["of_acc"])],
             OWN: make(maximum=lambda m, s: np.maximum(m, s.max())),
             LAST: [make(of_l=lambda x: 1.0, of_acc=lambda x: 1.0), make(of_acc=lambda x: 1.0)],
             "logits of 1e4": [make(maximum=lambda m, s: np.maximum(m, np.minimum(s.max(1), 500))),
                               make(maximum=lambda m, s: 0 * m)],
             LENGTH: make(spoil=last_row(lambda o: 0, lambda o, BLOCK_N: len(o) % 16)) if is_causal else make(pad=0.0),
             "every output element is written": make(spoil=last_row(lambda o: np.empty_like(o)[-1])),
             "the inputs are left as they were": make(in_place=True),
             "any block size gives the same answer": make(spoil=last_row(lambda o: 0, lambda o, size: size != 16)),
             LOW[is_causal]: [make(mask=mask) if is_causal else make(pad=mask) for mask in (-1e4, -1e9)]}
    if is_causal:
        wrong |= {"the first causal row sees one key": make(first_row=False),
                  "a later key is no row's maximum, however high its score": make(all_count=True),
                  "tiles above the diagonal are not visited": make(lazy=False)}
    if return_lse:
        wrong |= {"lse is the log of the sum of exponentials": lambda q, *kv: (make()(q, *kv)[0], np.zeros(len(q)))}
    return dict(right=[make()], wrong=wrong)


@triton.jit
def kernel(q_ptr, k_ptr, v_ptr, o_ptr, N, scale, D: tl.constexpr, BLOCK: tl.constexpr, MASK: tl.constexpr,
           POWER: tl.constexpr, MAX: tl.constexpr, STORE: tl.constexpr, LOAD: tl.constexpr):
    d, n = tl.arange(0, D), tl.arange(0, BLOCK)
    rows = tl.program_id(0) * BLOCK + n
    q = tl.load(q_ptr + rows[:, None] * D + d[None, :], mask=rows[:, None] < N, other=0.0)
    m, l, acc = tl.full([BLOCK], -3e38, tl.float32), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK, D], tl.float32)
    for j in range(0, N, BLOCK):
        keys = j + n
        inside = keys[:, None] < (N if LOAD else N + BLOCK)
        k_j = tl.load(k_ptr + keys[:, None] * D + d[None, :], mask=inside, other=0.0)
        v_j = tl.load(v_ptr + keys[:, None] * D + d[None, :], mask=inside, other=0.0)
        s = tl.where(keys[None, :] < N, scale * tl.dot(q, k_j.T, input_precision="ieee"), MASK)
        if MAX == "none":
            m_new = 0.0 * m
        else:
            m_new = tl.maximum(m, tl.max(s, axis=1) if MAX == "own" else tl.max(s))
        alpha = tl.exp(POWER * (m - m_new))
        p = tl.exp(s - m_new[:, None])
        l = alpha * l + tl.sum(p, axis=1)
        acc = alpha[:, None] * acc + tl.dot(p, v_j, input_precision="ieee")
        m = m_new
    tl.store(o_ptr + rows[:, None] * D + d[None, :], acc / l[:, None], mask=rows[:, None] < (N if STORE else N + 1))


def in_triton(mask=-float("inf"), power=1.0, maximum="own", store=True, load=True):
    def fn(q, k, v):
        o, (N, D) = torch.empty_like(q), q.shape
        kernel[(triton.cdiv(N, 32),)](q, k, v, o, N, D**-0.5, D, 32, mask, power, maximum, store, load)
        return o
    return fn


in_numpy = functools.partial(check.attention, numpy=True)
CASES = {
    in_numpy: versions(False, False),
    functools.partial(in_numpy, is_causal=True): versions(True, False),
    functools.partial(in_numpy, is_causal=True, return_lse=True): versions(True, True),
    check.attention: dict(right=[in_triton()], wrong={
        "the result is attention": lambda q, k, v: in_triton()(2 * q, k, v),
        LITTLE: [in_triton(power=2.0), in_triton(power=0.5)],
        OWN: in_triton(maximum="shared"),
        LENGTH: in_triton(mask=0.0),
        LAST: in_triton(power=0.0),
        "logits of 1e4": in_triton(maximum="none"),
        LOW[False]: [in_triton(mask=-1e4), in_triton(mask=-1e9)],
        "every output element is written": when(in_triton(), lambda q, k, v: len(q) > 1, without_the_last),
        "the inputs are left as they were": in_place(in_triton()),
        "nothing is written outside of the tensors": [
            lambda *qkv: beyond_the_end(in_triton()(*qkv)),
            *device.INTERPRETED * [in_triton(store=False), in_triton(load=False)]]}),
}
