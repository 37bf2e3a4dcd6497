"""Tensors on any GPU, current or not, and more heads than the second axis of a grid has places."""
import ast
import re
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from triton.runtime import interpreter

import attention as att
from helpers import ROOT, device, lessons, reference, simulator
from helpers.lessons import (attention_in_a_model, backward_triton, causal_and_multihead, decoding,
                             flash_attention_triton, fp8, masks_and_scores, matmul_triton, prefetch, softmax_triton,
                             warp_specialization)

MOST = 65535                                             # programs along the second and third axis of a grid
LAUNCHING = [module.__name__.split(".")[-1] for module in (softmax_triton, matmul_triton, flash_attention_triton,
                                                           causal_and_multihead, backward_triton, fp8,
                                                           masks_and_scores)]


def trained(fn, q, k, v):
    """o and the gradients of its sum, one after the other in one vector."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    o = fn(*leaves, is_causal=True)
    return torch.cat([x.flatten() for x in (o.detach(), *torch.autograd.grad(o.sum(), leaves))])


def decoded(q, k, v, splits=None):
    """o for a cache that is full: for its last tokens, all that there are."""
    lengths = torch.full(q.shape[:1], k.shape[2], dtype=torch.int32, device=q.device)
    return decoding.launch_decode(q, k, v, lengths, splits=splits)[0]


def masked(q, k, v, is_causal):
    """masked_attention, with a causal map that is made on the tensors' GPU."""
    N = q.shape[2]
    mask = masks_and_scores.block_map(masks_and_scores.causal, N, N, (0,), device=q.device)
    return masks_and_scores.masked_attention(q, k, v, mask=mask)


CALLS = {
    "decoding": decoded, "decoding in splits": lambda *x: decoded(*x, splits=2),
    "v2": causal_and_multihead.flash_attention_v2,
    "flash_attention": lambda *x: trained(backward_triton.flash_attention, *x),
    "v3": lambda *x: trained(fp8.flash_attention_v3, *x),
    "operator": lambda *x: trained(attention_in_a_model.attention, *x),
    "masked": lambda *x: trained(masked, *x),
    "v4": lambda *x: trained(warp_specialization.flash_attention_v4, *x),
    "dropout": lambda q, k, v: backward_triton.flash_attention(q, k, v, dropout_p=0.5, seed=1),
    "dropout_mask": lambda q, k, v: backward_triton.dropout_mask(*q.shape[:2], 3, 5, 0.5, 1, q.device)}
if att.TUNED:
    CALLS["fp8"] = lambda *x: fp8.flash_attention_v3(*x, precision="fp8")
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.mark.skipif(not device.INTERPRETED, reason="replaces the interpreter and the simulator")
@each_call
def test_only_the_first_axis_of_a_grid_is_long(call, monkeypatch):
    grids = []
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda self, *_, **__: grids.append(self.grid))
    monkeypatch.setattr(simulator, "launch", lambda kernel, grid, *_, **__: grids.append(grid))
    call(*torch.zeros(3, MOST // 16 + 1, 16, 1, 16, dtype=torch.float16))
    assert grids and all(len(grid) == 1 or max(grid[1:]) <= MOST for grid in grids)


@pytest.mark.gpu
@each_call
def test_more_heads_than_a_second_axis_has(call):
    torch.manual_seed(0)
    heads, some = MOST // 16 + 1, 8
    x = torch.randn(3, 1, 16, 1, 16, device=device.DEVICE).half().expand(3, heads, 16, 1, 16).contiguous()
    many, few = call(*x), call(*x[:, :some])
    if call is CALLS["dropout"] or call is CALLS["dropout_mask"]:
        assert torch.equal(many[:some], few)             # other heads have other masks
    else:                                                # all batches are equal: so are their results
        many, few = (y.reshape(-1, n, 16 * 16) for y, n in ((many, heads), (few, some)))
        assert torch.equal(many, few[:, :1].expand_as(many))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("shape", [(1, 4, 200, 64), (1, 4, 4096, 128)])
@each_call
def test_tensors_on_a_gpu_that_is_not_current(call, shape):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, *shape, device="cuda:0").half()
    want, found = call(q, k, v), call(*(x.to("cuda:1") for x in (q, k, v)))
    assert torch.cuda.current_device() == 0 and found.device == torch.device("cuda:1")
    assert torch.equal(found.cpu(), want.cpu())


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_first_kernels_on_a_gpu_that_is_not_current():
    x = torch.randn(300, 300, device="cuda:1")
    for found, want in ((softmax_triton.softmax(x), torch.softmax(x, 1)),
                        (matmul_triton.matmul(x, x), x @ x), (matmul_triton.naive_matmul(x, x), x @ x),
                        (flash_attention_triton.flash_attention_v1(x[:, :64], x[:, :64], x[:, :64]),
                         reference.torch_attention(*3 * [x[None, None, :, :64]])[0, 0])):
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("topic", LAUNCHING)             # helpers/launches launches the others
def test_every_launch_is_on_the_gpu_of_its_tensors(topic):
    """By reading: `kernel[grid](...)` in a function stands in a `with torch.cuda.device_of(...)`."""
    def launches(node, guarded):
        if isinstance(node, ast.With):
            guarded |= any("device_of" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript) and "kernel" in ast.unparse(node.func.value):
            yield guarded, ast.unparse(node.func)
        for child in ast.iter_child_nodes(node):
            yield from launches(child, guarded)
    found = list(launches(ast.parse(lessons.source(topic)), False))
    assert found and all(guarded for guarded, _ in found), found


CARDS = re.findall(r"^\| .* \| (\d+)\.\d.* \| everything.* \| (.*) \| (.*) \| (.*) \|$",
                   (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_readme_knows_each_kind_of_card():
    assert [int(major) for major, *_ in CARDS] == [8, 9, 10, 12]


@pytest.mark.parametrize("major,descriptors,eight_bits,specialized", CARDS)
def test_the_readme_says_which_kernel_serves(major, descriptors, eight_bits, specialized):
    q, k, v = torch.zeros(3, 1, 2, 4096, 128, dtype=torch.float16, device=device.DEVICE)
    on_card = SimpleNamespace(is_cuda=True, shape=q.shape)
    with mock.patch.object(device, "capability", lambda x: 10 * int(major)):
        described = prefetch.describable(q, k, v, 0.1, (0.0, 0))
        assert descriptors == ("yes" if described else "v2 instead")
        instead = "v3 instead" if described else "v2 instead"
        assert specialized == ("yes" if warp_specialization.serves(on_card, k, True, 128, False) else instead)
        try:
            fp8.forward_fp8(*3 * [torch.zeros(1, 1, 0, 16, dtype=torch.float16, device=device.DEVICE)], False, 1.0)
            refused = False
        except ValueError:
            refused = True
        assert eight_bits == ("refused" if refused else "yes")
