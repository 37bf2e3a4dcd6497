"""The backward pass in one walk: in plain Triton, and v4's kernel, in the simulator and on a Hopper GPU."""
import functools
from unittest import mock

import numpy as np
import pytest
import torch

from attention import BOUNDS, VIEWS, array, causal_or_not, inputs, nan_in_new_memory
import rings
from helpers import device, reference, simulator
from helpers.lessons import backward_hopper, backward_triton, warp_specialization
from helpers.lessons.causal_and_multihead import launch_v2
from test_simulator import mutants

hopper = pytest.mark.gpu(9)
simulated = pytest.mark.skipif(not device.INTERPRETED, reason="kernels around the simulated one are interpreted")
ALL = (True, True, True)


def saved(tensors, is_causal, scale):
    """What the backward pass is called with, up to scale: q, k, v, o, lse, do, dlse."""
    *qkv, do = tensors
    o, lse = launch_v2(*qkv, is_causal, scale)
    generator = torch.Generator().manual_seed(2)
    return *qkv, o, lse, do, torch.randn(lse.shape, generator=generator).to(lse.device)


def wanted(arguments, is_causal, scale):
    """dq, dk, dv in float64, the gradient through lse included."""
    q, k, v, _, lse, do, dlse = arguments
    base = reference.attention_grads(q, k, v, do, is_causal=is_causal, scale=scale)
    heads, dlse = k.shape[1], np.where(np.isfinite(array(lse)), array(dlse), 0)
    q, k = (array(x) for x in (q, k))
    group = q.shape[1] // heads
    k_all = k.repeat(group, 1)
    s = scale * q @ k_all.swapaxes(2, 3)
    if is_causal:
        s = np.where(np.tri(*s.shape[2:], s.shape[3] - s.shape[2], dtype=bool), s, -np.inf)
    with np.errstate(invalid="ignore"):
        p = np.nan_to_num(np.exp(s - s.max(axis=3, keepdims=True)))
    ds = scale * dlse[..., None] * p / np.maximum(p.sum(axis=3, keepdims=True), 1e-300)
    dk = (ds.swapaxes(2, 3) @ q).reshape(k.shape[0], heads, group, *k.shape[2:]).sum(axis=2)
    return base[0] + ds @ k_all, base[1] + dk, base[2]


def check(fn, shape, is_causal, dtype, views=lambda x: x, scale=None):
    """fn(*arguments, is_causal, scale) is right, and writes every element."""
    scale = scale or shape[-1]**-0.5
    arguments = saved(inputs(*shape, dtype, more=1), is_causal, scale)
    seen = [views(x) if i in (0, 1, 2, 5) else x for i, x in enumerate(arguments)]
    with nan_in_new_memory():
        got = fn(*seen, is_causal, scale)
    for name, x, exact in zip(("dq", "dk", "dv"), got, wanted(arguments, is_causal, scale), strict=True):
        assert x.dtype == dtype and x.shape == exact.shape
        assert np.abs(array(x) - exact).max() <= BOUNDS[dtype] * max(1, np.abs(exact).max()), name


def v4(*arguments):
    """backward_v4, by its kernel however short the sequence is."""
    with (mock.patch.object(backward_hopper, "LEAST", 1),
          mock.patch.object(backward_hopper, "attention_backward", side_effect=AssertionError("another kernel's"))):
        return backward_hopper.backward_v4(*arguments, (0.0, 0), ALL)


# ---------------------------------------------------------------- plain Triton

@causal_or_not
@pytest.mark.parametrize("shape,dtype", [((2, 4, 2, 150, 70, 16), torch.float16), ((1, 1, 1, 70, 150, 40), torch.float32),
                                         ((1, 2, 1, 20, 33, 128), torch.bfloat16)])
def test_one_walk(shape, dtype, is_causal):
    check(backward_hopper.one_walk, shape, is_causal, dtype)


# ---------------------------------------------------------------- v4's kernel

@simulated
@pytest.mark.parametrize("shape,is_causal,dtype", [((1, 4, 2, 200, 130, 64), True, torch.float16),
                                                   ((2, 1, 1, 70, 150, 128), False, torch.bfloat16),
                                                   ((1, 1, 1, 100, 300, 40), True, torch.float16),
                                                   ((1, 4, 2, 100, 130, 256), True, torch.float16),
                                                   ((2, 1, 1, 70, 150, 160), False, torch.bfloat16),
                                                   ((1, 1, 1, 130, 70, 192), True, torch.float16)])
def test_in_the_simulator(shape, is_causal, dtype):
    check(v4, shape, is_causal, dtype)


@simulated
@pytest.mark.parametrize("D", [128, 256])
def test_in_any_order_of_events(D):
    arguments = saved(inputs(1, 2, 1, 200, 130, D, torch.float16, more=1), True, 0.1)
    assert simulator.schedules(lambda: v4(*arguments, True, 0.1)) is None


@functools.cache
def walk_problem(D):
    """q, k, v, do, stats of one head, and dq, dk, dv."""
    generator = torch.Generator().manual_seed(3)
    q, do = torch.randn(2, 1, 1, 300, D, generator=generator).half()
    k, v = torch.randn(2, 1, 1, 50, D, generator=generator).half()
    o, lse = map(torch.tensor, reference.attention(q, k, v, return_lse=True))
    stats = torch.zeros(1, 1, 2, 320)
    stats[:, :, 0] = torch.inf
    stats[..., 0, :300], stats[..., 1, :300] = lse / np.log(2), (do * o).sum(3)
    return (q, k, v, do, stats), reference.attention_grads(q, k, v, do)


def walked(lesson, D):
    """Whether a module's kernel gets dq, dk and dv of five blocks of queries right, in the simulator."""
    given, want = walk_problem(D)
    dq, dk, dv = got = [torch.full(x.shape, torch.nan) for x in want]
    dq.zero_()
    lesson.walk(*given, dq, dk, dv, False, D**-0.5)
    dq *= D**-0.5
    return all(np.abs(array(x) - y).max() < 2e-3 for x, y in zip(got, want))


WALKS = [functools.partial(walked, D=D) for D in (128, 256)]           # p and ds in registers, or in shared memory


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_is_right(walk):
    assert walk(backward_hopper)


@pytest.mark.parametrize("what,source", [*mutants("backward_hopper")], ids=lambda x: x if len(x) < 200 else "")
def test_a_mutant_of_the_kernel_is_named_and_never_just_wrong(what, source):
    runs = [(seed, walk) for walk in WALKS for seed in (None, 1)]
    rings.is_named_or_harmless(rings.module(source), runs, False)


@hopper
@causal_or_not
@pytest.mark.parametrize("D,dtype", [(8, torch.bfloat16), (64, torch.float16), (72, torch.float16), (128, torch.bfloat16),
                                     (192, torch.bfloat16), (256, torch.float16)])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 4, 2, 300, 256), (1, 3, 3, 129, 384), (1, 4, 1, 50, 630),
                                   (1, 2, 1, 630, 50), (1, 2, 2, 777, 1300), (3, 8, 2, 1300, 777)])
def test_agrees_with_float64(sizes, D, is_causal, dtype):
    check(v4, (*sizes, D), is_causal, dtype)


@hopper
@pytest.mark.parametrize("view", VIEWS)
def test_any_layout(view):
    """What descriptors do not take is for the older kernels; do is copied."""
    make, described = VIEWS[view]
    call = v4 if described else lambda *a: backward_hopper.backward_v4(*a, (0.0, 0), ALL)
    check(call, (2, 2, 2, 150, 160, 64), True, torch.float16, make)


@hopper
@causal_or_not
@pytest.mark.parametrize("D", [64, 128, 256])
def test_very_low_scores_beyond_the_end(D, is_causal):
    q, k, v, do = inputs(1, 1, 1, 200, 200, D, torch.float16, more=1)
    got = v4(*saved((q.abs() * 4, -k.abs() * 4, v, do), is_causal, 1.0), is_causal, 1.0)
    assert all(torch.isfinite(x).all() for x in got)


@hopper
@causal_or_not
@pytest.mark.parametrize("D", [64, 128, 256])
def test_dk_and_dv_have_the_same_bits_each_time_and_dq_nearly(D, is_causal):
    arguments = saved(inputs(8, 4, 2, 700, 700, D, torch.float16, more=1), is_causal, D**-0.5)
    dq, *others = v4(*arguments, is_causal, D**-0.5)
    for _ in range(50):
        with nan_in_new_memory():
            again, *rest = v4(*arguments, is_causal, D**-0.5)
        assert all(map(torch.equal, rest, others))
        assert (again - dq).abs().max() <= 2**-10 * dq.abs().max()


# ---------------------------------------------------------------- who serves

def calls(**changes):
    """Whether the fused kernel is asked, for usual arguments with these changes."""
    made = dict(D=64, dtype=torch.float16, scale=0.1, dropout=(0.0, 0), needed=ALL, view=lambda x: x) | changes
    q, k, v, do = inputs(1, 2, 1, 20, 30, made["D"], made["dtype"], more=1)
    q, lse = made["view"](q), torch.zeros(1, 2, 20, device=q.device)
    with (mock.patch.object(backward_hopper, "LEAST", 1), mock.patch.object(device, "capability", lambda x: 90),
          mock.patch.object(backward_hopper, "launch_backward") as fused,
          mock.patch.object(backward_hopper, "attention_backward") as usual):
        backward_hopper.backward_v4(q, k, v, q, lse, do, lse, False, made["scale"], made["dropout"], made["needed"])
    assert fused.called != usual.called
    return fused.called


def test_the_fused_kernel_is_for_what_it_can():
    assert calls() and calls(D=256) and calls(dtype=torch.bfloat16) and calls(needed=(False, True, False))
    assert not (calls(dtype=torch.float32) or calls(D=20) or calls(dropout=(0.1, 5)))
    assert not (calls(needed=(True, False, False)) or calls(view=VIEWS["misaligned"][0]))


def test_deterministic_algorithms_are_the_older_kernels():
    with mock.patch.object(torch, "are_deterministic_algorithms_enabled", lambda: True):
        assert not calls()


@pytest.mark.parametrize("attend", [warp_specialization.flash_attention_v4, backward_triton.flash_attention],
                         ids=["v4", "flash_attention"])
def test_who_asks_for_it(attend):
    q, k, v = (x.requires_grad_() for x in inputs(1, 1, 1, 20, 20, 16))
    with mock.patch.object(backward_hopper, "backward_v4", wraps=backward_hopper.backward_v4) as asked:
        torch.autograd.grad(attend(q, k, v).sum(), (q, k, v))
    assert asked.called == (attend is warp_specialization.flash_attention_v4)


def test_no_second_derivative():
    q, k, v = (x.requires_grad_() for x in inputs(1, 1, 1, 20, 20, 16))
    dq, = torch.autograd.grad(warp_specialization.flash_attention_v4(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        dq.sum().backward()
