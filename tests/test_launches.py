"""Launches that are kept by kind: the second of a kind passes on what changed, and all that did not."""
import gc
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from helpers import launches


@dataclass
class Descriptor:
    base: Any
    block: int

    def __post_init__(self):
        assert self.base is not None                     # what is kept is not checked again


class Kernel:
    """In place of a Triton kernel on a GPU: notes how it is launched."""
    arg_names = ["x_desc", "y_ptr", "N", "scale", "BLOCK"]

    def __init__(self):
        self.launched = []

    def __getitem__(self, grid):
        def run(**arguments):
            self.launched.append((grid, arguments))
            return {(*grid, 1, 1)[:3]: lambda *given: self.launched.append((*given,))}
        return run


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(launches, "_kept", {})
    return Kernel()


def call(kernel, x, y, scale, kind="a", plans=None):
    def plan():
        if plans is not None:
            plans.append(kind)
        return (7,), dict(x_desc=Descriptor(x, 16), N=5, BLOCK=32, num_warps=4)
    launches.launch(kernel, kind, plan, x_desc=x, y_ptr=y, scale=scale)


def test_the_first_call_of_a_kind_is_an_ordinary_launch(kernel):
    x, y = torch.ones(2, 3)
    call(kernel, x, y, 0.5)
    assert kernel.launched == [((7,), dict(x_desc=Descriptor(x, 16), y_ptr=y, scale=0.5, N=5, BLOCK=32, num_warps=4))]


def test_later_calls_hand_the_compiled_kernel_its_arguments_in_order(kernel):
    plans = []
    for _ in range(3):
        x, y = torch.ones(2, 3)
        call(kernel, x, y, 0.5, plans=plans)
        call(kernel, x, y, 2.0, kind="b", plans=plans)
    descriptor, *others = kernel.launched[-1]
    assert plans == ["a", "b"]
    assert descriptor.base is x and descriptor.block == 16
    assert others[0] is y and others[1:] == [5, 2.0, 32]


def test_tensors_are_not_kept(kernel):
    x, y = torch.ones(3), torch.ones(3)
    seen = [weakref.ref(each) for each in (x, y)]
    for scale in (0.5, 2.0):
        call(kernel, x, y, scale)
    kernel.launched.clear()
    del x, y
    gc.collect()
    assert [each() for each in seen] == [None, None]


def test_kernels_are_told_apart(kernel):
    other, (x, y) = Kernel(), torch.ones(2, 3)
    call(kernel, x, y, 0.5)
    call(other, x, y, 0.5)
    assert len(kernel.launched) == len(other.launched) == 1


def test_a_tuned_kernel_is_launched_anew(kernel):
    kernel.arg_names = [*kernel.arg_names, "TUNED"]
    x, y = torch.ones(2, 3)
    for _ in range(2):
        call(kernel, x, y, 0.5)
    assert len(kernel.launched) == 2 and kernel.launched[0][1].keys() == kernel.launched[1][1].keys()


def test_more_kinds_than_are_kept(kernel, monkeypatch):
    monkeypatch.setattr(launches, "MOST", 2)
    x, y = torch.ones(2, 3)
    for kind in "abcabc":
        call(kernel, x, y, 0.5, kind=kind)
    assert len(launches._kept) <= 2


def test_a_kind_holds_what_triton_tells_apart():
    q, k, v = torch.zeros(3, 2, 4, 8, 16)
    kinds = {launches.kind_of(*tensors) for tensors in (
        (q, k, v), (q[:, :2], k, v), (q, k[:, :, :4], v[:, :, :4]), (q.half(), k.half(), v.half()),
        (q, k, v.transpose(1, 2).contiguous().transpose(1, 2)), (q, k.mT.contiguous().mT, v),
        (q.transpose(1, 2).contiguous().transpose(1, 2), k, v), (q.to("meta"), k, v))}
    assert len(kinds) == 8
    assert launches.kind_of(q, k, v) == launches.kind_of(k, v, q)
