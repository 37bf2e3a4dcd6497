"""The references against loops, against autograd, and at the edges."""
import math

import numpy as np
import pytest
import torch

from helpers import reference

each_shape = pytest.mark.parametrize("shapes", [((5, 3), (5, 3)), ((2, 4, 7, 8), (2, 4, 7, 8)), ((2, 6, 5, 4), (2, 2, 9, 4)),
                                                ((1, 4, 9, 4), (1, 1, 5, 4))])
causal_or_not = pytest.mark.parametrize("is_causal", [False, True])


def inputs(q_shape, k_shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(q_shape), rng.standard_normal(k_shape), rng.standard_normal(k_shape)


def by_loops(q, k, v, is_causal, scale):
    """Attention and lse with a loop per query and a sum per key."""
    if q.ndim == 2:
        q, k, v = q[None, None], k[None, None], v[None, None]
    B, H, N_q, D = q.shape
    N_k, group = k.shape[2], q.shape[1] // k.shape[1]
    o, lse = np.zeros((B, H, N_q, v.shape[-1])), np.full((B, H, N_q), -np.inf)
    for b, h, i in np.ndindex(B, H, N_q):
        keys = [j for j in range(N_k) if not is_causal or j <= i + N_k - N_q]
        if keys:
            s = [scale * math.fsum(q[b, h, i] * k[b, h // group, j]) for j in keys]
            weights = [math.exp(x) for x in s]
            o[b, h, i] = sum(w * v[b, h // group, j] for w, j in zip(weights, keys)) / math.fsum(weights)
            lse[b, h, i] = math.log(math.fsum(weights))
    return o, lse


@each_shape
@causal_or_not
@pytest.mark.parametrize("scale", [None, 0.3])
def test_agrees_with_loops(shapes, is_causal, scale):
    q, k, v = inputs(*shapes)
    o, lse = reference.attention(q, k, v, is_causal=is_causal, scale=scale, return_lse=True)
    want_o, want_lse = by_loops(q, k, v, is_causal, q.shape[-1]**-0.5 if scale is None else scale)
    np.testing.assert_allclose(o, want_o.reshape(o.shape), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lse, want_lse.reshape(lse.shape), rtol=1e-12)


@each_shape
@causal_or_not
def test_torch_version_agrees(shapes, is_causal):
    q, k, v = inputs(*shapes)
    o = reference.torch_attention(*map(torch.tensor, (q, k, v)), is_causal=is_causal)
    np.testing.assert_allclose(o.numpy(), reference.attention(q, k, v, is_causal=is_causal), rtol=1e-11, atol=1e-14)


@each_shape
@causal_or_not
def test_gradients_agree_with_autograd(shapes, is_causal):
    q, k, v = inputs(*shapes)
    do = np.random.default_rng(1).standard_normal(q.shape)
    tensors = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    reference.torch_attention(*tensors, is_causal=is_causal, scale=0.7).backward(torch.tensor(do))
    for got, x in zip(reference.attention_grads(q, k, v, do, is_causal=is_causal, scale=0.7), tensors):
        np.testing.assert_allclose(got, x.grad.numpy(), rtol=1e-9, atol=1e-12)


def masks(q_shape, k_shape, seed=2):
    """What dropout with probability 0.3 would multiply the probabilities of these shapes by."""
    return (np.random.default_rng(seed).random((*q_shape[:-1], k_shape[-2])) >= 0.3) / 0.7


@each_shape
@causal_or_not
def test_kept_probabilities(shapes, is_causal):
    q, k, v = inputs(*shapes)
    N_k, keep = k.shape[-2], masks(*shapes)
    unit = np.broadcast_to(np.eye(N_k), (*k.shape[:-1], N_k))              # then o holds the probabilities themselves
    p = reference.attention(q, k, unit, is_causal=is_causal)
    o, lse = reference.attention(q, k, v, is_causal=is_causal, return_lse=True, keep=keep)
    group = 1 if q.ndim == 2 else q.shape[-3] // k.shape[-3]
    np.testing.assert_allclose(o, (p * keep) @ (v if group == 1 else v.repeat(group, -3)), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(lse, reference.attention(q, k, v, is_causal=is_causal, return_lse=True)[1])


@each_shape
@causal_or_not
def test_gradients_with_kept_probabilities_agree_with_autograd(shapes, is_causal):
    q, k, v = inputs(*shapes)
    do, keep = np.random.default_rng(1).standard_normal(q.shape), masks(*shapes)
    tensors = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    group = 1 if q.ndim == 2 else q.shape[-3] // k.shape[-3]
    q_all, k_all, v_all = tensors[0], *(x if group == 1 else x.repeat_interleave(group, -3) for x in tensors[1:])
    seen = torch.tensor(reference.visible(q.shape[-2], k.shape[-2], is_causal))
    p = torch.softmax((0.7 * q_all @ k_all.mT).masked_fill(~seen, -math.inf), -1)
    o = (p.masked_fill(~seen.any(-1, keepdim=True), 0.0) * torch.tensor(keep)) @ v_all
    o.backward(torch.tensor(do))
    for got, x in zip(reference.attention_grads(q, k, v, do, is_causal=is_causal, scale=0.7, keep=keep), tensors):
        np.testing.assert_allclose(got, x.grad.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keep", [1.0, masks((4, 3), (5, 3))], ids=["all kept", "some dropped"])
def test_gradients_agree_with_finite_differences(keep):
    q, k, v = inputs((4, 3), (5, 3))
    do = np.random.default_rng(1).standard_normal(q.shape)
    loss = lambda *qkv: (reference.attention(*qkv, is_causal=True, keep=keep) * do).sum()
    for which, grad in enumerate(reference.attention_grads(q, k, v, do, is_causal=True, keep=keep)):
        for place in np.ndindex(*grad.shape):
            step = np.zeros_like(grad)
            step[place] = 1e-6
            shifted = lambda sign: [x + sign * step if i == which else x for i, x in enumerate((q, k, v))]
            slope = (loss(*shifted(1)) - loss(*shifted(-1))) / 2e-6
            assert abs(slope - grad[place]) < 1e-8


def test_a_query_that_sees_no_key():
    q, k, v = inputs((5, 3), (2, 3))
    o, lse = reference.attention(q, k, v, is_causal=True, return_lse=True)
    assert (o[:3] == 0).all() and (lse[:3] == -np.inf).all() and np.isfinite(o).all() and np.isfinite(lse[3:]).all()


def test_no_keys_at_all():
    q, k, v = inputs((5, 3), (0, 3))
    o, lse = reference.attention(q, k, v, return_lse=True)
    assert (o == 0).all() and (lse == -np.inf).all()


def test_large_logits_and_nan():
    q, k, v = inputs((6, 4), (6, 4))
    assert np.isfinite(reference.attention(1e4 * q, k, v)).all()
    k[2, 1] = np.nan
    assert np.isnan(reference.attention(q, k, v)).all()


@causal_or_not
@pytest.mark.parametrize("last", [None, 2])
def test_the_last_head_is_the_last_head(is_causal, last):
    q, k, v = map(torch.tensor, inputs((2, 3, 7, 8), (2, 3, 7, 8)))
    want = reference.torch_attention(q, k, v, is_causal=is_causal)[-1, -1]
    found = reference.last_head(q, k, v, is_causal=is_causal, last=last)
    torch.testing.assert_close(found, want[-last:] if last else want)
