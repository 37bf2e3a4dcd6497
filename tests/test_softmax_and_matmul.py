"""Row softmax and matrix product: values, edges, refusals."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.autograd import forward_ad

from helpers import device
from helpers.check.core import poisoned, unwritten
from helpers.lessons import matmul_triton, softmax_triton
from helpers.lessons.matmul_triton import matmul
from helpers.lessons.softmax_triton import softmax

SOFTMAX_BOUNDS = {torch.float32: 1e-6, torch.float16: 2.5e-4, torch.bfloat16: 4e-3}    # bfloat16: the interpreter cuts
MATMUL_BOUNDS = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}    # relative
TILES = dict(BLOCK_M=32, BLOCK_N=16, BLOCK_K=16, GROUP=3)
softmax_types = pytest.mark.parametrize("dtype", SOFTMAX_BOUNDS, ids=str)
matmul_types = pytest.mark.parametrize("dtype", MATMUL_BOUNDS, ids=str)
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy, inside the interpreter, announces what we ask for


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device.DEVICE, dtype)


def same(got, want, tolerance):
    np.testing.assert_allclose(got.double().cpu().numpy(), want.double().cpu().numpy(), rtol=0, atol=tolerance)


def relative_error(c, a, b):
    exact = a.double() @ b.double()
    return ((c.double() - exact).norm() / exact.norm()).item()


# ---------------------------------------------------------------- softmax

@softmax_types
@pytest.mark.parametrize("N", [1, 2, 3, 64, 127, 128, 129, 1000, 16384, 16385, 40000])
def test_softmax_agrees_with_float64(N, dtype):
    x = 5 * random(3, N, dtype=dtype)
    z = softmax(x)
    assert z.dtype == dtype and z.shape == x.shape
    same(z, torch.softmax(x.double(), 1), SOFTMAX_BOUNDS[dtype])


def test_softmax_of_long_rows_at_any_block(monkeypatch):
    x = 5 * random(4, 300)
    for widest in (16, 64, 256):
        monkeypatch.setattr(softmax_triton, "WIDEST", widest)
        same(softmax(x), torch.softmax(x.double(), 1), 1e-6)


@pytest.mark.parametrize("N", [100, 20000])
def test_softmax_of_strided_views(N):
    x = random(5, 2 * N)
    for view in (x[:, ::2], x[:, :N], x[::2, N:], x.reshape(2 * N, 5).T, x[:1, :N].expand(3, N)):
        same(softmax(view), torch.softmax(view.double(), 1), 1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_softmax_of_nothing(shape):
    assert softmax(torch.empty(shape, device=device.DEVICE)).shape == shape


@quiet
@softmax_types
@pytest.mark.parametrize("N", [40, 20000])
def test_softmax_of_nan_and_inf_is_pytorchs(N, dtype):
    x = random(6, N, dtype=dtype)
    inf = float("inf")
    x[0, 7], x[1, 7], x[2, 7], x[3, :], x[4, ::2], x[5, 3] = float("nan"), inf, -inf, -inf, -inf, 6e4
    same(softmax(x), torch.softmax(x.float(), 1), SOFTMAX_BOUNDS[dtype])     # NaN where it has NaN


def test_softmax_writes_every_element_and_leaves_its_input():
    x = random(5, 100)
    before = x.clone()
    with poisoned():
        assert not unwritten(softmax(x))
    assert x.equal(before)


def test_softmax_in_steps_is_softmax():
    x = 5 * random(5, 100)
    same(softmax_triton.softmax_in_steps(x), torch.softmax(x.double(), 1), 1e-6)


# ---------------------------------------------------------------- matmul

@matmul_types
@pytest.mark.parametrize("M,N,K", [(1, 1, 1), (16, 16, 16), (17, 33, 65), (200, 130, 100), (1, 300, 70), (129, 1, 64)])
def test_matmul_agrees_with_float64(M, N, K, dtype):
    a, b = random(M, K, dtype=dtype), random(K, N, dtype=dtype, seed=1)
    c = matmul(a, b)
    assert c.dtype == dtype and c.shape == (M, N) and relative_error(c, a, b) <= MATMUL_BOUNDS[dtype]


@settings(max_examples=20, deadline=None)
@given(M=st.integers(1, 70), N=st.integers(1, 70), K=st.integers(1, 70), BLOCK_M=st.sampled_from([16, 32]),
       BLOCK_N=st.sampled_from([16, 32]), BLOCK_K=st.sampled_from([16, 32]), GROUP=st.integers(1, 4))
def test_matmul_with_any_shape_and_tile(M, N, K, BLOCK_M, BLOCK_N, BLOCK_K, GROUP):
    a, b = random(M, K), random(K, N, seed=1)
    tiles = dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, GROUP=GROUP)
    assert relative_error(matmul(a, b, tiles=tiles), a, b) < 1e-6


def test_matmul_of_strided_views():
    square, wide = random(64, 64), random(64, 192)       # square, so that swapped strides would go unnoticed elsewhere
    for a in (square, square.T, wide[:, ::3], wide[:, 64:128]):
        for b in (square, square.T, wide[:, ::3], wide[:, 64:128], square[:1].expand(64, 64)):
            assert relative_error(matmul(a, b), a, b) < 1e-6


@matmul_types
def test_matmul_sums_in_float32(dtype):
    ones = torch.ones(3, 4096, device=device.DEVICE, dtype=dtype)
    assert (matmul(ones, ones.T, tiles=TILES) == 4096).all()


def test_matmul_of_nothing():
    empty = lambda *shape: torch.empty(shape, device=device.DEVICE)
    assert matmul(empty(0, 5), empty(5, 3)).shape == (0, 3) and matmul(empty(4, 5), empty(5, 0)).shape == (4, 0)
    assert matmul(empty(4, 0), empty(0, 3)).equal(torch.zeros(4, 3, device=device.DEVICE))


@quiet
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_matmul_keeps_nan_and_inf_where_they_belong(value):
    a, b = random(50, 40), random(40, 70, seed=1)
    a[49, 39], b[0, 69] = value, value                   # at the edges, next to the masked lanes
    same(matmul(a, b), a.double() @ b.double(), 1e-4)


def test_matmul_writes_every_element_and_leaves_its_inputs():
    a, b = random(33, 40), random(40, 50, seed=1)
    before = a.clone(), b.clone()
    with poisoned():
        assert not unwritten(matmul(a, b)) and not unwritten(matmul_triton.naive_matmul(a, b))
    assert a.equal(before[0]) and b.equal(before[1])


@matmul_types
def test_naive_matmul(dtype):
    a, b = random(5, 30, dtype=dtype), random(30, 300, dtype=dtype, seed=1)
    assert relative_error(matmul_triton.naive_matmul(a, b), a, b) <= MATMUL_BOUNDS[dtype]


def test_tuning_offers_one_choice_to_the_interpreter():
    assert len(matmul_triton.tuned_matmul_kernel.configs) == (1 if device.INTERPRETED else 5)
    assert matmul_triton.tuning("first", "second") == (["first"] if device.INTERPRETED else ["first", "second"])


# ---------------------------------------------------------------- refusals

x, y = random(10, 8), random(8, 6)


@pytest.mark.parametrize("call,error_type,message", [
    (lambda: softmax(x[None]), ValueError, r"x has 3 dimensions, shape \[1, 10, 8\]: expected \[rows, N\]"),
    (lambda: softmax(x[0]), ValueError, "x has 1 dimensions"),
    (lambda: softmax(x.double()), TypeError, "no kernel for torch.float64"),
    (lambda: softmax([1.0]), TypeError, "x is a list"),
    (lambda: softmax(x.to("meta")), ValueError, "x is on meta"),
    (lambda: softmax(x.clone().requires_grad_()), ValueError, "x requires a gradient"),
    (lambda: matmul(x, x), ValueError, "a has 8 columns, b has 10 rows: they must be equal"),
    (lambda: matmul(x[None], y), ValueError, r"a has 3 dimensions, shape \[1, 10, 8\]: expected a matrix"),
    (lambda: matmul(x, y[:, 0]), ValueError, "b has 1 dimensions"),
    (lambda: matmul(x, y.half()), TypeError, "b is torch.float16, a is torch.float32"),
    (lambda: matmul(x.long(), y.long()), TypeError, "no kernel for torch.int64"),
    (lambda: matmul(x, y.cpu().numpy()), TypeError, "b is a ndarray"),
    (lambda: matmul(x, y.clone().requires_grad_()), ValueError, "b requires a gradient"),
    (lambda: matmul(x, y, tiles=dict(BLOCK_M=48)), ValueError, "BLOCK_M = 48: expected a power of two"),
    (lambda: matmul(x, y, tiles=dict(BLOCK_K=8)), ValueError, "BLOCK_K = 8: expected a power of two from 16"),
    (lambda: matmul(x, y, tiles=dict(GROUP=0)), ValueError, "GROUP = 0"),
    (lambda: matmul(x, y, tiles=dict(BLOCK=16)), ValueError, "tiles has 'BLOCK', which is none of BLOCK_M"),
    (lambda: torch.vmap(softmax)(x[None]), ValueError, "x belongs to a transform of torch.func"),
])
def test_refuses_in_a_sentence(call, error_type, message):
    with pytest.raises(error_type, match=message):
        call()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")           # inside of PyTorch's forward mode
def test_no_tangent_is_lost():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(ValueError, match="x carries a tangent"):
            softmax(dual)
        with pytest.raises(ValueError, match="a carries a tangent"):
            matmul(dual, y)
