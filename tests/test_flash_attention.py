"""Lesson 10's attention: output and gradients in every shape, dropout, refusals, memory, and what the kernels compile to."""
import re
from unittest import mock

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings, strategies as st

from helpers import compiled, device, lessons, reference
from helpers.check.core import poisoned, unwritten

lesson = lessons.backward_triton
flash, dropout_mask = lesson.flash_attention, lesson.dropout_mask
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}        # as a share of the largest element
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)
CAUSAL = pytest.mark.parametrize("is_causal", [False, True])
quietly = pytest.mark.filterwarnings("ignore::RuntimeWarning")    # NumPy, inside the interpreter, announces NaN


def inputs(B, heads, kv_heads, N_q, N_k, D, dtype=torch.float32, seed=0):
    """q, k and v, which require gradients, and do."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(B, h, N, D, generator=generator).to(device.DEVICE, dtype)
               for h, N in ((heads, N_q), (kv_heads, N_k), (kv_heads, N_k), (heads, N_q))]
    return [x.requires_grad_() for x in tensors[:3]], tensors[3]


def array(x):
    return x.detach().double().cpu().numpy()


def forward_and_backward(tensors, do, **options):
    """o, lse, dq, dk, dv as tensors."""
    o, lse = flash(*tensors, enable_gqa=True, return_lse=True, **options)
    return [o.detach(), lse.detach(), *torch.autograd.grad(o, tensors, do)]


def wanted(tensors, do, **options):
    return [*reference.attention(*tensors, return_lse=True, **options),
            *reference.attention_grads(*tensors, do, **options)]


def close(got, want, bound, lse_bound=1e-5):
    for name, x, exact in zip(("o", "lse", "dq", "dk", "dv"), got, want):
        assert x.shape == exact.shape and x.dtype == (torch.float32 if name == "lse" else got[0].dtype), name
        if name == "lse":
            np.testing.assert_allclose(array(x), exact, rtol=lse_bound, atol=lse_bound)
        else:
            assert np.abs(array(x) - exact).max(initial=0) <= bound * max(1, np.abs(exact).max(initial=0)), name


def check(shape, bound, dtype=torch.float32, seed=0, **options):
    tensors, do = inputs(*shape, dtype, seed)
    close(forward_and_backward(tensors, do, **options), wanted(tensors, do, **options), bound)


# ---------------------------------------------------------------- agreement with float64

@DTYPES
@CAUSAL
@pytest.mark.parametrize("N_q,N_k", [(1, 1), (17, 17), (130, 70), (70, 130), (1, 113), (5, 0), (0, 5)])
def test_any_length(N_q, N_k, is_causal, dtype):
    check((1, 1, 1, N_q, N_k, 16), BOUNDS[dtype], dtype, is_causal=is_causal)


@DTYPES
@pytest.mark.parametrize("D", [1, 7, 16, 40, 64, 128, 256])
def test_any_head_dimension(D, dtype):
    check((1, 1, 1, 50, 70, D), BOUNDS[dtype], dtype, is_causal=True)


@CAUSAL
@pytest.mark.parametrize("heads,kv_heads", [(1, 1), (4, 2), (6, 2), (8, 1)])
def test_batches_and_groups(heads, kv_heads, is_causal):
    check((2, heads, kv_heads, 40, 50, 7), 2e-6, is_causal=is_causal)


@DTYPES
def test_groups_in_every_type(dtype):
    check((1, 6, 2, 30, 40, 64), BOUNDS[dtype], dtype, is_causal=True)


def backward_with(dkdv, dq):
    """Let the backward kernels run with these (BLOCK_M, BLOCK_N)."""
    usual = lesson.backward_tiles
    def tiles(*arguments):
        return [dict(made, BLOCK_M=M, BLOCK_N=N) for made, (M, N) in zip(usual(*arguments), (dkdv, dq))]
    return mock.patch.object(lesson, "backward_tiles", tiles)


BLOCKS = st.tuples(st.sampled_from([16, 32, 64]), st.sampled_from([16, 32, 64]))


@settings(max_examples=25, deadline=None)
@given(N_q=st.integers(0, 90), N_k=st.integers(0, 90), D=st.integers(1, 40), is_causal=st.booleans(),
       scale=st.floats(-2, 2), dkdv=BLOCKS, dq=BLOCKS, groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
       dropout_p=st.sampled_from([0.0, 0.0, 0.3]), seed=st.integers(0, 99))
def test_any_call(N_q, N_k, D, is_causal, scale, dkdv, dq, groups, dropout_p, seed):
    tensors, do = inputs(1, *groups, N_q, N_k, D, seed=seed)
    options = dict(is_causal=is_causal, scale=scale)
    keep = array(dropout_mask(1, groups[0], N_q, N_k, dropout_p, seed)) / (1 - dropout_p)
    with backward_with(dkdv, dq):
        got = forward_and_backward(tensors, do, dropout_p=dropout_p, seed=seed, **options)
    norms = [x.detach().norm(dim=-1).amax().item() if x.numel() else 0.0 for x in (*tensors, do)]
    largest = abs(scale) * norms[0] * norms[1]           # a score's rounding is a share of it,
    reach = max(1, norms[2] * norms[3] * max(1, abs(scale) * max(norms[:2])))      # and moves a gradient by a share of this
    close(got, wanted(tensors, do, keep=keep, **options), (2e-6 + 1e-6 * largest) * reach, 1e-4)


@pytest.mark.parametrize("scale", [-0.7, 0.0, -5e-324, 5e-324])
def test_negative_and_zero_scale(scale):
    check((1, 2, 1, 40, 50, 16), 2e-6, is_causal=True, scale=scale)


@CAUSAL
@pytest.mark.parametrize("scale", [100, 1e4])
def test_large_logits(scale, is_causal):
    tensors, do = inputs(1, 1, 1, 60, 60, 16)
    tensors = [x.detach().mul(4).round().div(4).requires_grad_() for x in tensors]    # float32 holds these scores exactly
    got, want = forward_and_backward(tensors, do, scale=scale, is_causal=is_causal), wanted(tensors, do, scale=scale,
                                                                                            is_causal=is_causal)
    assert all(torch.isfinite(x).all() for x in got)
    close(got[:2], want[:2], 1e-3)
    for x, exact in zip(got[2:], want[2:]):
        assert np.abs(array(x) - exact).max() <= 1e-2 * max(scale, np.abs(exact).max())    # 1e5 has 7 digits, too


@DTYPES
@CAUSAL
def test_no_worse_than_twice_pytorch(is_causal, dtype):
    tensors, do = inputs(1, 2, 2, 150, 150, 64, dtype)
    exact = reference.attention_grads(*tensors, do, is_causal=is_causal)
    theirs = torch.autograd.grad(reference.torch_attention(*tensors, is_causal=is_causal), tensors, do)
    ours = torch.autograd.grad(flash(*tensors, is_causal=is_causal), tensors, do)
    for name, x, y, want in zip(("dq", "dk", "dv"), ours, theirs, exact):
        x, y = array(x) - want, array(y) - want
        assert np.sqrt((x**2).mean()) <= 2 * np.sqrt((y**2).mean()), name
        # float32: the largest of a few thousand errors is a matter of luck, and may be three times the other's
        assert np.abs(x).max() <= (4 if dtype == torch.float32 else 2) * np.abs(y).max(), name


# ---------------------------------------------------------------- what autograd may ask for

def torch_lse(q, k, is_causal):
    s = q.shape[-1]**-0.5 * q @ k.mT
    return s.masked_fill(~torch.ones_like(s, dtype=torch.bool).tril(s.shape[-1] - s.shape[-2]), -torch.inf).logsumexp(-1) \
        if is_causal else s.logsumexp(-1)


@CAUSAL
@pytest.mark.parametrize("loss", [lambda o, lse: lse.sum(), lambda o, lse: (lse**2).sum(),
                                  lambda o, lse: (o**2).sum() + (lse * torch.arange(40, device=lse.device)).mean(),
                                  lambda o, lse: (o.sum(-1) * lse.mT.mT).sum()],
                         ids=["sum", "square", "both", "product"])
def test_gradient_through_lse(loss, is_causal):
    tensors, _ = inputs(2, 2, 2, 40, 50, 16)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    want = torch.autograd.grad(loss(reference.torch_attention(*exact, is_causal=is_causal),
                                    torch_lse(*exact[:2], is_causal)), exact, allow_unused=True)
    got = torch.autograd.grad(loss(*flash(*tensors, is_causal=is_causal, return_lse=True)), tensors)
    for x, y in zip(got, want):
        assert torch.allclose(x.double(), torch.zeros_like(x).double() if y is None else y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_some_inputs_need_a_gradient(chosen):
    tensors, do = inputs(1, 2, 2, 40, 40, 16)
    want = torch.autograd.grad(flash(*tensors), tensors, do)
    some = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(tensors)]
    flash(*some).backward(do)
    for i, x in enumerate(some):
        assert x.grad is None if i not in chosen else torch.equal(x.grad, want[i])


def test_a_gradient_that_is_one_number():
    tensors, do = inputs(1, 2, 2, 40, 40, 16)
    want = torch.autograd.grad(flash(*tensors), tensors, torch.ones_like(do))
    for x, y in zip(torch.autograd.grad(flash(*tensors).sum(), tensors), want):      # do has strides of 0
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def same(x, y):
    """Bit for bit in the interpreter. On a GPU other strides give other layouts, which add in another order."""
    atol = 0 if device.INTERPRETED else 2e-6
    torch.testing.assert_close(x, y, rtol=0, atol=atol)


def test_strided_views():
    tensors, do = inputs(2, 3, 3, 40, 40, 24)
    want = forward_and_backward(tensors, do, is_causal=True)
    for view in (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
                 lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
                 lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2]):
        views = [view(x.detach()).requires_grad_() for x in tensors]
        for x, y in zip(forward_and_backward(views, view(do), is_causal=True), want):
            same(x, y)
    expanded = [x[:1].expand(2, -1, -1, -1) for x in tensors]
    dq = torch.autograd.grad(flash(*expanded, is_causal=True), tensors, do[:1].expand_as(do))[0]
    same(dq[0], 2 * want[2][0])
    assert (dq[1] == 0).all()


def test_one_tensor_three_times():
    (x, _, _), do = inputs(1, 2, 2, 40, 40, 16)
    got, = torch.autograd.grad(flash(x, x, x, is_causal=True), x, do)
    assert np.abs(array(got) - sum(reference.attention_grads(x, x, x, do, is_causal=True))).max() < 1e-5


def test_gradients_accumulate():
    tensors, do = inputs(1, 1, 1, 20, 20, 16)
    for _ in range(2):
        flash(*tensors).backward(do)
    assert all(torch.equal(x.grad, 2 * dx) for x, dx in zip(tensors, torch.autograd.grad(flash(*tensors), tensors, do)))


def test_without_gradients():
    tensors, _ = inputs(1, 1, 1, 20, 20, 16)
    with torch.no_grad():
        assert not flash(*tensors).requires_grad
    assert not flash(*(x.detach() for x in tensors)).requires_grad and flash(*tensors).requires_grad


def test_an_input_changed_between_the_passes():
    tensors, do = inputs(1, 1, 1, 20, 20, 16)
    o = flash(*tensors)
    with torch.no_grad():
        tensors[1].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.backward(do)


@pytest.mark.parametrize("shape", [(0, 2, 2, 5, 5, 8), (1, 0, 0, 5, 5, 8), (1, 2, 1, 0, 0, 8), (1, 2, 1, 0, 5, 8)])
def test_nothing_to_do(shape):
    tensors, do = inputs(*shape)
    o, lse, *gradients = forward_and_backward(tensors, do)
    assert o.shape == tensors[0].shape and lse.shape == tensors[0].shape[:3]
    assert all(dx.shape == x.shape and (dx == 0).all() for dx, x in zip(gradients, tensors))


def test_nobody_looks_nothing_moves():
    tensors, do = inputs(1, 2, 1, 70, 40, 16)
    o, lse, dq, _, _ = forward_and_backward(tensors, do, is_causal=True)
    assert (dq[:, :, :30] == 0).all() and (dq[:, :, 31:] != 0).any(-1).all() and (lse[:, :, :30] == -torch.inf).all()
    do[:, :, 40:] = 0                                    # only the first ten queries that see something count: ten keys
    _, _, _, dk, dv = forward_and_backward(tensors, do, is_causal=True)
    assert (dk[:, :, 10:] == 0).all() and (dv[:, :, 10:] == 0).all() and (dv[:, :, :10] != 0).any(-1).all()


@CAUSAL
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_every_element_is_written(is_causal, dropout_p):
    tensors, do = inputs(2, 2, 1, 70, 50, 24)
    with poisoned():
        made = forward_and_backward(tensors, do, is_causal=is_causal, dropout_p=dropout_p, seed=0)
        assert not any(map(unwritten, made))


@DTYPES
def test_is_deterministic(dtype):
    tensors, do = inputs(1, 4, 2, 100, 100, 64, dtype)
    options = dict(is_causal=True, dropout_p=0.1, seed=5)
    assert all(map(torch.equal, forward_and_backward(tensors, do, **options), forward_and_backward(tensors, do, **options)))


# ---------------------------------------------------------------- NaN and inf

NAMES = ("q", "k", "v", "do")
VALUES = pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])


def spoilt(which, value, place=70):
    tensors, do = inputs(1, 1, 1, 100, 100, 16)
    with torch.no_grad():
        [*tensors, do][which][0, 0, place, 3] = value
    return tensors, do


@quietly
@VALUES
@pytest.mark.parametrize("which", range(4), ids=NAMES)
def test_nan_and_inf_come_out_as_from_the_reference(which, value):
    tensors, do = spoilt(which, value)
    for name, x, want in zip(("o", "lse", "dq", "dk", "dv"), map(array, forward_and_backward(tensors, do)),
                             wanted(tensors, do)):
        np.testing.assert_array_equal(np.isfinite(x), np.isfinite(want), err_msg=name)
        # an infinite do: inf - inf is in the reference's delta, but not in rowsum(do * o), so some of its NaN are inf here
        same = np.isfinite(want) | (NAMES[which] != "do")
        np.testing.assert_allclose(x[same], want[same], atol=2e-5, rtol=2e-5, err_msg=name)


def only_what_is_seen(tensors, do):
    """dq, dk, dv of causal attention, each query given only the keys that it sees: no masked score to multiply by."""
    q, k, v, do = (array(x)[0, 0] for x in (*tensors, do))
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for i in range(len(q)):
        dq_i, dk_i, dv_i = reference.attention_grads(q[i:i + 1], k[:i + 1], v[:i + 1], do[i:i + 1])
        dq[i] = dq_i[0]
        dk[:i + 1] += dk_i
        dv[:i + 1] += dv_i
    return dq, dk, dv


@quietly
@VALUES
@pytest.mark.parametrize("which", range(4), ids=NAMES)
def test_causal_nan_and_inf(which, value):
    """Wherever mathematics has one there is one; elsewhere at most where the reference has one too, from 0 * NaN."""
    tensors, do = spoilt(which, value)
    got = [array(x) for x in forward_and_backward(tensors, do, is_causal=True)[2:]]
    for name, x, least, most in zip(("dq", "dk", "dv"), got, only_what_is_seen(tensors, do),
                                    reference.attention_grads(*tensors, do, is_causal=True)):
        assert not (~np.isfinite(least) & np.isfinite(x)).any(), f"{name}: lost"
        assert not (~np.isfinite(x) & np.isfinite(most)).any(), f"{name}: gained"
        np.testing.assert_allclose(np.where(np.isfinite(x), x, 0), np.where(np.isfinite(x), least, 0), atol=2e-5)


@quietly
def test_the_future_does_not_leak_across_tiles():
    tensors, do = inputs(1, 1, 1, 128, 128, 16)
    with torch.no_grad():
        tensors[1][:, :, 64:] = tensors[2][:, :, 64:] = float("nan")
    with backward_with((32, 32), (32, 32)):
        dq = torch.autograd.grad(flash(*tensors, is_causal=True), tensors, do)[0]
    assert torch.isfinite(dq[:, :, :64]).all() and not torch.isfinite(dq[:, :, 64:]).any()


# ---------------------------------------------------------------- dropout

def philox(counter, key, rounds):
    """Philox-4x32 (Salmon et al. 2011, section 3.3) for four arrays of counters and two of keys."""
    counter, (k0, k1) = [np.asarray(c, np.uint64) for c in counter], (np.asarray(k, np.uint64) for k in key)
    low, high = (lambda x: x & np.uint64(0xFFFFFFFF)), (lambda x: x >> np.uint64(32))
    for _ in range(rounds):
        a, b = np.uint64(0xD2511F53) * counter[0], np.uint64(0xCD9E8D57) * counter[2]
        counter = [high(b) ^ counter[1] ^ k0, low(b), high(a) ^ counter[3] ^ k1, low(a)]
        k0, k1 = low(k0 + np.uint64(0x9E3779B9)), low(k1 + np.uint64(0xBB67AE85))
    return counter


@triton.jit
def philox_kernel(in_ptr, seed_ptr, out_ptr):
    a, b, c, d = tl.philox(tl.load(seed_ptr), tl.load(in_ptr), tl.load(in_ptr + 1), tl.load(in_ptr + 2),
                           tl.load(in_ptr + 3), 10)
    tl.store(out_ptr, a.to(tl.int64))
    tl.store(out_ptr + 1, b.to(tl.int64))
    tl.store(out_ptr + 2, c.to(tl.int64))
    tl.store(out_ptr + 3, d.to(tl.int64))


@pytest.mark.parametrize("counter,key,answer", [            # the published answers of Random123, philox4x32 with 10 rounds
    (4 * [0], 2 * [0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (4 * [0xFFFFFFFF], 2 * [0xFFFFFFFF], [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1])])
def test_the_generator_gives_the_published_answers(counter, key, answer):
    assert [int(x) for x in philox(counter, key, 10)] == answer
    counter = torch.tensor(np.array(counter, np.uint32).view(np.int32), device=device.DEVICE)
    seed = torch.tensor(np.array(key, np.uint32).view(np.int64), device=device.DEVICE)
    out = torch.zeros(4, dtype=torch.int64, device=device.DEVICE)
    philox_kernel[1,](counter, seed, out)
    assert out.tolist() == answer


@pytest.mark.parametrize("dropout_p,seed", [(0.1, 0), (0.5, 7), (0.9, 2**31 - 1)])
def test_the_mask_is_seven_rounds_of_the_generator(dropout_p, seed):
    bh, rows, keys = (x.ravel() for x in np.indices((6, 70, 90)))
    bits = philox((keys, rows, bh, 0 * bh), (seed, 0), 7)[0].astype(np.uint32).view(np.int32)
    uniform = np.where(bits < 0, ~bits, bits) / 2**31
    got = dropout_mask(2, 3, 70, 90, dropout_p, seed).cpu().numpy().ravel()
    decided = np.abs(uniform - dropout_p) > 1e-6         # the kernel compares in float32
    assert decided.mean() > 0.999 and np.array_equal(got[decided], (uniform >= dropout_p)[decided])


@pytest.mark.parametrize("dropout_p", [0.02, 0.5, 0.9])
def test_the_rate_of_dropout(dropout_p):
    keep = array(dropout_mask(2, 3, 128, 128, dropout_p, 3)).reshape(6, 128, 128)
    for axes in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):     # over all, and for each key, each query and each head
        n = np.prod([keep.shape[axis] for axis in axes])
        assert np.abs(keep.mean(axes) - (1 - dropout_p)).max() < 5 * np.sqrt(dropout_p * (1 - dropout_p) / n)


def test_heads_queries_keys_and_seeds_drop_independently():
    keep = array(dropout_mask(2, 2, 128, 128, 0.5, 3)).reshape(4, 128, 128)
    other = array(dropout_mask(2, 2, 128, 128, 0.5, 4)).reshape(4, 128, 128)
    for a, b in ((keep, other), (keep[:-1], keep[1:]), (keep[:, :-1], keep[:, 1:]), (keep[..., :-1], keep[..., 1:]),
                 (keep, keep.mT)):
        assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(a.size / 2)      # a pair may be counted twice


def test_the_mask_belongs_to_the_seed_and_the_place():
    keep = dropout_mask(1, 3, 70, 90, 0.3, 11)
    assert keep.dtype == torch.bool and torch.equal(keep, dropout_mask(1, 3, 70, 90, 0.3, 11))
    assert torch.equal(keep[:, :2, :33, :65], dropout_mask(1, 2, 33, 65, 0.3, 11))
    assert not torch.equal(keep, dropout_mask(1, 3, 70, 90, 0.3, 12))


@pytest.mark.parametrize("BLOCK_M,BLOCK_N", [(16, 16), (16, 64), (64, 32), (64, 64)])
def test_every_kernel_drops_the_same(BLOCK_M, BLOCK_N):
    """Equal scores and unit vectors for v and do: each probability can be read in the results."""
    N, D = 64, 64
    keep = dropout_mask(1, 2, N, N, 0.4, 9)
    zeros = torch.zeros(1, 2, N, D, device=device.DEVICE)
    unit = torch.eye(N, device=device.DEVICE).expand_as(zeros)
    o, _ = lesson.launch_v2(zeros, zeros, unit, False, 1.0, (0.4, 9), tiles=dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N))
    assert torch.allclose(o, keep / (0.6 * N))
    q, k, v = zeros.clone().requires_grad_(), unit.clone().requires_grad_(), torch.ones_like(zeros).requires_grad_()
    with backward_with((BLOCK_M, BLOCK_N), (BLOCK_M, BLOCK_N)):
        dq, dv = torch.autograd.grad(flash(q, k, v, scale=1.0, dropout_p=0.4, seed=9), (q, v), unit)
        q, k = unit.clone().requires_grad_(), zeros.clone().requires_grad_()
        dk, = torch.autograd.grad(flash(q, k, v, scale=1.0, dropout_p=0.4, seed=9), k, unit)
    assert torch.allclose(dv.mT, keep / (0.6 * N))
    ds = (keep / 0.6 - keep.float().mean(-1, keepdim=True) / 0.6) / N           # dp is 1 everywhere
    assert torch.allclose(dq, ds, atol=1e-6) and torch.allclose(dk.mT, ds, atol=1e-6)


@DTYPES
@CAUSAL
def test_dropout_agrees_with_the_reference(is_causal, dtype):
    tensors, do = inputs(2, 4, 2, 50, 70, 24, dtype)
    keep = array(dropout_mask(2, 4, 50, 70, 0.25, 21)) / 0.75
    got = forward_and_backward(tensors, do, is_causal=is_causal, dropout_p=0.25, seed=21)
    close(got, wanted(tensors, do, is_causal=is_causal, keep=keep), BOUNDS[dtype])


def test_almost_everything_dropped():
    tensors, do = inputs(1, 1, 1, 20, 20, 16)
    for dropout_p in (0.999, 1 - 2**-24):                # more is 1 in float32, and refused
        assert all(torch.isfinite(x).all() for x in forward_and_backward(tensors, do, dropout_p=dropout_p, seed=0))


def test_no_dropout_is_no_dropout():
    tensors, do = inputs(1, 2, 2, 40, 40, 16)
    state = torch.get_rng_state()
    plain = forward_and_backward(tensors, do)
    assert torch.equal(torch.get_rng_state(), state)     # nothing was drawn
    assert all(map(torch.equal, plain, forward_and_backward(tensors, do, dropout_p=0.0, seed=4)))
    assert torch.equal(plain[0], lesson.v2.flash_attention_v2(*(x.detach() for x in tensors)))


def test_a_seed_is_drawn_from_torch():
    tensors, do = inputs(1, 1, 1, 40, 40, 16)
    torch.manual_seed(5)
    first, second = (forward_and_backward(tensors, do, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(5)
    assert all(map(torch.equal, forward_and_backward(tensors, do, dropout_p=0.5), first))
    assert not torch.equal(first[0], second[0])


def test_dropout_keeps_the_expectation():
    tensors, do = inputs(1, 1, 1, 8, 8, 4)
    many, do = [x.detach().expand(4, 4, -1, -1).clone().requires_grad_() for x in tensors], do.expand(4, 4, -1, -1)
    runs = [forward_and_backward(many, do, dropout_p=0.3, seed=seed) for seed in range(5)]
    want = wanted(tensors, do[:1, :1])
    for i, name in ((0, "o"), (2, "dq"), (3, "dk"), (4, "dv")):
        samples = np.concatenate([array(run[i]).reshape(16, 8, 4) for run in runs])
        error = np.abs(samples.mean(0) - want[i][0, 0])
        assert (error <= 5 * samples.std(0) / np.sqrt(len(samples)) + 1e-6).all(), name


# ---------------------------------------------------------------- refusals and memory

@pytest.mark.parametrize("change,error_type,message", [
    (lambda q, k, v: (q[0], k, v), ValueError, r"q has 3 dimensions, shape \[8, 10, 16\]"),
    (lambda q, k, v: (q, k, v[:, :, :5]), ValueError, r"v has shape \[1, 2, 5, 16\], k has \[1, 2, 10, 16\]"),
    (lambda q, k, v: (q[:, :3], k, v), ValueError, "k has 2 heads, which does not divide the 3 heads of q"),
    (lambda q, k, v: (q, k.half(), v), TypeError, "k is torch.float16, q is torch.float32"),
    (lambda q, k, v: (q.double(), k.double(), v.double()), TypeError, "no kernel for torch.float64"),
    (lambda q, k, v: (q, k, v.detach().cpu().numpy()), TypeError, "v is a ndarray"),
    (lambda q, k, v: [x.new_zeros(1, 1, 4, 257) for x in (q, k, v)], ValueError, "D = 257"),
    (lambda q, k, v: [x[..., :0] for x in (q, k, v)], ValueError, "D = 0"),
])
def test_refuses_tensors(change, error_type, message):
    with pytest.raises(error_type, match=message):
        flash(*change(*inputs(1, 8, 2, 10, 10, 16)[0]), enable_gqa=True)


def test_groups_are_asked_for():
    with pytest.raises(ValueError, match="pass enable_gqa=True"):
        flash(*inputs(1, 8, 2, 10, 10, 16)[0])


@pytest.mark.parametrize("options,message", [
    (dict(dropout_p=1.0), "dropout_p is 1.0"), (dict(dropout_p=-0.1), "dropout_p is -0.1"),
    (dict(dropout_p=float("nan")), "dropout_p is nan"), (dict(dropout_p="0.1"), "dropout_p is .*0.1"),
    (dict(dropout_p=0.1, seed=-1), "seed is -1"), (dict(dropout_p=0.1, seed=2**31), "seed is 2147483648"),
    (dict(dropout_p=0.1, seed=1.5), "seed is 1.5"),
])
def test_refuses_options(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        flash(*inputs(1, 1, 1, 10, 10, 16)[0], **options)


@pytest.mark.parametrize("loss", [
    lambda dq, dk, q: dq.sum(), lambda dq, dk, q: (q**3).sum() + (dk**2).sum(), lambda dq, dk, q: (q * dq).sum()],
    ids=["alone", "another term", "a product"])
@pytest.mark.parametrize("through_lse", [False, True])
def test_no_second_derivative(loss, through_lse):
    (q, k, v), do = inputs(1, 1, 1, 16, 16, 16)
    o, lse = flash(q, k, v, return_lse=True)
    first = (lse**2).sum() if through_lse else (o * do).sum()
    dq, dk = torch.autograd.grad(first, (q, k), create_graph=True)
    with pytest.raises(NotImplementedError, match="flash_attention has no second derivatives"):
        loss(dq, dk, q).backward()


@pytest.mark.parametrize("dtype,dropout_p", [(torch.float32, 0.0), (torch.float16, 0.0), (torch.float16, 0.5)])
def test_what_is_kept_grows_linearly(dtype, dropout_p):
    def kept_bytes(N):
        tensors, seen = inputs(1, 2, 1, N, N, 16, dtype)[0], {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.setdefault(x.data_ptr(), x), lambda x: x):
            flash(*tensors, enable_gqa=True, dropout_p=dropout_p)
        return sum(x.untyped_storage().nbytes() for x in seen.values())
    row = (2 * 2 + 2) * 16 * dtype.itemsize + 2 * 4      # q and o of two heads, k and v of one; lse of two
    assert [kept_bytes(N) for N in (32, 64, 128)] == [32 * row, 64 * row, 128 * row]


@pytest.mark.skipif(device.INTERPRETED, reason="torch counts the memory of a GPU")
def test_peak_memory_grows_linearly():
    def peak(N):
        tensors, do = inputs(1, 1, 1, N, N, 64, torch.float16)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        flash(*tensors, is_causal=True).backward(do)
        return torch.cuda.max_memory_allocated() - before
    peak(64)                                             # what the first launch allocates once
    assert peak(32768) <= 2.1 * peak(16384) <= 2.1 * 16384 * 64 * 2 * 8


# ---------------------------------------------------------------- what the kernels compile to

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
CASES = [(name, dtype, D, capability, DROPOUT) for capability in SHARED for name, dtype, D, DROPOUT in (
    *((name, dtype, D, False) for name in ("dkdv", "dq")
      for dtype, D in (("fp16", 64), ("fp16", 128), ("fp16", 256), ("bf16", 80), ("fp32", 64), ("fp32", 256))),
    ("dkdv", "fp16", 64, True), ("dq", "fp16", 64, True), ("delta", "fp16", 64, False), ("delta", "fp16", 256, False))]
def request(name, dtype, D, capability, DROPOUT):
    dkdv, dq = lesson.backward_tiles(D, TYPES[dtype], capability)
    tiles = dict(dkdv) if name == "dkdv" else dict(dq)
    launch = {option: tiles.pop(option) for option in ("num_warps", "num_stages")}
    strides = [16 * 4096 * D, 4096 * D, D, 1]
    if name == "delta":
        launch, tiles = dict(num_warps=4, num_stages=3), dict(BLOCK_M=32, BLOCK_D=tiles["BLOCK_D"])
        pointers = dict(o_ptr="*" + dtype, do_ptr="*" + dtype, dlse_ptr="*fp32", delta_ptr="*fp32")
        rest = dict(o_strides=strides, do_strides=strides, heads=16, N_q=4096, D=D)
    else:
        outputs = ["dk", "dv"] if name == "dkdv" else ["dq"]
        pointers = {f"{x}_ptr": "*" + dtype for x in ["q", "k", "v", "do", *outputs]} | dict(lse_ptr="*fp32", delta_ptr="*fp32")
        rest = {f"{x}_strides": strides for x in ["q", "k", "v", "do", outputs[0]]}
        rest |= dict(heads=16, group=1, N_q=4096, N_k=4096, scale=0.1, dropout=[0.0, 16], D=D, IS_CAUSAL=True,
                     DROPOUT=DROPOUT, DOT=dtype)
    return dict(lesson="backward_triton", kernel=f"flash_attention_{name}_kernel", arguments={**pointers, **rest, **tiles},
                capability=capability, **launch)


@pytest.fixture(scope="module")
def compiled():
    return dict(zip(CASES, compiled.compile_kernels([request(*case) for case in CASES]), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_compiles_without_spills(compiled, case):
    name, dtype, _, capability, DROPOUT = case
    if not triton.__version__.startswith("3.6."):        # older ones spill up to 72 bytes at D = 64
        assert compiled[case]["stack"] <= (16 if DROPOUT else 0)    # the random numbers cost registers
    assert compiled[case]["shared"] <= SHARED[capability]
    matrix_unit = re.search(r"\b(HMMA|HGMMA|UTCHMMA)\b", compiled[case]["sass"])
    assert bool(matrix_unit) == (dtype != "fp32" and name != "delta")


def test_compiles_with_features_that_are_not_side_by_side():
    made = request("dkdv", "fp16", 64, 90, False)
    made["arguments"] |= {f"{name}_strides": [16 * 4096 * 64, 4096 * 64, 1, 4096] for name in ("q", "k", "v", "do")}
    assert compiled.compile_kernel(**made)["registers"] > 0
