"""attention as an operator of PyTorch: compiled, checkpointed, captured; and what it refuses."""
import inspect
from unittest import mock

import pytest
import torch
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from attention import (BOUNDS, VIEWS, Seen, causal_or_not, close_grads, compiled, grads, half_types, inputs, leaves,
                       wanted)
from helpers import device, lessons
from helpers.lessons import attention_in_a_model as lesson

attention = lesson.attention
gpu = pytest.mark.gpu
SHAPE = (1, 2, 1, 9, 11, 8)                              # B, heads, kv_heads, N_q, N_k, D
backends = pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=gpu)])


def no_recompilation():
    return torch.compiler.set_stance("fail_on_recompile")


def one_mask(attend, q, k, v, **options):
    """Assert that forward and backward drop the same: o is linear in v, so sum(o * do) is sum(v * dv). Returns o."""
    o = attend(q, k, v, **options)
    do = torch.linspace(-1, 2, o.numel(), device=o.device).view(o.shape)
    dv, = torch.autograd.grad(o, v, do)
    assert (o * do).sum().item() == pytest.approx((v * dv).sum().item(), rel=1e-4)
    return o


# ---------------------------------------------------------------- the operator

@causal_or_not
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("options", [dict(), dict(scale=-0.3), dict(dropout_p=0.5, seed=5)], ids=str)
def test_right_values(dtype, is_causal, options):
    """Those of the reference; with dropout those of flash_attention, whose tests know the mask."""
    *tensors, do = inputs(*SHAPE, dtype, more=1)
    got = grads(attention, tensors, do, is_causal=is_causal, **options)
    if "seed" in options:
        theirs = grads(lessons.backward_triton.flash_attention, tensors, do, is_causal=is_causal, **options)
        assert all(map(torch.equal, got, theirs)) if device.INTERPRETED else all(map(torch.allclose, got, theirs))
    else:
        close_grads(got, wanted(tensors, do, is_causal=is_causal, **options), BOUNDS[dtype])


def arguments(dtype, is_causal, dropout_p, layout, **changes):
    q, k, v = (VIEWS[layout][0](x).requires_grad_() for x in inputs(*(changes.get("shape") or SHAPE), dtype))
    return q, k, v, torch.tensor(3) if dropout_p else None, is_causal, None, dropout_p, True


CASES = [(torch.float32, True, 0.0, "contiguous"), (torch.float16, False, 0.5, "[B, N, heads, D]"),
         (torch.float32, False, 0.5, "every second feature"), (torch.float16, True, 0.0, "heads first")]


@pytest.mark.parametrize("dtype,is_causal,dropout_p,layout", CASES, ids=str)
def test_opcheck(dtype, is_causal, dropout_p, layout):
    given = arguments(dtype, is_causal, dropout_p, layout)
    assert set(opcheck(lesson.attention_forward, given).values()) == {"SUCCESS"}
    with torch.no_grad():
        o, lse = lesson.attention_forward(*given)
        tensors = [x.detach() for x in (*given[:3], o, lse, torch.randn_like(o), torch.randn_like(lse))]
    found = opcheck(lesson.attention_gradients, (*tensors, *given[3:7], [True, True, not is_causal]))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("layout", VIEWS)
@half_types
@pytest.mark.parametrize("shape", [SHAPE, (2, 4, 2, 1, 5, 1), (0, 2, 1, 3, 4, 8), (1, 2, 2, 0, 4, 8)], ids=str)
def test_the_fake_has_the_strides_of_the_result(dtype, layout, shape):
    given = arguments(dtype, False, 0.0, layout, shape=shape)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = lesson.attention_forward(*(mode.from_tensor(x) for x in given[:3]), *given[3:])
    for fake, real in zip(fakes, lesson.attention_forward(*given), strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_o_lies_in_memory_like_q():
    """So a layer sews heads together without a copy."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(*SHAPE, torch.float16))
    assert attention(q, k, v, enable_gqa=True).stride() == q.stride()


def test_who_looks_on_sees_operators_and_gets_the_same():
    *tensors, do = inputs(*SHAPE, more=1)
    call = lambda: grads(attention, tensors, do, is_causal=True)
    with mock.patch.object(lesson, "attention_forward", side_effect=AssertionError("an operator costs the host time")):
        want = call()
    with Seen() as seen:
        got = call()
    assert all(map(torch.equal, got, want))
    assert {f"{lesson.SPACE}.{name}.default" for name in ("attention", "attention_backward")} <= set(seen.names)
    with torch._subclasses.FakeTensorMode() as mode:
        assert attention(*map(mode.from_tensor, tensors), enable_gqa=True).shape == tensors[0].shape


@pytest.mark.parametrize("need", [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_gradients_that_are_not_needed_are_not_computed(need):
    q, k, v = (x.requires_grad_(n) for x, n in zip(inputs(*SHAPE), need))
    for fn in (attention, compiled(attention)):
        fn(q, k, v, enable_gqa=True).sum().backward()
        assert [x.grad is not None for x in (q, k, v)] == list(need)


# ---------------------------------------------------------------- torch.compile

@causal_or_not
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@backends
def test_compiles_as_one_graph(backend, dtype, is_causal):
    """o, lse and all gradients, from both outputs."""
    *tensors, do = inputs(*SHAPE, dtype, more=1)
    got = []
    for fn in (attention, compiled(attention, backend=backend)):
        q, k, v = (x.clone().requires_grad_() for x in tensors)
        o, lse = fn(q, k, v, is_causal=is_causal, enable_gqa=True, return_lse=True)
        got.append([o, lse, *torch.autograd.grad((o * do).sum() + lse.sum(), (q, k, v))])
    for x, y in zip(*got):
        torch.testing.assert_close(x, y, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@backends
def test_one_graph_serves_every_length(backend):
    fn = compiled(attention, dynamic=True, backend=backend)
    for N in (9, 12, 40):
        with no_recompilation() if N > 9 else torch.compiler.set_stance("default"):
            tensors, _ = leaves(1, 2, 1, N, N + 3, 8)
            close_grads(grads(fn, tensors, torch.ones_like(tensors[0]), is_causal=True),
                        wanted(tensors, torch.ones_like(tensors[0]), is_causal=True), BOUNDS[torch.float32])


def test_mark_dynamic():
    fn = compiled(lambda q, k, v: attention(q, k, v, is_causal=True))
    for N in (9, 12):
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(2, 3, 3, N, N, 8))
        for x in (q, k, v):
            torch._dynamo.mark_dynamic(x, 2)
        with no_recompilation() if N > 9 else torch.compiler.set_stance("default"):
            assert torch.equal(fn(q, k, v), attention(q, k, v, is_causal=True))


def test_numbers_may_change():
    fn, tensors = compiled(attention), inputs(1, 2, 2, 9, 9, 8)
    for scale, dropout_p, seed in ((None, 0.0, None), (0.1, 0.1, 1), (0.2, 0.1, 2), (0.3, 0.4, 3), (-0.1, 0.0, None)):
        options = dict(scale=scale, dropout_p=dropout_p, seed=seed)
        assert torch.equal(fn(*tensors, **options), attention(*tensors, **options)), options


@backends
def test_every_compiled_call_draws_its_seed(backend):
    """In the graph, not while it is made; torch.manual_seed repeats it."""
    fn, (q, k, v) = compiled(attention, backend=backend), leaves(1, 2, 2, 24, 24, 8)[0]
    torch.manual_seed(1)
    first, second = (one_mask(fn, q, k, v, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(fn(q, k, v, dropout_p=0.5), first) and not torch.equal(first, second)
    if backend == "aot_eager":                           # the other one has a generator of its own
        torch.manual_seed(1)
        assert torch.equal(attention(q, k, v, dropout_p=0.5), first)


@backends
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_layer_and_the_model_compile(backend, dropout):
    torch.manual_seed(0)
    model = lesson.GPT(lesson.TritonFlashAttention, 5, 16, 16, 2, 1, dropout=dropout).to(device.DEVICE)
    rows = torch.randint(5, (2, 12), device=device.DEVICE)
    found = []
    for fn in (model, compiled(model, backend=backend)):
        torch.manual_seed(1)
        model.zero_grad()
        y = fn(rows)
        y.square().mean().backward()
        found.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    if backend == "aot_eager" or not dropout:            # the other one draws other seeds
        for x, y in zip(*found):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_autocast_inside_of_a_graph():
    def loss(q):
        with torch.autocast(device.DEVICE, torch.bfloat16):
            return attention(q, q, q)
    assert compiled(loss)(inputs(*SHAPE)[0]).dtype == torch.bfloat16


@gpu
def test_compiled_for_few_launches():
    """mode="reduce-overhead" makes CUDA graphs, and must not replay one seed."""
    fn, (q, k, v) = compiled(attention, backend="inductor", mode="reduce-overhead"), leaves(2, 4, 4, 256, 256, 64)[0]
    seen = [one_mask(fn, q, k, v, dropout_p=0.5).detach().clone() for _ in range(5)]
    assert not any(torch.equal(seen[i], seen[j]) for i in range(5) for j in range(i))
    torch.testing.assert_close(fn(q, k, v), attention(q, k, v), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- CUDA graphs and streams

LONG = [(1, 4, 4, 512, 512, 64), (1, 4, 2, 4096, 4096, 128)]        # the second is for v3's or v4's kernel


@gpu
@pytest.mark.parametrize("shape", LONG, ids=str)
def test_cuda_graph_of_the_forward_pass(shape):
    q, k, v = inputs(*shape, torch.float16)
    attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = attention(q, k, v, is_causal=True, enable_gqa=True)
    for seed in (1, 2):
        for x, new in zip((q, k, v), inputs(*shape, torch.float16, seed=seed)):
            x.copy_(new)
        graph.replay()
        torch.testing.assert_close(o, attention(q, k, v, is_causal=True, enable_gqa=True))


@gpu
@pytest.mark.parametrize("shape", LONG, ids=str)
def test_cuda_graph_of_forward_and_backward(shape):
    tensors, do = leaves(*shape, dtype=torch.float16)

    def step():
        return torch.autograd.grad(attention(*tensors, enable_gqa=True), tensors, do)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        for x, new in zip(tensors, inputs(*shape, torch.float16, seed=1)):
            x.copy_(new)
    graph.replay()
    for x, y in zip(found, step()):
        torch.testing.assert_close(x, y, rtol=5e-3, atol=5e-3)


@gpu
def test_another_stream():
    q, k, v = inputs(1, 8, 8, 4096, 4096, 128, torch.float16)
    want, stream = attention(q, k, v), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        o = attention(q, k, v)
    stream.synchronize()
    torch.testing.assert_close(o, want)


# ---------------------------------------------------------------- checkpoints, autocast

@pytest.mark.parametrize("use_reentrant,compile_it", [(False, False), (True, False), (False, True)])
def test_a_checkpoint_drops_the_same_weights_again(use_reentrant, compile_it):
    torch.manual_seed(0)
    layer = lesson.TritonFlashAttention(16, 2, dropout=0.4, causal=True).to(device.DEVICE)
    x = torch.randn(2, 20, 16, device=device.DEVICE, requires_grad=True)

    def again(x):
        return checkpoint(layer, x, use_reentrant=use_reentrant)
    found = []
    for fn in (layer, compiled(again) if compile_it else again):
        torch.manual_seed(5)
        layer.zero_grad()
        fn(x).square().sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    assert all(map(torch.allclose, *found))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_as_pytorch_does(dtype):
    q, k, v = inputs(1, 2, 2, 9, 9, 8)
    with torch.autocast(device.DEVICE, dtype):
        assert attention(q, k, v).dtype == F.scaled_dot_product_attention(q, k, v).dtype == dtype
        assert attention(q.half(), k.half(), v.half()).dtype == dtype
        with pytest.raises(TypeError, match="no kernel for torch.float64"):
            attention(q.double(), k.double(), v.double())
        leaf = q.clone().requires_grad_()
        attention(leaf, k, v).float().sum().backward()
        assert leaf.grad.dtype == torch.float32
    assert attention(q, k, v).dtype == torch.float32


# ---------------------------------------------------------------- what it refuses

def test_has_the_arguments_of_flash_attention():
    theirs = inspect.signature(lessons.backward_triton.flash_attention).parameters
    assert inspect.signature(attention).parameters == theirs


@pytest.mark.parametrize("place,name", [*enumerate("qkv")])
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")       # torch.func.jvp's own
def test_function_transforms_are_refused(transform, place, name):
    tensors = inputs(1, 2, 2, 5, 5, 8)

    def fn(x):
        return attention(*(x if i == place else t for i, t in enumerate(tensors))).sum()
    x = tensors[place]
    calls = dict(grad=lambda: torch.func.grad(fn)(x), vmap=lambda: torch.vmap(fn)(x.repeat(3, 1, 1, 1, 1)),
                 jvp=lambda: torch.func.jvp(fn, (x,), (x,)))
    with pytest.raises(ValueError, match=rf"{name} is inside torch.func \(grad, vmap, jvp, ...\)"):
        calls[transform]()
    torch.testing.assert_close(attention(*tensors), F.scaled_dot_product_attention(*tensors))    # nothing is left over


@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_forward_mode_tangent_is_refused(requires_grad):
    q, k, v = inputs(1, 2, 2, 5, 5, 8)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(k, torch.ones_like(k))
        with pytest.raises(ValueError, match="k has a forward-mode tangent: attention has no forward-mode derivative"):
            attention(q.requires_grad_(requires_grad), dual, v)


def test_a_forward_mode_tangent_is_refused_in_a_graph():
    q, k, v = inputs(1, 2, 2, 5, 5, 8)
    with pytest.raises(Exception, match="has a forward-mode tangent|no forward-mode|Observed exception"):
        compiled(lambda q: torch.func.jvp(lambda q: attention(q, k, v), (q,), (q,))[1])(q)


@pytest.mark.parametrize("fn", [attention, compiled(attention)], ids=["eager", "compiled"])
def test_a_second_derivative_is_refused(fn):
    (q, k, v), _ = leaves(1, 2, 2, 5, 5, 8)
    with pytest.raises((NotImplementedError, RuntimeError), match="second derivative|double backward"):
        dq, = torch.autograd.grad(fn(q, k, v).sum(), q, create_graph=True)
        dq.sum().backward()


@pytest.mark.parametrize("change,error,message", [
    (dict(q=[1]), TypeError, "q is a list"), (dict(k=torch.zeros(1, 2, 5, 4)), ValueError, "v has shape"),
    (dict(v=torch.zeros(1, 2, 5, 8).double()), TypeError, "float64"), (dict(dropout_p=1.0), ValueError, "dropout_p is"),
    (dict(seed=-1), ValueError, "seed is -1"), (dict(seed=0.5), TypeError, "seed is 0.5"),
    (dict(scale="0.3"), TypeError, "scale is .*: expected a number"),
    (dict(scale=torch.tensor(0.3)), TypeError, "scale is a Tensor: expected a number"),
    (dict(q=torch.zeros(1, 4, 5, 8)), ValueError, "enable_gqa")], ids=str)
def test_wrong_arguments_are_refused(change, error, message):
    def moved(x):
        return x.to(device.DEVICE) if isinstance(x, torch.Tensor) else x
    given = dict(zip("qkv", inputs(1, 2, 2, 5, 5, 8))) | {name: moved(x) for name, x in change.items()}
    tensors, options = [given.pop(name) for name in "qkv"], given
    with pytest.raises(error, match=message):
        attention(*tensors, **options)
    if all(isinstance(x, torch.Tensor) for x in tensors):
        with pytest.raises(Exception, match=message):    # wrapped in one of the compiler's
            compiled(attention)(*tensors, **options)
