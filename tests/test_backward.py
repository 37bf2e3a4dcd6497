"""Attention's gradients: every property, and what autograd may ask for."""
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from attention import (BOUNDS, FLASH, V3, V4, array, backward_with, causal_or_not, check_grads, close_grads, differentiable,
                       each_empty_shape, each_type, each_value, grads, half_types, inputs, leaves, quarters, quietly,
                       same, spoilt, wanted)
from helpers import reference
from helpers.check.core import poisoned, unwritten
from helpers.lessons import backward_triton
from helpers.lessons.backward_triton import dropout_mask, flash_attention as flash


# ---------------------------------------------------------------- agreement with float64

@each_type
@causal_or_not
@pytest.mark.parametrize("N_q,N_k", [(1, 1), (17, 17), (130, 70), (70, 130), (1, 113), (5, 0)])
def test_any_length(N_q, N_k, is_causal, dtype):
    check_grads(FLASH, (1, 1, 1, N_q, N_k, 16), dtype=dtype, is_causal=is_causal)


@each_type
@pytest.mark.parametrize("D", [1, 7, 16, 40, 64, 128, 256])
def test_any_head_dimension(D, dtype):
    check_grads(FLASH, (1, 1, 1, 50, 70, D), dtype=dtype, is_causal=True)


@causal_or_not
@pytest.mark.parametrize("heads,kv_heads", [(2, 2), (4, 2), (6, 2), (4, 1)])
def test_batches_and_groups(heads, kv_heads, is_causal):
    check_grads(FLASH, (2, heads, kv_heads, 20, 36, 7), is_causal=is_causal)


@each_type
def test_groups_in_every_type(dtype):
    check_grads(FLASH, (1, 6, 2, 20, 36, 64), dtype=dtype, is_causal=True)


@half_types                                              # for float32 they are flash_attention, bit for bit
@pytest.mark.parametrize("attention", [V3, V4], ids=lambda x: x.name)
@pytest.mark.parametrize("shape", [(1, 4, 2, 50, 70, 40), (1, 2, 1, 130, 70, 64), (2, 1, 1, 40, 40, 7),
                                   (1, 2, 2, 5, 0, 16)])
def test_versions_with_another_forward_pass(attention, shape, dtype):
    for is_causal in (False, True):
        check_grads(attention, shape, dtype=dtype, is_causal=is_causal)


BLOCKS = st.tuples(st.sampled_from([16, 32, 64]), st.sampled_from([16, 32, 64]))


@settings(max_examples=12, deadline=None)
@given(N_q=st.integers(0, 80), N_k=st.integers(0, 80), D=st.integers(1, 32), is_causal=st.booleans(),
       scale=st.floats(-2, 2), dkdv=BLOCKS, dq=BLOCKS, groups=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
       dropout_p=st.sampled_from([0.0, 0.0, 0.3]), seed=st.integers(0, 99))
def test_any_call(N_q, N_k, D, is_causal, scale, dkdv, dq, groups, dropout_p, seed):
    *tensors, do = inputs(1, *groups, N_q, N_k, D, seed=seed, more=1)
    options = dict(is_causal=is_causal, scale=scale)
    keep = array(dropout_mask(1, groups[0], N_q, N_k, dropout_p, seed)) / (1 - dropout_p)
    with backward_with(dkdv, dq):
        got = grads(FLASH, tensors, do, dropout_p=dropout_p, seed=seed, **options)
    norms = [x.norm(dim=-1).amax().item() if x.numel() else 0.0 for x in (*tensors, do)]
    largest = abs(scale) * norms[0] * norms[1]           # a score's rounding is a share of it,
    reach = max(1, norms[2] * norms[3] * max(1, abs(scale) * max(norms[:2])))  # and moves a gradient by a share of this
    close_grads(got, wanted(tensors, do, keep=keep, **options), (2e-6 + 1e-6 * largest) * reach, 1e-4)


@pytest.mark.parametrize("scale", [-0.7, 0.0, -5e-324, 5e-324])
def test_negative_and_zero_scale(scale):
    check_grads(FLASH, (1, 2, 1, 40, 50, 16), is_causal=True, scale=scale)


@causal_or_not
@pytest.mark.parametrize("scale", [100, 1e4])
def test_large_logits(scale, is_causal):
    *tensors, do = inputs(1, 1, 1, 60, 60, 16, more=1)
    tensors, options = quarters(tensors), dict(scale=scale, is_causal=is_causal)
    got, want = grads(FLASH, tensors, do, **options), wanted(tensors, do, **options)
    assert all(torch.isfinite(x).all() for x in got)
    for name, x, exact in zip(("o", "lse", "dq", "dk", "dv"), got, want):
        share, least = dict(o=(1e-3, 1), lse=(1e-5, 1)).get(name, (1e-2, scale))       # 1e5 has 7 digits, too
        assert np.abs(array(x) - exact).max() <= share * max(least, np.abs(exact).max()), name


@each_type
@causal_or_not
def test_no_worse_than_twice_pytorch(is_causal, dtype):
    tensors, do = leaves(1, 2, 2, 150, 150, 64, dtype=dtype)                   # of one head PyTorch is more exact on a GPU
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
    seen = torch.ones_like(s, dtype=torch.bool).tril(s.shape[-1] - s.shape[-2])
    return (s.masked_fill(~seen, -torch.inf) if is_causal else s).logsumexp(-1)


@causal_or_not
@pytest.mark.parametrize("loss", [lambda o, lse: lse.sum(), lambda o, lse: (lse**2).sum(),
                                  lambda o, lse: (o**2).sum() + (lse * torch.arange(40, device=lse.device)).mean(),
                                  lambda o, lse: (o.sum(-1) * lse.mT.mT).sum()],
                         ids=["sum", "square", "both", "product"])
def test_gradient_through_lse(loss, is_causal):
    tensors, _ = leaves(1, 2, 2, 40, 50, 16)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    want = torch.autograd.grad(loss(reference.torch_attention(*exact, is_causal=is_causal),
                                    torch_lse(*exact[:2], is_causal)), exact, allow_unused=True)
    got = torch.autograd.grad(loss(*flash(*tensors, is_causal=is_causal, return_lse=True)), tensors)
    for x, y in zip(got, want):
        assert torch.allclose(x.double(), torch.zeros_like(x).double() if y is None else y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_some_inputs_need_a_gradient(chosen):
    tensors, do = leaves(1, 1, 1, 20, 20, 16)
    want = torch.autograd.grad(flash(*tensors), tensors, do)
    some = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(tensors)]
    flash(*some).backward(do)
    for i, x in enumerate(some):
        assert x.grad is None if i not in chosen else torch.equal(x.grad, want[i])


def test_a_gradient_that_is_one_number():
    tensors, do = leaves(1, 2, 2, 40, 40, 16)
    want = torch.autograd.grad(flash(*tensors), tensors, torch.ones_like(do))
    for x, y in zip(torch.autograd.grad(flash(*tensors).sum(), tensors), want):      # do has strides of 0
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_strided_views():
    *tensors, do = inputs(2, 2, 2, 20, 40, 24, more=1)
    want = grads(FLASH, tensors, do, is_causal=True)
    for view in (lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
                 lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
                 lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2]):
        for x, y in zip(grads(FLASH, [view(x) for x in tensors], view(do), is_causal=True), want):
            same(x, y)
    expanded = [x.requires_grad_()[:1].expand(2, -1, -1, -1) for x in tensors]
    dq = torch.autograd.grad(flash(*expanded, is_causal=True), tensors, do[:1].expand_as(do))[0]
    same(dq[0], 2 * want[2][0])
    assert (dq[1] == 0).all()


def test_one_tensor_three_times():
    (x, _, _), do = leaves(1, 2, 2, 40, 40, 16)
    got, = torch.autograd.grad(flash(x, x, x, is_causal=True), x, do)
    assert np.abs(array(got) - sum(reference.attention_grads(x, x, x, do, is_causal=True))).max() < 1e-5


@pytest.mark.parametrize("fn", [flash, reference.torch_attention])
def test_a_gradient_that_is_yet_to_be_negated(fn):
    """The gradient of a number that was conjugated is a view of what has the other sign."""
    tensors, do = leaves(1, 1, 1, 20, 20, 16)
    conjugate = torch.complex(torch.zeros_like(do), fn(*tensors)).conj()
    got = torch.autograd.grad((conjugate * 1j * do).real.sum(), tensors)
    for x, exact in zip(got, reference.attention_grads(*tensors, do)):
        assert np.abs(array(x) - exact).max() < 1e-5


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_inside_of_a_compiled_function(backend):
    tensors, do = leaves(1, 2, 2, 20, 20, 16)
    o = torch.compile(lambda *x: 2 * flash(*x, is_causal=True), backend=backend)(*tensors)
    assert np.abs(array(o) / 2 - reference.attention(*tensors, is_causal=True)).max() < 1e-5
    for x, exact in zip(torch.autograd.grad(o, tensors, do / 2),
                        reference.attention_grads(*tensors, do, is_causal=True)):
        assert np.abs(array(x) - exact).max() < 1e-5


def test_gradients_accumulate():
    tensors, do = leaves(1, 1, 1, 20, 20, 16)
    for _ in range(2):
        flash(*tensors).backward(do)
    assert all(torch.equal(x.grad, 2 * dx) for x, dx in zip(tensors, torch.autograd.grad(flash(*tensors), tensors, do)))


@differentiable
def test_without_gradients(attention):
    tensors, _ = leaves(1, 1, 1, 20, 20, 16)
    with torch.no_grad():
        assert not attention(*tensors).requires_grad
    assert not attention(*(x.detach() for x in tensors)).requires_grad and attention(*tensors).requires_grad


def test_an_input_changed_between_the_passes():
    tensors, do = leaves(1, 1, 1, 20, 20, 16)
    o = flash(*tensors)
    with torch.no_grad():
        tensors[1].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.backward(do)


@differentiable
@pytest.mark.parametrize("through_lse", [False, True])
@pytest.mark.parametrize("loss", [
    lambda dq, dk, q: dq.sum(), lambda dq, dk, q: (q**3).sum() + (dk**2).sum(), lambda dq, dk, q: (q * dq).sum()],
    ids=["alone", "another term", "a product"])
def test_no_second_derivative(attention, loss, through_lse):
    (q, k, v), do = leaves(1, 1, 1, 16, 16, 16)
    o, lse = attention(q, k, v, return_lse=True)
    first = (lse**2).sum() if through_lse else (o * do).sum()
    dq, dk = torch.autograd.grad(first, (q, k), create_graph=True)
    with pytest.raises(NotImplementedError, match="flash_attention has no second derivatives"):
        loss(dq, dk, q).backward()


# ---------------------------------------------------------------- the edges

@each_empty_shape
def test_nothing_to_do(shape):
    check_grads(FLASH, shape)


def test_nobody_looks_nothing_moves():
    *tensors, do = inputs(1, 2, 1, 70, 40, 16, more=1)
    o, lse, dq, _, _ = grads(FLASH, tensors, do, is_causal=True)
    assert (dq[:, :, :30] == 0).all() and (dq[:, :, 31:] != 0).any(-1).all() and (lse[:, :, :30] == -torch.inf).all()
    do[:, :, 40:] = 0                                    # only the first ten queries that see something count: ten keys
    _, _, _, dk, dv = grads(FLASH, tensors, do, is_causal=True)
    assert (dk[:, :, 10:] == 0).all() and (dv[:, :, 10:] == 0).all() and (dv[:, :, :10] != 0).any(-1).all()


@quietly
@pytest.mark.parametrize("spoil", ["lse", "q and do"])
@pytest.mark.parametrize("N_q,N_k", [(6, 3), (70, 40), (40, 7)])
def test_a_query_that_sees_no_key_takes_no_gradient(N_q, N_k, spoil):
    """The logarithm of a sum of two empty parts has NaN for a gradient, and it stays with that query."""
    tensors, do = leaves(1, 2, 1, N_q, N_k, 16)
    blind = N_q - N_k
    if spoil == "q and do":
        with torch.no_grad():
            tensors[0][:, :, :blind] = do[:, :, :blind] = float("nan")
    o, lse = flash(*tensors, is_causal=True, enable_gqa=True, return_lse=True)
    both = torch.logsumexp(torch.stack([lse, lse - 1]), 0).sum() if spoil == "lse" else lse[:, :, blind:].sum()
    dq, dk, dv = torch.autograd.grad([o, both], tensors, [do, torch.ones_like(both)])
    q, k, v = (x.detach().double() for x in tensors)
    seeing = [x.requires_grad_() for x in (q[:, :, blind:], k.expand(-1, 2, -1, -1), v.expand(-1, 2, -1, -1))]
    loss = (reference.torch_attention(*seeing, is_causal=True) * do[:, :, blind:]).sum()
    want = torch.autograd.grad(loss + torch_lse(*seeing[:2], True).sum(), seeing)
    assert (dq[:, :, :blind] == 0).all()
    for x, exact in ((dq[:, :, blind:], want[0]), (dk, want[1].sum(1, True)), (dv, want[2].sum(1, True))):
        assert (x.double() - exact).abs().max() < 1e-5


@each_type
@pytest.mark.parametrize("logit", [1e3, 1e5, 1e6, 1e8])
def test_gradients_of_enormous_logits(logit, dtype):
    """Where one key has all the weight: as near as flash_attention says, 2^-22 of the logit, and finite always."""
    q, k, v, do = inputs(1, 1, 1, 40, 40, 16, dtype, more=1)
    q[..., 0], k[..., 0] = q[..., 0].abs() + 1, 0
    q[..., 1:], k[..., 1:], k[:, :, 7, 0] = 0, 0, 4
    scale = logit / (4 * q[..., 0].float().amax().item())
    found = grads(FLASH, [q, k, v], do, scale=scale)
    want = reference.attention_grads(q, k, v, do, scale=scale)[2]
    assert all(torch.isfinite(x).all() for x in found[:2] + found[4:])
    if logit <= 1e6:
        share = max(2 * BOUNDS[dtype], 2**-22 * logit)
        assert np.abs(array(found[4]) - want).max() <= share * np.abs(want).max()


@causal_or_not
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_every_element_is_written(is_causal, dropout_p):
    *tensors, do = inputs(1, 2, 1, 50, 36, 24, more=1)
    with poisoned():
        made = grads(FLASH, tensors, do, is_causal=is_causal, dropout_p=dropout_p, seed=0)
        assert not any(map(unwritten, made))


@each_type
def test_is_deterministic(dtype):
    *tensors, do = inputs(1, 2, 1, 70, 70, 32, dtype, more=1)
    options = dict(is_causal=True, dropout_p=0.1, seed=5)
    assert all(map(torch.equal, grads(FLASH, tensors, do, **options), grads(FLASH, tensors, do, **options)))


# ---------------------------------------------------------------- NaN and inf

NAMES = ("q", "k", "v", "do")


@quietly
@each_value
@pytest.mark.parametrize("which", range(4), ids=NAMES)
def test_nan_and_inf_come_out_as_from_the_reference(which, value):
    *tensors, do = spoilt(inputs(1, 1, 1, 70, 70, 16, more=1), which, (50, 3), value)
    found = map(array, grads(FLASH, tensors, do))
    for name, x, want in zip(("o", "lse", "dq", "dk", "dv"), found, wanted(tensors, do)):
        np.testing.assert_array_equal(np.isfinite(x), np.isfinite(want), err_msg=name)
        # an infinite do: inf - inf is in the reference's delta, not in rowsum(do * o): some of its NaN are inf here
        alike = np.isfinite(want) | (NAMES[which] != "do")
        np.testing.assert_allclose(x[alike], want[alike], atol=2e-5, rtol=2e-5, err_msg=name)


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
@each_value
@pytest.mark.parametrize("which", range(4), ids=NAMES)
def test_causal_nan_and_inf(which, value):
    """Wherever mathematics has one there is one; elsewhere at most where the reference has one too, from 0 * NaN."""
    *tensors, do = spoilt(inputs(1, 1, 1, 70, 70, 16, more=1), which, (50, 3), value)
    got = [array(x) for x in grads(FLASH, tensors, do, is_causal=True)[2:]]
    for name, x, least, most in zip(("dq", "dk", "dv"), got, only_what_is_seen(tensors, do),
                                    reference.attention_grads(*tensors, do, is_causal=True)):
        assert not (~np.isfinite(least) & np.isfinite(x)).any(), f"{name}: lost"
        assert not (~np.isfinite(x) & np.isfinite(most)).any(), f"{name}: gained"
        np.testing.assert_allclose(np.where(np.isfinite(x), x, 0), np.where(np.isfinite(x), least, 0), atol=2e-5)


@quietly
def test_the_future_does_not_leak_across_tiles():
    tensors, do = leaves(1, 1, 1, 128, 128, 16)
    with torch.no_grad():
        tensors[1][:, :, 64:] = tensors[2][:, :, 64:] = float("nan")
    with backward_with((32, 32), (32, 32)):
        dq = torch.autograd.grad(flash(*tensors, is_causal=True), tensors, do)[0]
    assert torch.isfinite(dq[:, :, :64]).all() and not torch.isfinite(dq[:, :, 64:]).any()


# ---------------------------------------------------------------- memory

@pytest.mark.parametrize("dtype,dropout_p", [(torch.float32, 0.0), (torch.float16, 0.0), (torch.float16, 0.5)])
def test_what_is_kept_grows_linearly(dtype, dropout_p):
    def kept_bytes(N):
        tensors, seen = leaves(1, 2, 1, N, N, 16, dtype=dtype)[0], {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.setdefault(x.data_ptr(), x), lambda x: x):
            flash(*tensors, enable_gqa=True, dropout_p=dropout_p)
        return sum(x.untyped_storage().nbytes() for x in seen.values())
    row = (2 * 2 + 2) * 16 * dtype.itemsize + 2 * 4      # q and o of two heads, k and v of one; lse of two
    assert [kept_bytes(N) for N in (32, 64, 128)] == [32 * row, 64 * row, 128 * row]


@pytest.mark.gpu
def test_peak_memory_grows_linearly():
    def peak(N):
        tensors, do = leaves(1, 1, 1, N, N, 64, dtype=torch.float16)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        flash(*tensors, is_causal=True).backward(do)
        return torch.cuda.max_memory_allocated() - before
    peak(64)                                             # what the first launch allocates once
    assert peak(32768) <= 2.1 * peak(16384) <= 2.1 * 16384 * 64 * 2 * 8


# ---------------------------------------------------------------- test_op, which a reader calls

WRONG = {
    "no mask": lambda q, k, v, is_causal: flash(q, k, v),
    "another scale": lambda q, k, v, is_causal: flash(q, k, v, is_causal=is_causal, scale=0.2),
    "NaN": lambda q, k, v, is_causal: flash(q, k, v, is_causal=is_causal) * float("nan"),
    "no gradient of k": lambda q, k, v, is_causal: flash(q, k.detach() + 0 * k, v, is_causal=is_causal)}


@pytest.mark.parametrize("sizes,fn", [((1, 1, 1, 1, True), ""), ((2, 3, 37, 20, False), ""), ((1, 2, 65, 64, True), ""),
                                      *(((1, 2, 37, 20, True), fault) for fault in WRONG)])
def test_test_op(sizes, fn, capsys):
    with mock.patch.object(backward_triton, "flash_attention", WRONG.get(fn, flash)):
        backward_triton.test_op(**dict(zip(("BATCH_SIZE", "NUM_HEADS", "SEQ_LEN", "HEAD_DIM", "causal"), sizes)))
    answers = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert ("False" in answers) == bool(fn) and len(answers) == 4
