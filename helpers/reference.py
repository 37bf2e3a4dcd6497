"""Attention the slow and certain way: what every faster version in the course is compared with.

Shapes are those of PyTorch's scaled_dot_product_attention: q [..., heads, N_q, D], k [..., kv_heads, N_k, D],
v [..., kv_heads, N_k, D_v]; plain [N, D] matrices work as well. kv_heads divides heads (grouped-query attention): query
head h uses key head h // (heads // kv_heads). A causal mask is aligned to the bottom right: query i sees the keys
j <= i + N_k - N_q. A query that sees no key gives an output row of zeros and lse = -inf.
"""
import math

import numpy as np
import torch

quiet = np.errstate(invalid="ignore", divide="ignore", over="ignore")        # NaN and inf pass through unannounced


def visible(N_q: int, N_k: int, is_causal: bool) -> np.ndarray:
    """Boolean [N_q, N_k]: which key each query may look at."""
    return np.tri(N_q, N_k, N_k - N_q, dtype=bool) if is_causal else np.ones((N_q, N_k), dtype=bool)


@quiet
def attention(q, k, v, *, is_causal=False, scale=None, return_lse=False, keep=1.0):
    """softmax(scale * q k^T) v in NumPy float64 (Vaswani et al. 2017, section 3.2.1); scale defaults to 1 / sqrt(D).

    Takes arrays or tensors. keep [..., heads, N_q, N_k] multiplies the probabilities: dropout's mask / (1 - dropout_p).
    Returns o [..., heads, N_q, D_v], and lse [..., heads, N_q] (natural log) if asked.
    """
    q, k, v = (_float64(x) for x in (q, k, v))
    p, lse = _probabilities(q, _expand(k, q), is_causal, scale)
    o = (p * keep) @ _expand(v, q)
    return (o, lse) if return_lse else o


@quiet
def attention_grads(q, k, v, do, *, is_causal=False, scale=None, keep=1.0):
    """Gradients of `attention` for an upstream gradient do [..., heads, N_q, D_v]: (dq, dk, dv) in float64.

    From the softmax Jacobian: ds = p * (dp - rowsum(dp * p)). For grouped heads dk and dv are summed over the group.
    """
    q, k, v, do = (_float64(x) for x in (q, k, v, do))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    k_all, v_all = _expand(k, q), _expand(v, q)
    p, _ = _probabilities(q, k_all, is_causal, scale)
    dp = keep * (do @ _transpose(v_all))
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    dk, dv = scale * _transpose(ds) @ q, _transpose(p * keep) @ do
    return scale * ds @ k_all, _sum_groups(dk, k), _sum_groups(dv, v)


def torch_attention(q, k, v, *, is_causal=False, scale=None):
    """The same formula in PyTorch, in the type and on the device of q: standard attention, with its n x n matrix."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if q.dim() > 2 and k.shape[-3] != q.shape[-3]:
        group = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(group, -3), v.repeat_interleave(group, -3)
    s = scale * (q @ k.transpose(-1, -2))
    if not is_causal:
        return torch.softmax(s, dim=-1) @ v
    N_q, N_k = s.shape[-2:]
    seen = torch.ones(N_q, N_k, dtype=torch.bool, device=q.device).tril(N_k - N_q)
    p = torch.softmax(s.masked_fill(~seen, -math.inf), dim=-1)
    return p.masked_fill(~seen.any(-1, keepdim=True), 0.0) @ v


def masked_attention(q, k, v, seen, change=None, sink=None, scale=None):
    """softmax(change(scale * q k^T)) v over the pairs that are seen, in PyTorch and float64, differentiable: (o, lse).

    q [..., heads, N_q, D], k and v [..., kv_heads, N_k, D]; seen: boolean, like the scores [..., heads, N_q, N_k] or less;
    sink [heads]: a logit that joins the sum of its head, without a value. A query that sees nothing gets 0 and -inf.
    """
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    s = (q.shape[-1]**-0.5 if scale is None else scale) * (q @ k.transpose(-1, -2))
    s = (s if change is None else change(s)).masked_fill(~seen, -math.inf)
    logits = s if sink is None else torch.cat((s, sink.double()[:, None, None].expand(*s.shape[:-1], 1)), -1)
    lse = torch.logsumexp(logits, -1)
    return torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None]) @ v, lse


def last_head(q, k, v, *, is_causal=False, last=None):
    """torch_attention of the last head of [B, heads, N, D] in float64: o [last, D_v] of the last queries, or of all."""
    q, k, v = (x[-1, -1].double() for x in (q, k, v))
    return torch_attention(q[-last:] if last else q, k, v, is_causal=is_causal)


def _probabilities(q, k, is_causal, scale):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    seen = visible(q.shape[-2], k.shape[-2], is_causal)
    s = np.where(seen, scale * (q @ _transpose(k)), -np.inf)
    m = s.max(-1, keepdims=True, initial=-np.inf)
    p = np.where(seen, np.exp(s - m), 0.0)
    l = p.sum(-1, keepdims=True)
    blind = ~seen.any(-1, keepdims=True)                                     # rows that see no key
    lse = np.where(blind, -np.inf, m + np.log(l))[..., 0]
    return np.where(blind, 0.0, p / l), lse


def _float64(x):
    return x.detach().double().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, dtype=np.float64)


def _transpose(x):
    return np.swapaxes(x, -1, -2)


def _expand(x, q):
    """Repeat key or value heads so that each query head has its own."""
    return x if q.ndim == 2 or x.shape[-3] == q.shape[-3] else np.repeat(x, q.shape[-3] // x.shape[-3], axis=-3)


def _sum_groups(dx, x):
    """The inverse of `_expand` for a gradient: sum over the query heads that shared a key head."""
    if x.ndim == 2 or dx.shape == x.shape:
        return dx
    *batch, kv_heads, N, D = x.shape
    return dx.reshape(*batch, kv_heads, dx.shape[-3] // kv_heads, N, D).sum(-3)
