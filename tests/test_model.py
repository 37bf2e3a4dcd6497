"""Attention in a model: the layers against each other and PyTorch's, dropout, training, autocast, the stand-in."""
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from helpers import device
from helpers.bench import model as bench_model
from helpers.check.model import summing
from helpers.lessons import attention_in_a_model as lesson

MODULES = [lesson.StandardAttention, lesson.TritonFlashAttention, lesson.TorchAttention]
every = pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
flash = lesson.TritonFlashAttention


def tokens(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device.DEVICE)


def trio(*sizes, **options):
    """One layer of each kind, all with the parameters of the first."""
    torch.manual_seed(0)
    layers = [module(*sizes, **options).to(device.DEVICE) for module in MODULES]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    return layers


def results(layer, x, context=None, seed=0):
    """The output, and the gradients of all parameters and of the inputs."""
    inputs = [t.clone().requires_grad_() for t in (x, context) if t is not None]
    torch.manual_seed(seed)
    y = layer(*inputs)
    layer.zero_grad()
    (y * tokens(*y.shape, seed=9)).sum().backward()
    return [y.detach(), *(t.grad.clone() for t in (*layer.parameters(), *inputs))]


def close(a, b, bound=1e-5):
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max().item() < bound * (1 + y.abs().max().item()) if x.numel() else x.shape == y.shape


def test_parameters_are_the_same():
    shapes = [{name: p.shape for name, p in layer.named_parameters()} for layer in trio(32, 4, kv_heads=2)]
    assert shapes[0] == shapes[1] == shapes[2]
    assert {name.split(".")[0] for name in shapes[0]} == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert shapes[0]["k_proj.weight"] == shapes[0]["v_proj.weight"] == (16, 32)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cross", [False, True])
@every
def test_is_multi_head_attention(module, cross, causal):
    """PyTorch's own nn.MultiheadAttention, another author's code, with the same weights."""
    layer = module(32, 4, causal=causal).to(device.DEVICE)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True).to(device.DEVICE)
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = [getattr(p, name) for p in (layer.q_proj, layer.k_proj, layer.v_proj)]
            getattr(theirs, f"in_proj_{name}").copy_(torch.cat(parts))
            getattr(theirs.out_proj, name).copy_(getattr(layer.out_proj, name))
    x, context = tokens(2, 9, 32), tokens(2, 14, 32, seed=1) if cross else None
    other = x if context is None else context
    hidden = torch.ones(9, other.shape[1], dtype=torch.bool, device=device.DEVICE).triu(1 + other.shape[1] - 9)
    want = theirs(x, other, other, attn_mask=hidden if causal else None)[0]
    close([layer(x, context)], [want])


@settings(max_examples=12, deadline=None)
@given(heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (4, 1)]), D=st.sampled_from([1, 8, 20]), N_q=st.integers(1, 40),
       N_k=st.none() | st.integers(1, 40), causal=st.booleans(), dropout=st.sampled_from([0.0, 0.4]))
def test_standard_and_flash_agree(heads, D, N_q, N_k, causal, dropout):
    standard, triton, _ = trio(heads[0] * D, heads[0], heads[1], dropout=dropout, causal=causal)
    x, context = tokens(1, N_q, heads[0] * D), None if N_k is None else tokens(1, N_k, heads[0] * D, seed=1)
    close(results(triton, x, context), results(standard, x, context))


@pytest.mark.parametrize("options", [dict(), dict(causal=True), dict(causal=True, kv_heads=2)], ids=str)
@pytest.mark.parametrize("N_k", [None, 23])
def test_torch_agrees(options, N_k):
    standard, triton, theirs = trio(32, 4, **options)
    x, context = tokens(2, 12, 32), None if N_k is None else tokens(2, N_k, 32, seed=1)
    want = results(standard, x, context)
    close(results(theirs, x, context), want)
    close(results(triton, x, context), want)


@pytest.mark.parametrize("module", MODULES[:2], ids=lambda m: m.__name__)
def test_queries_that_see_nothing(module):
    layer = module(32, 4, causal=True).to(device.DEVICE)
    found = results(layer, tokens(1, 9, 32), tokens(1, 4, 32))
    assert all(torch.isfinite(x).all() for x in found)
    close([found[0][0, :5]], [layer.out_proj.bias.expand(5, 32)])


@every
def test_no_tokens(module):
    assert module(32, 4, causal=True).to(device.DEVICE)(tokens(2, 0, 32)).shape == (2, 0, 32)


@every
@pytest.mark.parametrize("arguments,message", [
    (dict(embed_dim=30, num_heads=4), "embed_dim is 30, which is no multiple of num_heads, 4"),
    (dict(embed_dim=0, num_heads=4), "embed_dim is 0, expected at least 1"),
    (dict(embed_dim=32, num_heads=0), "num_heads is 0, expected at least 1"),
    (dict(embed_dim=32, num_heads=4, kv_heads=3), "kv_heads is 3, which does not divide num_heads, 4"),
    (dict(embed_dim=32, num_heads=4, kv_heads=0), "kv_heads is 0, expected at least 1"),
    (dict(embed_dim=1028, num_heads=4), "embed_dim is 1028, so each of 4 heads has 257 features"),
    (dict(embed_dim=32, num_heads=4, dropout=1.0), "dropout is 1.0, expected 0 <= dropout < 1"),
    (dict(embed_dim=32, num_heads=4, dropout=-0.1), "dropout is -0.1"),
    (dict(embed_dim=32, num_heads=4, dropout=float("nan")), "dropout is nan"),
])
def test_refuses_sizes(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        module(**arguments)


@every
@pytest.mark.parametrize("shapes,message", [
    ([(5, 32)], r"x has shape \[5, 32\], expected \[B, N, 32\]"), ([(2, 5, 16)], r"x has shape \[2, 5, 16\]"),
    ([(2, 5, 32), (2, 5, 16)], r"context has shape \[2, 5, 16\]"),
    ([(2, 5, 32), (3, 5, 32)], "context has 3 batches, x has 2"),
])
def test_refuses_inputs(module, shapes, message):
    with pytest.raises(ValueError, match=message):
        module(32, 4).to(device.DEVICE)(*(tokens(*shape) for shape in shapes))


# ---------------------------------------------------------------- dropout

@every
def test_dropout_is_off_in_evaluation(module):
    layer, plain = module(32, 4, dropout=0.5).to(device.DEVICE), module(32, 4).to(device.DEVICE)
    plain.load_state_dict(layer.state_dict())
    x = tokens(2, 12, 32)
    state = torch.random.get_rng_state()
    assert torch.equal(layer.eval()(x), plain(x))
    assert torch.equal(state, torch.random.get_rng_state())            # and takes no random number
    assert not torch.equal(layer.train()(x), plain(x))


@every
def test_dropout_repeats_with_the_torch_seed_only(module):
    layer, x = module(32, 4, dropout=0.5).to(device.DEVICE), tokens(2, 12, 32)
    first, again, other = results(layer, x, seed=1), results(layer, x, seed=1), results(layer, x, seed=2)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    close(first, again)
    torch.manual_seed(1)
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("module", MODULES[:2], ids=lambda m: m.__name__)
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_dropout_rate(module, dropout):
    """Equal scores, and values of 1: each output counts the weights that were kept."""
    layer = summing(module(16, 1, dropout=dropout).to(device.DEVICE))
    with torch.no_grad():
        kept = layer(tokens(4, 64, 16))[:, :, 0] * (1 - dropout) * 64  # [4, 64] counts of 64
    assert (kept - kept.round()).abs().max() < 1e-3
    count = 4 * 64 * 64
    assert abs(kept.sum().item() / count - (1 - dropout)) < 5 * (dropout * (1 - dropout) / count)**0.5
    assert abs(kept.var().item() / (64 * dropout * (1 - dropout)) - 1) < 0.5      # each weight for itself


def test_the_mean_over_masks_is_attention():
    layer, x = flash(16, 1, dropout=0.3).to(device.DEVICE), tokens(1, 12, 16)
    with torch.no_grad():
        outputs = torch.stack([layer(x) for _ in range(60)])
        error = (outputs.mean(0) - layer.eval()(x)).abs() / (outputs.std(0) / 60**0.5 + 1e-6)
    assert error.max() < 6


# ---------------------------------------------------------------- the GPT

TEXT = "the quick brown fox jumps over the lazy dog. " * 4


def small(module, dropout=0.0):
    torch.manual_seed(3)
    model = lesson.GPT(module, len(set(TEXT)), context=16, embed_dim=16, num_heads=2, layers=2, dropout=dropout)
    return model.to(device.DEVICE)


def run(module, dropout=0.0, steps=6, **options):
    model = small(module, dropout)
    return model, [loss.item() for loss in lesson.train(model, lesson.encode(TEXT)[0], steps, batch=2, N=16, **options)]


def test_encode():
    found, alphabet = lesson.encode("hello")
    assert alphabet == "ehlo" and found.tolist() == [1, 0, 2, 2, 3] and found.dtype == torch.int64


@pytest.mark.parametrize("text,options,message", [
    (TEXT[:16], {}, "tokens has 16 characters, expected more than a window, N = 16"),
    (TEXT[:1], {}, "tokens has 1 characters"), ("", {}, "text is empty"),
    (TEXT, dict(N=0), "batch is 2 and N is 0"), (TEXT, dict(batch=0), "batch is 0 and N is 16"),
    (TEXT, dict(N=17), r"tokens has shape \[2, 17\], expected \[B, N\] with N from 1 to 16")], ids=str)
def test_training_refuses(text, options, message):
    with pytest.raises(ValueError, match=message):
        next(lesson.train(small(flash), lesson.encode(text)[0], 1, **dict(dict(batch=2, N=16), **options)))


def test_training_on_a_single_window():
    losses = [*lesson.train(small(flash), lesson.encode(TEXT)[0][:17], 2, batch=1, N=16)]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.parametrize("shape", [(1, 0), (5,), (1, 2, 3)], ids=str)
def test_the_gpt_refuses_tokens(shape):
    with pytest.raises(ValueError, match=r"tokens has shape \[.*\], expected \[B, N\] with N from 1 to 16"):
        small(flash)(torch.zeros(shape, dtype=torch.int64, device=device.DEVICE))


@pytest.mark.parametrize("dropout,steps", [(0.0, 6), (0.3, 3)])
def test_loss_curves_lie_on_each_other(dropout, steps):
    (standard, wanted), (triton, got) = (run(module, dropout, steps) for module in MODULES[:2])
    assert min(wanted) < wanted[0] - 0.1
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    for (name, a), (_, b) in zip(standard.named_parameters(), triton.named_parameters()):
        assert (a - b).abs().max() < (0.1 if name.endswith("k_proj.bias") else 1e-3), name


def test_training_repeats():
    assert run(flash, 0.3, 2)[1] == run(flash, 0.3, 2)[1]


def test_the_gpt_is_causal():
    model = small(flash)
    rows = torch.randint(len(set(TEXT)), (1, 16), device=device.DEVICE)
    other = rows.clone()
    other[0, 9] = (other[0, 9] + 1) % len(set(TEXT))
    before, after = model(rows), model(other)
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.equal(before[:, 9:], after[:, 9:])
    with pytest.raises(ValueError, match=r"tokens has shape \[1, 17\], expected \[B, N\] with N from 1 to 16"):
        model(torch.zeros(1, 17, dtype=torch.int64, device=device.DEVICE))


def test_training_in_bfloat16():
    model, losses = run(flash, steps=4, dtype=torch.bfloat16)
    np.testing.assert_allclose(losses, run(MODULES[0], steps=4)[1], atol=0.02)
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype,bound", [(torch.bfloat16, 0.03), (torch.float16, 0.004)], ids=str)
def test_autocast(dtype, bound):
    standard, triton, _ = trio(32, 4, kv_heads=2, causal=True)
    x = tokens(2, 20, 32)
    exact = results(standard, x)
    for layer in (standard, triton):
        with torch.autocast(device.DEVICE, dtype):
            assert layer(x).dtype == dtype
            got = results(layer, x)
        close([y.float() for y in got], exact, bound)


# ---------------------------------------------------------------- the stand-in

@pytest.mark.parametrize("options", [dict(), dict(is_causal=True), dict(scale=0.3),
                                     dict(enable_gqa=True, is_causal=True)], ids=str)
def test_drop_in_is_sdpa(options):
    q, k, v = tokens(2, 4, 12, 16), *tokens(2, 2, 2 if options.get("enable_gqa") else 4, 12, 16, seed=1)
    close([lesson.drop_in(q, k, v, **options)], [F.scaled_dot_product_attention(q, k, v, **options)])
    shorter = [q[:, :, :3], k, v]
    close([lesson.drop_in(*shorter, enable_gqa=True)], [F.scaled_dot_product_attention(*shorter, enable_gqa=True)])


@pytest.mark.parametrize("scale", [torch.tensor(0.3), torch.tensor(2), np.float32(0.3), 1], ids=repr)
def test_drop_in_takes_the_scales_that_sdpa_takes(scale):
    q, k, v = tokens(3, 1, 2, 12, 16)
    close([lesson.drop_in(q, k, v, scale=scale)], [F.scaled_dot_product_attention(q, k, v, scale=scale)])


def test_drop_in_takes_arguments_by_place():
    q, k, v = tokens(3, 1, 2, 12, 16)
    torch.manual_seed(1)
    dropped = lesson.drop_in(q, k, v, None, 0.5, True)
    torch.manual_seed(1)
    assert torch.equal(dropped, lesson.drop_in(q, k, v, dropout_p=0.5, is_causal=True))
    assert not torch.equal(dropped, lesson.drop_in(q, k, v, is_causal=True))


@pytest.mark.parametrize("change,error,message", [
    (lambda q, k, v: dict(attn_mask=torch.ones(12, 12)), ValueError, r"attn_mask has shape \[12, 12\]"),
    (lambda q, k, v: dict(query=q[:, :, :1], is_causal=True), ValueError, "is_causal with 1 queries and 12 keys"),
    (lambda q, k, v: dict(value=v[..., :8]), ValueError, "v has shape"),
    (lambda q, k, v: dict(key=k[:, :1], value=v[:, :1]), ValueError, "enable_gqa"),
    (lambda q, k, v: dict(query=q[0], key=k[0], value=v[0]), ValueError, "q has 3 dimensions"),
    (lambda q, k, v: dict(query=q.double(), key=k.double(), value=v.double()), TypeError, "float64"),
    (lambda q, k, v: dict(dropout_p=1.0), ValueError, "dropout_p is 1.0"),
    (lambda q, k, v: dict(scale=torch.tensor([0.3])), TypeError, r"scale is a tensor of shape \[1\]"),
    (lambda q, k, v: dict(scale=torch.tensor(0.3, requires_grad=True)), TypeError, "requires a gradient: True"),
])
def test_drop_in_refuses(change, error, message):
    q, k, v = tokens(3, 1, 2, 12, 16)
    with pytest.raises(error, match=message):
        lesson.drop_in(**(dict(query=q, key=k, value=v) | change(q, k, v)))


def test_drop_in_under_autocast_casts_like_sdpa():
    q, k, v = tokens(3, 1, 2, 12, 16)
    with torch.autocast(device.DEVICE, torch.bfloat16):
        got, want = lesson.drop_in(q, k.bfloat16(), v), F.scaled_dot_product_attention(q, k.bfloat16(), v)
    assert got.dtype == want.dtype == torch.bfloat16
    close([got.float()], [want.float()], 0.02)


def test_drop_in_trains_somebody_elses_layer():
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True).to(device.DEVICE)
    want = results(theirs, tokens(2, 12, 32))
    with mock.patch.object(F, "scaled_dot_product_attention", side_effect=lesson.drop_in) as ours:
        close(results(theirs, tokens(2, 12, 32)), want)
        assert ours.call_count == 1


# ---------------------------------------------------------------- the benchmark's own check

def test_training_suite_rejects_another_curve():
    wanted = [4.0, 3.0, 2.0]
    assert bench_model.verified("same", [4.001, 3.01, 2.02], wanted, 512) == pytest.approx(0.02)
    for losses in ([4.1, 3.0, 2.0], [4.0, 3.0, 2.2], [4.0, float("nan"), 2.0], [float("nan"), 3.0, 2.0]):
        with pytest.raises(AssertionError, match="other at N = 512: its losses are off by"):
            bench_model.verified("other", losses, wanted, 512)
