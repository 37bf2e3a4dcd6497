"""Right and wrong versions of quantizing to 8 bits, and of attention over eight bits and their scales."""
import numpy as np
import torch

from helpers import check
from mistakes.ways import in_place, mistaken


def quantize(x, block, largest=448, magnitude=torch.abs, common=False, floor=0.0, guard=True, short=True, whole=False):
    scales = torch.stack([magnitude(rows).max() / largest for rows in x.split(block)])
    if common:
        scales[:] = scales.max()
    if guard:
        scales = torch.where(scales == 0, 1.0, scales)
    scales = torch.where(scales.abs() < floor, floor, scales)
    if not short and len(x) % block and len(scales) > 1:
        scales[-1] = scales[-2]
    x8 = x / scales.repeat_interleave(block)[:len(x), None]
    return (x8.round() if whole else x8).to(torch.float8_e4m3fn), scales


wrong = mistaken(quantize)


def truncated(x, block):
    x8, scales = quantize(x, block)
    bits = (x8.float().abs() * scales.repeat_interleave(block)[:len(x), None] > x.abs()).to(torch.uint8)
    return (x8.view(torch.uint8) - bits).view(torch.float8_e4m3fn), scales


def fails_in_a_library(x, block):
    x8, scales = quantize(x, block)
    return torch.minimum(x8, x8), scales                 # PyTorch has no such operation: NotImplementedError


QUANTIZE = dict(right=[quantize], wrong={
    "the largest number of a block becomes 448": wrong(largest=256),
    "every number comes back to within 1/16 of itself": [wrong(whole=True), truncated],
    "the largest may be negative": wrong(magnitude=lambda rows: rows),
    "an outlier spoils no other block": wrong(common=True),
    "a last block that is short": [wrong(short=False),
                                   lambda x, block: (quantize(x, block)[0].float(), quantize(x, block)[1])],
    "a block of zeros has the scale 1": wrong(guard=False),
    "very large and very small blocks": wrong(floor=1e-12),
    "the inputs are left as they were": in_place(quantize)}, also=[fails_in_a_library])


# ---------------------------------------------------------------- attention, in NumPy

def scaled_attention(q8, k8, v8, q_scales, k_scales, v_scales, block, mean=(), before=False, maximum=True,
                     repeat=np.repeat, cut=True, swapped=False, in_place=False):
    N_q, N_k = len(q8), len(k8)
    q_scales, k_scales, v_scales = (np.full_like(x, x.mean()) if name in mean else x
                                    for name, x in zip("qkv", (q_scales, k_scales, v_scales)))
    rows, keys = repeat(q_scales, block)[:N_q if cut else None], repeat(k_scales, block)[:N_k if cut else None]
    if swapped:
        rows, keys = keys[:N_q], rows[:N_k]
    if in_place:
        v8 *= v_scales
        v_scales = 1
    s = (rows[:, None] * q8) @ k8.T * keys if before else q8 @ k8.T * rows[:, None] * keys
    s = s * np.float32(q8.shape[1]**-0.5)
    p = np.exp(s - s.max(axis=1, keepdims=True) if maximum else s)
    return (p @ v8) / p.sum(axis=1, keepdims=True) * v_scales


scaling = mistaken(scaled_attention)


def dequantized(q8, k8, v8, q_scales, k_scales, v_scales, block):
    return scaled_attention(q8, k8, v8 * v_scales, q_scales, k_scales, 1, block)


def over_keys(q8, k8, v8, q_scales, k_scales, v_scales, block):
    """The scales of k at the queries, which only square shapes allow."""
    return scaled_attention(q8, k8, v8, k_scales[:len(q_scales)], q_scales[:len(k_scales)], v_scales, block)


def causal(q8, k8, v8, q_scales, k_scales, v_scales, block, least=1.1754944e-38, fill=-np.inf, whole=False,
           own=False, in_place=False, ordinary=False):
    N, D = q8.shape
    if in_place:
        q8 *= np.float32(1 + 1e-6)
    o = np.empty([N, D], np.float32)
    for i in range(0, N, block):
        rows = np.arange(i, min(i + block, N) if not whole else i + block)
        m, l, acc = np.full(len(rows), -np.inf, np.float32), 0, 0
        for j in range(0, i + block, block):
            keys = np.arange(j, min(j + block, N))
            factor = np.float32(D**-0.5) * q_scales[i // block] * k_scales[i // block if own else j // block]
            factor = np.maximum(factor, np.float32(least))
            if ordinary:
                factor = np.maximum(factor, np.float32(1e-3))
            s = np.where(keys[None, :] <= rows[:, None], q8[rows] @ k8[keys].T, np.float32(fill))
            m_new = np.maximum(m, s.max(axis=1) * factor)
            alpha = np.exp(m - m_new)
            p = np.exp(s * factor - m_new[:, None])
            l = alpha * l + p.sum(axis=1)
            acc = alpha[:, None] * acc + p @ v8[keys]
            m = m_new
        o[rows] = acc / l[:, None] * v_scales
    return o


masking = mistaken(causal)


def masked_after(q8, k8, v8, q_scales, k_scales, v_scales, block):
    """The mask behind the scale, on whole matrices: also right."""
    N, D = q8.shape
    s = q8 @ k8.T * q_scales.repeat(block)[:N, None] * k_scales.repeat(block)[:N] * np.float32(D**-0.5)
    s = np.where(np.tri(len(s), dtype=bool), s, -np.inf)
    p = np.exp(s - s.max(axis=1, keepdims=True))
    return p @ v8 / p.sum(axis=1, keepdims=True) * v_scales


CASES = {
    check.quantize: QUANTIZE,
    check.scaled_attention: dict(
        right=[scaled_attention],
        wrong={"one scale for all": lambda *inputs: 2 * scaled_attention(*inputs),
               "a scale for each block of queries": scaling(mean="q"),
               "a scale for each block of keys": scaling(mean="k"),
               "a scale for each feature of v": scaling(mean="v"),
               "a last block that is short": scaling(cut=False),
               "more or fewer keys than queries": over_keys,
               "large scores": scaling(maximum=False),
               "the scales come after the products": [scaling(before=True), dequantized],
               "the inputs are left as they were": scaling(in_place=True)},
        also=[scaling(mean="qk"), scaling(repeat=np.tile), scaling(swapped=True), lambda q8, k8, v8, *scales: v8]),
    check.causal_scaled_attention: dict(
        right=[causal, masked_after, masking(least=1e-40)],
        wrong={"random numbers": [masking(own=True), scaled_attention],
               "a last block that is short": masking(whole=True),
               "any block size": lambda *inputs: causal(*inputs) if inputs[-1] == 8 else scaled_attention(*inputs),
               "very low scores": [masking(fill=-1e4), masking(fill=-1e5)],
               "small queries and small keys": masking(ordinary=True),
               "queries and keys near 0": [masking(least=0), masking(fill=-1e30)],
               "the inputs are left as they were": masking(in_place=True)},
        also=[masking(fill=-1e4, least=0)])}
