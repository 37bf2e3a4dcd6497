"""Masks, block maps, scores and packed sequences: values, gradients, no tile too many, and sentences for the rest."""
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch.library import opcheck

from attention import BOUNDS, VIEWS, Seen, compiled, inputs, nan_in_new_memory, quietly
from helpers import device, lessons, reference
from helpers.launches import rules
from helpers.lessons import masks_and_scores as lesson

masked_attention, packed_attention, block_map = lesson.masked_attention, lesson.packed_attention, lesson.block_map
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@triton.jit
def prefix(b, h, i, j, extra):
    return (j <= i + extra[0]) | (j < extra[1])


@triton.jit
def band(b, h, i, j, extra):                             # another width for each batch and head
    return (i - j < 9 * b + 7 * h + 1) & (j - i < extra[0])


@triton.jit
def first_keys(b, h, i, j, extra):                       # the same for every query: a row [1, BLOCK]
    return j < extra[0]


@triton.jit
def from_tensor(b, h, i, j, extra):
    return tl.load(extra[0] + b * extra[1] + h * extra[2] + i * extra[3] + j * extra[4])


@triton.jit
def nothing(b, h, i, j, extra):
    return (j < 0) & (i < 0)


@triton.jit
def relative(s, b, h, i, j, extra):                      # extra: a bias for each distance [heads, N_q + N_k], N_q, N_k
    return s + tl.load(extra[0] + h * (extra[1] + extra[2]) + i - j + extra[2])


@triton.jit
def learn_relative(ds, s, b, h, i, j, extra, gradients):
    if gradients is not None:
        tl.atomic_add(gradients[0] + h * (extra[1] + extra[2]) + i - j + extra[2], ds)
    return ds


def places(N_q, N_k):
    return torch.arange(N_q, device=device.DEVICE)[:, None], torch.arange(N_k, device=device.DEVICE)


def holes(N_q, N_k):
    generator = torch.Generator().manual_seed(3)
    seen = torch.rand(2, 2, N_q, N_k, generator=generator) < 0.3
    seen[:, :, 5] = seen[0, 0, :20] = False              # queries that see nothing
    return seen.to(device.DEVICE)


def case(name, N_q, N_k):
    """The map of a mask for 2 batches of 2 heads, and which pairs are seen."""
    (i, j), shift, sizes = places(N_q, N_k), N_k - N_q, {}
    b, h = torch.arange(2)[:, None, None, None].to(i), torch.arange(2)[:, None, None].to(i)
    begin, tensor = torch.arange(N_q).to(i).to(torch.int32) // 37 * 37, holes(N_q, N_k)
    mask, extra, seen = {
        "causal": (lesson.causal, (shift,), j <= i + shift),
        "window": (lesson.window, (shift, 20), (j <= i + shift) & (j > i + shift - 20)),
        "prefix": (prefix, (shift, 30), (j <= i + shift) | (j < 30)),
        "documents": (lesson.documents, (begin,), (j <= i) & (j >= begin[:, None])),
        "first keys": (first_keys, (30,), (j < 30) & (i >= 0)),
        "band": (band, (12,), (i - j < 9 * b + 7 * h + 1) & (j - i < 12)),
        "tensor": (from_tensor, (tensor, *tensor.stride()), tensor),
        "nothing": (nothing, (), (j < 0) & (i < 0))}[name]
    if name in ("band", "tensor"):
        sizes = dict(batch=2, heads=2)
    return (mask, N_q, N_k, extra), sizes, seen


def close(got, want, dtype, floor=1.0):
    """Assert that tensors agree within a share of the largest element of each."""
    for n, (x, exact) in enumerate(zip(got, want, strict=True)):
        assert x.shape == exact.shape
        worst = (x.double() - exact).abs().amax().item() if x.numel() else 0
        assert worst <= BOUNDS[dtype] * max(floor, exact.abs().amax().item() if x.numel() else 0), n


def check(tensors, seen, change=None, learned=(), sink=None, **options):
    """Assert that o, lse and all gradients, also those that come through lse, are right."""
    *tensors, do = tensors
    leaves = [x.detach().requires_grad_() for x in tensors] + [*learned] + ([sink] if sink is not None else [])
    o, lse = masked_attention(*leaves[:3], sink=sink, enable_gqa=True, return_lse=True, **options)
    want_o, want_lse = reference.masked_attention(*leaves[:3], seen, change, sink)
    finite = torch.isfinite(want_lse)
    assert lse.dtype == F32 and (lse[~finite] == -torch.inf).all() and (o[~finite] == 0).all()
    torch.testing.assert_close(lse[finite], want_lse[finite].float(), rtol=1e-5, atol=1e-5)
    weight = torch.linspace(-1, 1, lse.numel(), device=lse.device).view(lse.shape)[finite]
    got = torch.autograd.grad((o * do).sum() + (lse[finite] * weight).sum(), leaves)
    want = torch.autograd.grad((want_o * do.double()).sum() + (want_lse[finite] * weight).sum(), leaves)
    close([o, *got], [want_o, *want], tensors[0].dtype)


# ---------------------------------------------------------------- values and gradients

@pytest.mark.parametrize("name,N_q,N_k,dtype,BLOCK", [
    ("causal", 30, 50, F32, 64), ("causal", 70, 40, F16, 64), ("window", 40, 70, F16, 32), ("window", 50, 30, F32, 64),
    ("prefix", 70, 70, F16, 64), ("documents", 70, 70, BF16, 64), ("first keys", 30, 40, F32, 32),
    ("band", 40, 40, F16, 32), ("tensor", 30, 40, F16, 16), ("nothing", 20, 20, F32, 16), ("causal", 30, 50, F16, 256)])
def test_masks(name, N_q, N_k, dtype, BLOCK):
    """With groups and several tiles, some of the map's larger than the kernel's."""
    arguments, sizes, seen = case(name, N_q, N_k)
    check(inputs(2 if sizes else 1, 2, 1, N_q, N_k, 16, dtype, more=1), seen, mask=block_map(*arguments, **sizes, BLOCK=BLOCK))


def test_soft_cap_with_a_sink():
    i, j = places(40, 40)
    sink = torch.linspace(-1, 2, 2, device=device.DEVICE).requires_grad_()
    score = lesson.score_change(lesson.soft_cap, lesson.soft_cap_derivative, (1.5,))
    check(inputs(1, 2, 1, 40, 40, 16, F16, more=1), j <= i, lambda s: 1.5 * torch.tanh(s / 1.5), sink=sink,
          mask=block_map(lesson.causal, 40, 40, (0,)), score=score)


def test_a_learned_bias():
    (i, j), bias = places(20, 40), torch.linspace(-1, 1, 120, device=device.DEVICE).requires_grad_()
    score = lesson.score_change(relative, learn_relative, (bias, 20, 40))
    check(inputs(1, 2, 1, 20, 40, 16, F16, more=1), j + i >= 0, lambda s: s + bias.view(2, 60)[:, i - j + 40],
          learned=[bias], score=score)


@quietly
@pytest.mark.parametrize("x", [-40.0, -3.0, -1e-3, 0.0, 1e-4, 0.5, 8.0, 60.0])
def test_soft_cap(x):
    out = torch.full((16,), x, device=device.DEVICE)
    soft_cap_kernel[1,](out, (1.0,))
    assert out[0].item() == pytest.approx(np.tanh(x), abs=1e-6)


@triton.jit
def soft_cap_kernel(x_ptr, extra):
    n = tl.arange(0, 16)
    tl.store(x_ptr + n, lesson_soft_cap(tl.load(x_ptr + n), 0, 0, n, n, extra))


lesson_soft_cap = lesson.soft_cap


@pytest.mark.parametrize("scale", [-0.4, 0.0, 0.7])
def test_scales(scale):
    *tensors, _ = inputs(1, 2, 2, 20, 20, 16, more=1)
    i, j = places(20, 20)
    mask = block_map(lesson.causal, 20, 20, (0,))
    for score, change in ((None, None), (lesson.score_change(lesson.soft_cap, lesson.soft_cap_derivative, (2.0,)),
                                         lambda s: 2 * torch.tanh(s / 2))):
        want, _ = reference.masked_attention(*tensors, j <= i, change, scale=scale)
        close([masked_attention(*tensors, mask=mask, score=score, scale=scale)], [want], F32)


@pytest.mark.parametrize("layout", ["[B, N, heads, D]", "every second row", "features apart", "misaligned"])
def test_layouts(layout):
    tensors = map(VIEWS[layout][0], inputs(1, 2, 1, 30, 40, 16, F16, more=1))
    arguments, _, seen = case("causal", 30, 40)
    check(tensors, seen, mask=block_map(*arguments))


@pytest.mark.parametrize("dtype,D", [(F32, 5), (F16, 20), (F16, 24)])                # 24: by descriptors
def test_features_that_are_no_power_of_two(dtype, D):
    """Every tile is full, and nothing is read beyond the last."""
    i, j = places(64, 64)
    check(inputs(1, 1, 1, 64, 64, D, dtype, more=1), i + j >= 0)


@pytest.mark.parametrize("shape", [(0, 2, 2, 5, 5, 8), (1, 2, 2, 0, 5, 8), (1, 2, 2, 5, 0, 8)], ids=str)
@pytest.mark.parametrize("with_map", [False, True])
def test_empty_shapes(shape, with_map):
    tensors = [x.requires_grad_() for x in inputs(*shape)]
    mask = block_map(lesson.causal, *shape[3:5], (0,)) if with_map else None
    o = masked_attention(*tensors, mask=mask)
    assert (o == 0).all() and all((x == 0).all() for x in torch.autograd.grad(o.sum(), tensors))


def test_every_element_is_written():
    """Also where a kernel's tiles are smaller than the map's, and its last row has fewer."""
    tensors = [x.requires_grad_() for x in inputs(1, 1, 1, 70, 70, 16)]
    with nan_in_new_memory():
        o, lse = masked_attention(*tensors, mask=block_map(lesson.window, 70, 70, (-30, 9), BLOCK=64), return_lse=True)
        gradients = torch.autograd.grad(o.sum(), tensors)
    assert not any(x.isnan().any() for x in (o, lse, *gradients)) and (lse[:, :, :30] == -torch.inf).all()


# ---------------------------------------------------------------- maps

def exact_kinds(seen, BLOCK):
    (N_q, N_k), kinds = seen.shape, []
    for i in range(0, N_q, BLOCK):
        tiles = [seen[i:i + BLOCK, j:j + BLOCK] for j in range(0, N_k, BLOCK)]
        kinds.append([int(tile.any()) + int(tile.all() and tile.shape[1] == BLOCK) for tile in tiles])
    return kinds


@pytest.mark.parametrize("name", ["causal", "window", "prefix", "documents", "first keys", "band", "tensor", "nothing"])
def test_kinds(name):
    arguments, sizes, seen = case(name, 40, 50)
    made = block_map(*arguments, **sizes, BLOCK=16 if name in ("causal", "prefix") else 32)
    seen = seen.expand(*made.kinds.shape[:2], 40, 50).cpu()
    assert made.kinds.tolist() == [[exact_kinds(head, made.BLOCK) for head in batch] for batch in seen]


def test_lists():
    """Rows with the most tiles first; full tiles before partial ones; by columns for the other kernel."""
    made = block_map(lesson.window, 64, 64, (0, 40), BLOCK=16)
    assert made.kinds[0, 0].tolist() == [[1, 0, 0, 0], [2, 1, 0, 0], [1, 2, 1, 0], [1, 1, 2, 1]]
    order, ends, tiles, order_k, ends_k, tiles_k = made.tensors
    assert order.tolist() == [3, 2, 1, 0] and ends.tolist() == [[[[0, 1], [1, 2], [1, 3], [1, 4]]]]
    assert tiles[0, 0, 2].tolist() == [1, 0, 2, 3] and tiles[0, 0, 3].tolist() == [2, 0, 1, 3]
    assert order_k.tolist() == [0, 1, 2, 3] and ends_k.tolist() == [[[[1, 4], [1, 3], [1, 2], [0, 1]]]]
    assert tiles_k[0, 0, 0].tolist() == [1, 0, 2, 3]


@pytest.mark.skipif(not device.INTERPRETED, reason="counts in the interpreter")
def test_no_tile_is_visited_that_is_not_on_the_map():
    from helpers.interpreter import traffic
    q, k, v, do = (x.requires_grad_() for x in inputs(1, 1, 1, 96, 96, 16, more=1))
    mask = block_map(lesson.window, 96, 96, (0, 20), BLOCK=32)
    with traffic.count() as moved:
        o = masked_attention(q, k, v, mask=mask)
        torch.autograd.grad(o, (q, k, v), do.detach())
    size = 5 * 32 * 16                                   # 3 tiles on the diagonal, 2 below it
    assert (mask.kinds > 0).sum() == 5
    for kernel, name in (("forward", "k"), ("forward", "v"), ("dq", "k"), ("dq", "v"), ("dkdv", "q"), ("dkdv", "do")):
        assert moved.rows[f"masked_{kernel}_kernel", name, "load"].elements == size, (kernel, name)


# ---------------------------------------------------------------- packed sequences

def packed(rows, keys, heads=2, kv_heads=1, D=16, dtype=F32):
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.randn(sum(n), h, D, generator=generator).to(device.DEVICE, dtype)
               for n, h in ((rows, heads), (keys, kv_heads), (keys, kv_heads), (rows, heads))]
    return tensors, *(torch.tensor([0, *np.cumsum(n)], dtype=torch.int32, device=device.DEVICE) for n in (rows, keys))


@pytest.mark.parametrize("rows,keys,dtype,is_causal", [
    ((40, 0, 12, 5), (25, 9, 30, 0), F32, True), ((40, 0, 12, 5), (25, 9, 30, 0), F16, False),
    ((3, 1, 0, 0, 70), (9, 0, 0, 5, 70), F16, True)])
def test_packed_is_a_loop_over_sequences(rows, keys, dtype, is_causal):
    (*tensors, do), offsets_q, offsets_k = packed(rows, keys, dtype=dtype)
    leaves = [x.requires_grad_() for x in tensors]
    o, lse = packed_attention(*leaves, offsets_q, offsets_k, is_causal=is_causal, enable_gqa=True, return_lse=True)
    want, parts = [], []
    for s in range(len(rows)):
        alone = [x[a[s]:a[s + 1]].transpose(0, 1) for x, a in zip(leaves, (offsets_q, offsets_k, offsets_k))]
        i, j = places(rows[s], keys[s])
        found, found_lse = reference.masked_attention(*alone, j <= i + keys[s] - rows[s] if is_causal else i + j >= 0)
        want.append(found.transpose(0, 1))
        parts.append(found_lse)
    want, parts = torch.cat(want), torch.cat(parts, 1)
    torch.testing.assert_close(lse, parts.float(), rtol=1e-5, atol=1e-5)
    close([o, *torch.autograd.grad(o, leaves, do)], [want, *torch.autograd.grad(want, leaves, do.double())], dtype)


def test_the_work_is_the_sum_of_squares():
    for n in (1, 4, 16):
        offsets = torch.arange(0, 4097, 4096 // n, dtype=torch.int32, device=device.DEVICE)
        kinds = lesson.packed_map(offsets, offsets, 4096, 4096, True).kinds
        side = 64 // n
        assert (kinds > 0).sum() == n * side * (side + 1) // 2 and (kinds == 2).sum() == n * side * (side - 1) // 2


def test_offsets_that_were_changed_in_place_are_mapped_again():
    (q, k, v, _), offsets, _ = packed((20, 30), (20, 30), kv_heads=2)
    first = packed_attention(q, k, v, offsets, offsets)
    offsets[1] = 35
    other = torch.tensor([0, 35, 50], device=device.DEVICE)
    again = packed_attention(q, k, v, offsets, offsets)
    assert not torch.equal(first, again) and torch.equal(again, packed_attention(q, k, v, other, other))


# ---------------------------------------------------------------- the operator

def test_one_graph():
    *tensors, do = inputs(1, 2, 2, 20, 20, 16, more=1)
    slopes = torch.linspace(-1, 1, 80, device=device.DEVICE).requires_grad_()
    mask = block_map(lesson.causal, 20, 20, (0,))

    def attend(q, k, v, bias):
        return masked_attention(q, k, v, mask=mask, score=lesson.Score(score.rule, [bias], True))
    score = lesson.score_change(relative, learn_relative, (slopes, 20, 20))
    leaves = [x.requires_grad_() for x in tensors] + [slopes]
    plain, in_a_graph = [[o := fn(*leaves), *torch.autograd.grad(o, leaves, do)] for fn in (attend, compiled(attend))]
    with Seen() as seen:
        operator = [o := attend(*leaves), *torch.autograd.grad(o, leaves, do)]
    close(plain, in_a_graph, F32)
    close(plain, operator, F32)
    assert sum("masked" in name for name in seen.names) == 2           # forward and backward


def test_packed_in_one_graph():
    (q, k, v, _), offsets, _ = packed((20, 30), (20, 30), kv_heads=2)
    fn = compiled(lambda q, offsets: packed_attention(q, k, v, offsets, offsets, is_causal=True))
    torch.testing.assert_close(fn(q, offsets), packed_attention(q, k, v, offsets, offsets, is_causal=True))


def test_opcheck():
    q, k, v = (x.requires_grad_() for x in inputs(1, 2, 1, 9, 11, 8))
    mask = block_map(lesson.causal, 9, 11, (2,), BLOCK=16)
    bias = torch.zeros(40, device=device.DEVICE, requires_grad=True)
    score = lesson.score_change(relative, learn_relative, (bias, 9, 11))
    given = q, k, v, mask.tensors, score.extra, mask.rule, score.rule, mask.BLOCK, 0.5
    assert set(opcheck(lesson.masked_operator, given).values()) == {"SUCCESS"}


def test_no_second_derivative():
    q, k, v = (x.requires_grad_() for x in inputs(1, 1, 1, 5, 5, 8))
    dq, = torch.autograd.grad(masked_attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(dq.sum(), q)


def test_rules_have_one_name_each():
    x = torch.zeros(3)
    first, tensors = rules.remember((lesson.window,), (x, 3))
    assert (first, []) != rules.remember((lesson.window,), (x, 4)) and tensors[0] is x
    assert rules.remember((lesson.window,), (torch.ones(2), 3))[0] == first
    assert rules.remember((lesson.causal,), (x, 3))[0] != first
    assert rules.remember((lesson.window,), (x, 3.0))[0] != first
    assert rules.recall(first, [x]) == ((lesson.window,), (x, 3))


# ---------------------------------------------------------------- what is refused

def q_k_v():
    return inputs(1, 2, 2, 8, 8, 16)


def wrong(error, said):
    return pytest.raises(error, match=said)


def test_wrong_masks():
    with wrong(TypeError, r"mask is a function: expected a @triton.jit function of b, h, i, j, extra"):
        block_map(lambda b, h, i, j, extra: j <= i, 8, 8)
    with wrong(TypeError, r"mask is a function of ds, s, b, h, i, j, extra, gradients: expected"):
        block_map(lesson.straight, 8, 8)
    with wrong(ValueError, "mask looks at b: say how many there are"):
        block_map(band, 8, 8, (3,), heads=4)
    with wrong(ValueError, "mask looks at h: say how many there are"):
        block_map(band, 8, 8, (3,), batch=4)
    with wrong(TypeError, "mask is a JITFunction|mask is a InterpretedFunction"):
        masked_attention(*q_k_v(), mask=lesson.causal)
    with wrong(ValueError, r"mask is a map of \(batch, heads, N_q, N_k\) = \(1, 1, 9, 8\), and q and k have \(1, 2, 8"):
        masked_attention(*q_k_v(), mask=block_map(lesson.causal, 9, 8, (0,)))
    with wrong(ValueError, "mask is a map of"):
        masked_attention(*q_k_v(), mask=block_map(lesson.causal, 8, 8, (0,), heads=3))


def test_wrong_scores_and_sinks():
    with wrong(TypeError, "derivative is a function of s, b, h, i, j, extra: expected"):
        lesson.score_change(lesson.soft_cap, lesson.soft_cap, (1.0,))
    with wrong(TypeError, "score is a JITFunction|score is a InterpretedFunction"):
        masked_attention(*q_k_v(), score=lesson.soft_cap)
    bias = torch.zeros(32, device=device.DEVICE, requires_grad=True)
    with wrong(ValueError, "requires a gradient, and a derivative that adds nothing"):
        masked_attention(*q_k_v(), score=lesson.score_change(relative, lesson.straight, (bias, 8, 8)))
    with wrong(ValueError, r"sink is torch.float32 \[3\]: expected a tensor \[2\]"):
        masked_attention(*q_k_v(), sink=torch.zeros(3, device=device.DEVICE))
    with wrong(ValueError, "k has 2 heads, q has 4"):
        masked_attention(*inputs(1, 4, 2, 8, 8, 16))


@pytest.mark.parametrize("offsets,said", [
    ([0, 5, 3, 8], "offsets_q falls from 5 to 3 at place 2"),
    ([0, 5, 9], "goes from 0 to 9: expected from 0 to the total, 8"),
    ([1, 5, 8], "goes from 1 to 8"), ([], r"offsets_q is torch.int32 \[0\]: expected a tensor \[sequences \+ 1\]"),
    ([[0, 8]], r"offsets_q is torch.int32 \[1, 2\]"), ([0.0, 8.0], "offsets_q is torch.float32")], ids=str)
def test_wrong_offsets(offsets, said):
    (q, k, v, _), right, _ = packed((8,), (8,), kv_heads=2)
    kind = torch.float32 if offsets and isinstance(offsets[0], float) else torch.int32
    offsets = torch.tensor(offsets, dtype=kind, device=device.DEVICE)
    with wrong(ValueError, said):
        packed_attention(q, k, v, offsets, torch.zeros_like(offsets) if len(offsets) > 2 else right)


def test_other_wrong_packed_calls():
    (q, k, v, _), offsets, _ = packed((8,), (8,), kv_heads=2)
    with wrong(ValueError, r"q is torch.float32 \[1, 8, 2, 16\]: expected a tensor \[total, heads, D\]"):
        packed_attention(q[None], k, v, offsets, offsets)
    with wrong(ValueError, "offsets_q names 1 sequences, offsets_k 2"):
        packed_attention(q, k, v, offsets, offsets[[0, 0, 1]])
    with wrong(TypeError, "is_causal is 1: expected True or False"):
        packed_attention(q, k, v, offsets, offsets, is_causal=1)
    assert lessons.masks_and_scores is lesson
