"""Attention to a cache: contiguous and in pages, any split; what it never reads; graphs, the compiler; writing a text."""
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.library import opcheck

import attention as att
from attention import TYPES, VIEWS, array, each_type, each_value, quietly
from helpers import device, reference
from helpers.check.core import poisoned
from helpers.interpreter import traffic
from helpers.lessons import attention_in_a_model as model, decoding as lesson

decode = lesson.decode_attention
gpu = pytest.mark.gpu
NAN = float("nan")
each_split = pytest.mark.parametrize("splits", [1, 3])
needs_fp8 = pytest.mark.skipif(not device.INTERPRETED and torch.cuda.get_device_capability() < (9, 0),
                               reason="needs compute capability 9.0")


class Held:
    """A cache of random numbers: the arguments of decode_attention, and what each sequence has of its own."""

    def __init__(self, B, heads, kv_heads, N_q, N_max, D, dtype=torch.float32, page=0, lengths=None, seed=0, rest=NAN):
        generator = torch.Generator().manual_seed(seed)
        self.q, self.k, self.v = (torch.randn(B, h, N, D, generator=generator).to(device.DEVICE, dtype) for h, N in (
            (heads, N_q), (kv_heads, N_max), (kv_heads, N_max)))
        lengths = torch.randint(0, N_max + 1, (B,), generator=generator).tolist() if lengths is None else lengths
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=device.DEVICE)
        self.page, self.rest, self.N_max = page or N_max, rest, N_max
        n = -(-N_max // page) if page else 1
        order = torch.randperm(B * n + 2, generator=generator)[:B * n] if page else torch.arange(B)
        self.table = order.view(B, n).int().to(device.DEVICE)
        self.used = -(-self.lengths // self.page) if self.page else 0 * self.lengths
        self.paged = bool(page)

    def spread(self, x, rest=None):
        """x [B, kv_heads, N_max, ...] as a cache, with `rest` in all that no sequence owns."""
        rows, rest = len(self.table) if not self.paged else self.table.numel() + 2, self.rest if rest is None else rest
        cache = torch.full((rows, x.shape[1], self.page, *x.shape[3:]), rest, dtype=torch.float32).to(x.device, x.dtype)
        for b, length in enumerate(self.lengths.tolist()):
            for j, part in enumerate(x[b, :, :length].split(max(1, self.page), dim=1)):
                cache[self.table[b, j], :, :part.shape[1]] = part
        return cache

    @property
    def options(self):
        """block_table, with numbers that are no pages behind the end of each sequence."""
        if not self.paged:
            return {}
        behind = torch.arange(self.table.shape[1], device=device.DEVICE) >= self.used[:, None]
        return dict(block_table=self.table.masked_fill(behind, -2**31))

    @property
    def arguments(self):
        return self.q, self.spread(self.k), self.spread(self.v), self.lengths

    def call(self, splits=None, **options):
        """o and lse: by the function, or with so many splits."""
        if splits is None:
            return decode(*self.arguments, return_lse=True, **self.options, **options)
        return lesson.launch_decode(*self.arguments, **self.options, splits=splits, **options)

    def check(self, o, lse, **options):
        assert o.shape == self.q.shape and o.dtype == self.q.dtype and lse.dtype == torch.float32
        for b, n in enumerate(self.lengths.tolist()):
            tensors = self.q[b:b + 1], self.k[b:b + 1, :, :n], self.v[b:b + 1, :, :n]
            att.close(tensors, o[b:b + 1], lse[b:b + 1], is_causal=True, **options)


# ---------------------------------------------------------------- right values

@each_type
@pytest.mark.parametrize("page,splits", [(0, 1), (64, 3), (16, 3), (5, 1)])
def test_lengths_that_differ(dtype, page, splits):
    held = Held(3, 4, 2, 1, 150, 16, dtype, page, lengths=[150, 0, 67])
    held.check(*held.call(splits))


@pytest.mark.parametrize("heads,kv_heads,N_q,page,splits", [(4, 4, 1, 0, 2), (6, 2, 3, 5, 2), (8, 1, 3, 64, 1),
                                                            (5, 1, 16, 16, 1)])
def test_packed_heads_and_new_tokens(heads, kv_heads, N_q, page, splits):
    held = Held(2, heads, kv_heads, N_q, 40, 16, torch.float32, page, lengths=[40, 2])      # fewer keys than tokens, too
    held.check(*held.call(splits))


@pytest.mark.parametrize("dtype,D", [(torch.float16, 1), (torch.float16, 24), (torch.float32, 100), (torch.float16, 256),
                                     (torch.float32, 256)], ids=str)
def test_any_head_dimension(dtype, D):
    held = Held(1, 2, 1, 2, 70, D, dtype, 16)
    held.check(*held.call(2))


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(0, 90),
       st.sampled_from([0, 1, 7, 32, 64]), st.integers(1, 4), st.integers(0, 99))
def test_any_shape(B, kv_heads, group, N_q, N_max, page, splits, seed):
    held = Held(B, kv_heads * group, kv_heads, N_q, N_max, 16, torch.float16, page if N_max else 0, seed=seed)
    held.check(*held.call(splits))


def test_the_rule_splits_a_long_cache():
    held = Held(1, 2, 1, 1, 700, 16)
    sizes, splits, programs = lesson.plan_of(held.q.shape, held.q.dtype, 1, 700, 0, 4, device.multiprocessors(held.q),
                                             device.capability(held.q))
    assert splits == min(-(-700 // sizes["BLOCK_N"]), device.multiprocessors(held.q)) and programs == 1
    held.check(*held.call())


@pytest.mark.parametrize("layout", VIEWS)
def test_any_strides(layout):
    held, view = Held(2, 2, 1, 2, 30, 16, torch.float16, 16), VIEWS[layout][0]
    q, k, v, lengths = held.arguments
    table = torch.stack(2 * [held.options["block_table"]], -1)[..., 0]
    for arguments, numbers in (((view(q), view(k), view(v), lengths.repeat_interleave(2)[::2]), table),
                               ((q, k, view(v), lengths), held.options["block_table"])):
        held.check(*decode(*arguments, block_table=numbers, return_lse=True))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-42, 3.0])
def test_any_scale(scale):
    held = Held(2, 2, 1, 2, 40, 16)
    held.check(*held.call(scale=scale), scale=scale)


@pytest.mark.parametrize("shape", [(0, 2, 1, 1, 9, 8), (2, 0, 0, 1, 9, 8), (2, 2, 1, 0, 9, 8), (2, 2, 1, 1, 0, 8)], ids=str)
@each_split
def test_nothing_to_do(shape, splits):
    held = Held(*shape)
    held.check(*held.call(splits))


def test_pages_that_are_shared():
    held = Held(2, 2, 1, 1, 48, 16, torch.float32, 16, lengths=[48, 40])
    held.k[1, :, :32], held.v[1, :, :32] = held.k[0, :, :32], held.v[0, :, :32]
    held.table[1, :2] = held.table[0, :2]
    held.check(*held.call(2))


def test_the_output_does_not_depend_on_what_nobody_owns():
    found = [Held(2, 2, 1, 1, 50, 16, torch.float16, page, lengths=[50, 17], rest=rest).call(splits)
             for page, splits in ((0, 1), (16, 2)) for rest in (NAN, 0.0, float("inf"))]
    for first, others in ((found[0], found[1:3]), (found[3], found[4:])):
        assert all(torch.equal(a, b) for other in others for a, b in zip(first, other))


def test_every_element_is_written():
    held = Held(3, 2, 1, 2, 90, 16, lengths=[90, 1, 0])
    with poisoned():
        held.check(*held.call(4))


# ---------------------------------------------------------------- NaN and inf, and numbers that cannot be

@quietly
@each_value
@each_split
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_nan_and_inf_come_out_as_from_the_reference(which, value, splits):
    held = Held(1, 2, 1, 1, 100, 16, torch.float16, lengths=[100])
    getattr(held, which)[-1, -1, -1 if which == "q" else 70, 3] = value
    o, lse = held.call(splits)
    want, want_lse = reference.attention(held.q, held.k, held.v, return_lse=True)
    np.testing.assert_allclose(array(o), want, atol=2e-3)
    np.testing.assert_allclose(array(lse), want_lse, rtol=1e-5)


@quietly
def test_a_split_whose_scores_are_all_minus_infinity():
    held = Held(1, 1, 1, 1, 200, 16, torch.float32, lengths=[200])
    held.q[..., 0], held.k[:, :, :128, 0] = 1, -float("inf")       # the first split's
    held.check(*held.call(2))
    held.k[..., 0] = -float("inf")
    assert all(held.call(splits)[0].isnan().all() for splits in (1, 2))


WRONG = [(dict(lengths=[3, 51]), r"lengths\[1\] is 51: expected 0 to 50"), (dict(lengths=[-1, 3]), r"lengths\[0\] is -1"),
         (dict(page=(1, 2, 10)), r"block_table\[1, 2\] is 10: expected 0 to 9"), (dict(page=(0, 0, -5)), "block_table")]


def wrong(change):
    """Two sequences, one of them with a number that cannot be: which one, and decode_attention's arguments."""
    page = change.get("page")
    held = Held(2, 2, 1, 2, 50, 16, torch.float16, 16 if page else 0, lengths=[50, 50], rest=0.5)
    q, k, v, lengths = held.arguments
    options = held.options
    if page:
        options["block_table"] = held.table.clone()
        options["block_table"][page[:2]] = page[2]
    else:
        lengths = torch.tensor(change["lengths"], dtype=torch.int32, device=device.DEVICE)
    return page[0] if page else next(b for b, n in enumerate(change["lengths"]) if not 0 <= n <= 50), (q, k, v, lengths), options


@pytest.mark.skipif(not device.INTERPRETED, reason="a GPU answers with NaN")
@pytest.mark.parametrize("change,message", WRONG)
def test_a_number_that_cannot_be_is_named_in_the_interpreter(change, message):
    _, arguments, options = wrong(change)
    with pytest.raises(ValueError, match=message):
        decode(*arguments, **options)


@pytest.mark.parametrize("change,message", WRONG)
@each_split
def test_a_number_that_cannot_be_gives_nan(change, message, splits):
    """As on a GPU: what another sequence owns is not read, and other sequences are not disturbed."""
    which, arguments, options = wrong(change)
    with mock.patch.object(lesson.validate, "cache_numbers"):
        o, lse = lesson.launch_decode(*arguments, **options, splits=splits)
    assert o[which].isnan().all() and lse[which].isnan().all()
    assert o[1 - which].isfinite().all()


# ---------------------------------------------------------------- eight bits

def eight_bits(held):
    """Caches of eight bits and scales like held's, and held with the numbers that they stand for."""
    kept = []
    for name in ("k", "v"):
        x8, scales = lesson.quantize_rows(getattr(held, name))
        setattr(held, name, x8.double() * scales[..., None])
        kept += [held.spread(x8.view(torch.uint8), rest=0x7F).view(torch.float8_e4m3fn), held.spread(scales)]
    held.q = held.q.double()
    return kept[::2], torch.stack(kept[1::2])


@needs_fp8
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("page,splits", [(0, 1), (64, 2), (5, 2)])
def test_a_cache_in_eight_bits(dtype, page, splits):
    held = Held(2, 4, 2, 2, 100, 32, dtype, page)
    held.v *= torch.logspace(-3, 2, 100, device=device.DEVICE)[:, None].to(dtype)          # scales that differ by 10^5
    q = held.q
    caches, scales = eight_bits(held)
    o, lse = lesson.launch_decode(q, *caches, held.lengths, scales=scales, splits=splits, **held.options)
    for b, n in enumerate(held.lengths.tolist()):
        want, want_lse = reference.attention(q[b], held.k[b, :, :n], held.v[b, :, :n], is_causal=True, return_lse=True)
        spread = reference.attention(q[b], held.k[b, :, :n], held.v[b, :, :n].abs(), is_causal=True)
        assert (np.abs(array(o[b]) - want) <= 2.1 * att.ROUNDING[dtype] * spread + 1e-5 * np.maximum(1, spread)).all()
        np.testing.assert_allclose(array(lse[b]), want_lse, rtol=1e-4, atol=1e-4)


def test_quantized_rows():
    x = torch.randn(3, 5, 16) * torch.tensor([1e-4, 1, 1e4, 0, 1])[:, None]
    x8, scales = lesson.quantize_rows(x)
    assert (x8.float().abs().amax(2)[:, [0, 1, 2, 4]] == 448).all() and (scales[:, 3] == 1).all()
    torch.testing.assert_close(x8.float() * scales[..., None], x, rtol=2**-4, atol=0)
    same = lesson.quantize_rows(x[:, 2:3])
    assert torch.equal(same[0].float(), x8[:, 2:3].float()) and torch.equal(same[1], scales[:, 2:3])


# ---------------------------------------------------------------- the grid

@settings(max_examples=100, deadline=None)
@given(st.integers(1, 600), st.integers(1, 150), st.integers(1, 300))
def test_the_number_of_splits(programs, multiprocessors, most):
    def taken(splits):                                   # share of the places of all rounds
        return programs * splits / (-(-programs * splits // multiprocessors) * multiprocessors)
    found = lesson.splits_for(programs, multiprocessors, most)
    assert 1 <= found <= most and all(taken(splits) < 0.95 for splits in range(1, found))
    assert taken(found) >= 0.95 or taken(found) == max(map(taken, range(1, most + 1)))


def test_no_key_is_read_twice_and_none_is_left_out():
    """By the traffic, for tables that share pages; N_q and groups change nothing."""
    if not device.INTERPRETED:
        pytest.skip("counts in the interpreter")
    for heads, N_q, lengths, splits in ((2, 1, [70, 33], 1), (8, 4, [70, 33], 3), (4, 1, [0, 80], 4)):
        held = Held(2, heads, 2, N_q, 80, 16, torch.float16, 16, lengths=lengths)
        arguments = held.arguments
        with traffic.count() as moved:
            lesson.launch_decode(*arguments, **held.options, splits=splits)
        for name in ("k_ptr", "v_ptr"):
            assert moved.total("load", name).bytes == sum(lengths) * 2 * 16 * 2
        rows, parts = 2 * heads * N_q, splits if splits > 1 else 0
        assert moved.total("store").bytes == rows * (16 * 2 + 4) + rows * parts * (16 + 1) * 4
        assert moved.total("load", "parts_ptr").bytes == rows * parts * 16 * 4


def test_lists_are_tensors_for_the_traffic():
    shapes = (2, 8, 1, 64), (7, 2, 16, 64), (7, 2, 16, 64)
    moved = traffic.of("decoding", "decode_attention", *shapes, lengths=[70, 33], block_table=[[4, 0, 5, 2, 1]] * 2)
    assert moved.total("load", "k_ptr").bytes == 103 * 2 * 64 * 2


# ---------------------------------------------------------------- the compiler, graphs, what it refuses

def operands(**changes):
    held = Held(2, 4, 2, 3, 40, 16, torch.float16, 16)
    given = dict(zip(("q", "k_cache", "v_cache", "lengths"), held.arguments), **held.options)
    return given | changes


def test_opcheck():
    given = operands()
    arguments = *list(given.values()), None, 0.2
    assert set(opcheck(lesson.decode_operator, arguments).values()) == {"SUCCESS"}
    with torch._subclasses.FakeTensorMode() as mode:     # who looks on sees the operator
        o = decode(**{name: x if x is None else mode.from_tensor(x) for name, x in given.items()})
    assert o.shape == given["q"].shape


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=gpu)])
def test_one_graph_for_all_lengths(backend):
    torch.compiler.reset()
    fn = torch.compile(lambda *x, **options: decode(*x, return_lse=True, **options), fullgraph=True, backend=backend)
    for seed in range(3):
        held = Held(2, 4, 2, 1, 40, 16, torch.float16, 16, seed=seed)
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            held.check(*fn(*held.arguments, **held.options))


@gpu
@pytest.mark.parametrize("page", [0, 64])
def test_a_graph_with_lengths_that_change_on_the_gpu(page):
    held = Held(4, 8, 2, 1, 5000, 128, torch.float16, page, lengths=[5000] * 4)
    arguments, options = held.arguments, held.options
    decode(*arguments, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, lse = decode(*arguments, return_lse=True, **options)
    for lengths in ([5000, 1, 0, 77], [64, 65, 4999, 128]):
        arguments[3].copy_(torch.tensor(lengths, dtype=torch.int32))
        graph.replay()
        torch.cuda.synchronize()
        held.check(o, lse)


@gpu
@pytest.mark.parametrize("page,kv_heads", [(0, 8), (64, 8), (16, 1)])
def test_a_long_cache_on_the_gpu(page, kv_heads):
    held = Held(2, 32, kv_heads, 2, 20_000, 128, torch.float16, page, lengths=[20_000, 7777])
    held.check(*held.call())


REFUSED = [
    (dict(q=[1]), TypeError, "q is a list"), (dict(k_cache=None), TypeError, "k_cache is a NoneType"),
    (dict(q=torch.zeros(2, 4, 3, 16)), TypeError, "k_cache is torch.float16: expected torch.float32, the type of q"),
    (dict(q=torch.zeros(2, 4, 16).half()), ValueError, "q has 3 dimensions"),
    (dict(q=torch.zeros(2, 3, 3, 16).half()), ValueError, "k_cache has 2 heads, which does not divide the 3 heads of q"),
    (dict(q=torch.zeros(2, 4, 3, 8).half()), ValueError, "k_cache has 16 features a head, q has 8"),
    (dict(q=torch.zeros(1, 4, 3, 16).half()), ValueError, r"lengths has shape \[2\]: expected \[1\]"),
    (dict(v_cache=torch.zeros(8, 2, 15, 16).half()), ValueError, r"v_cache has shape \[8, 2, 15, 16\]: expected \[8, 2, 16"),
    (dict(lengths=torch.zeros(2)), TypeError, "lengths is torch.float32: expected torch.int32"),
    (dict(block_table=torch.zeros(2, 3).long()), TypeError, "block_table is torch.int64: expected torch.int32"),
    (dict(block_table=torch.zeros(3, 3).int()), ValueError, r"block_table has shape \[3, 3\]: expected \[2, 3\]"),
    (dict(block_table=torch.zeros(3).int()), ValueError, r"block_table has shape \[3\]"),
    (dict(block_table=None), ValueError, "k_cache has 8 batches, q has 2"),
    (dict(scales=torch.zeros(2, 8, 2, 16)), TypeError, "k_cache is torch.float16: expected torch.float8_e4m3fn beside scales"),
    (dict(k_cache=torch.zeros(8, 2, 16, 16).to(torch.float8_e4m3fn)), TypeError, "float8_e4m3fn beside scales"),
    (dict(scale="1"), TypeError, "scale is '1'"), (dict(scale=NAN), ValueError, "scale is nan"),
    (dict(q=torch.zeros(2, 4, 3, 16, dtype=torch.float16, requires_grad=True)), ValueError, "q requires a gradient")]


@pytest.mark.parametrize("change,error,message", REFUSED, ids=[message for *_, message in REFUSED])
def test_wrong_arguments_are_refused(change, error, message):
    moved = {name: x.to(device.DEVICE).detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x
             for name, x in change.items()}
    given = operands(**moved)
    arguments = [given.pop(name) for name in ("q", "k_cache", "v_cache", "lengths")]
    with pytest.raises(error, match=message):
        decode(*arguments, **given)


def test_a_head_dimension_of_more_than_256_is_refused():
    x = torch.zeros(1, 1, 1, 257, device=device.DEVICE)
    with pytest.raises(ValueError, match="D = 257"):
        decode(x, x, x, torch.ones(1, dtype=torch.int32, device=device.DEVICE))


# ---------------------------------------------------------------- writing

@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return model.GPT(model.StandardAttention, 7, 40, 32, 2, 1).to(device.DEVICE)


def test_a_text_with_a_cache_is_the_text_without(gpt):
    prompt = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(0)).to(device.DEVICE)
    text = prompt
    with torch.no_grad():
        for _ in range(8):
            text = torch.cat((text, gpt(text)[:, -1:].argmax(2)), dim=1)
    with att.nan_in_new_memory():
        assert torch.equal(lesson.generate(gpt, prompt, 8, N_max=16), text[:, 5:])


def test_steps_of_several_tokens_and_a_cache_that_is_reused(gpt):
    tokens = torch.randint(7, (2, 12), generator=torch.Generator().manual_seed(1)).to(device.DEVICE)
    want, cache = gpt(tokens).detach(), lesson.new_cache(gpt, 2, 12)
    lengths = cache[2]
    for _ in range(2):
        lengths.zero_()                                  # what is left from the first text is not seen in the second
        got = torch.cat([lesson.step(gpt, part, cache) for part in tokens.split([7, 1, 4], dim=1)], dim=1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert lengths.tolist() == [12, 12] and lengths.dtype == torch.int32


def test_an_unsplit_sequence_needs_no_merge():
    held, launched = Held(2, 2, 1, 1, 40, 16), []
    with mock.patch.object(lesson, "launch", lambda kernel, *rest, **more: launched.append(kernel)):
        lesson.launch_decode(*held.arguments, splits=1)
        lesson.launch_decode(*held.arguments, splits=2)
    assert launched == [lesson.decode_kernel, lesson.decode_kernel, lesson.merge_kernel]
