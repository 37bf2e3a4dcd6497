"""Checks of operations on rows, to a row or to a number, and of matrix products, in Triton."""
import torch

from helpers.check.core import agrees, everywhere, guarded, outside, over, properties, untouched, unwritten
from helpers.check.kernels import own_work
from helpers.device import DEVICE


def softmax(fn):
    """fn(x) returns the softmax of each row of a float32 tensor [rows, N]."""
    masked = ("scores of -inf weigh nothing", over("", _masked)(agrees(_soft(torch.softmax)), (5, 256)))
    properties("softmax", _rows(torch.softmax) + [masked], fn)


def log_softmax(fn):
    """fn(x) returns the logarithm of the softmax of each row of a float32 tensor [rows, N]."""
    properties("log_softmax", _rows(torch.log_softmax), fn)


def entropy(fn):
    """fn(x) returns the entropy of the softmax of each row of a float32 tensor [rows, N]: [rows]."""
    on, right, sizes = over("shape [{}, {}]", _shifted), agrees(_entropy), ((3, 1), (4, 100), (6, 128))
    properties("entropy", [
        ("rows of a power of two", on(right, (4, 128), (3, 64, 4.0))),
        ("rows that are no power of two", on(right, (4, 100), (3, 129), (2, 1000))),
        ("a row of one number is certain", on(right, (3, 1))),
        ("scores of 1e4, and all negative", on(right, (3, 128, 1.0, 1e4), (3, 100, 1.0, -1e4))),
        ("weights of 0 add nothing", on(right, (5, 64, 1.0, 0.0, 3), (3, 128, 100.0))),
        ("every row gets its number", on(everywhere(unwritten), *sizes)),
        ("nothing outside is written", on(everywhere(outside), *sizes))], fn)


def matmul(fn):
    """fn(a, b) returns a @ b for tensors [M, K] and [K, N], float32 or float16, of any strides."""
    views = ("views that are not contiguous", over("", _views)(_right(torch.matmul), ()))
    properties("matmul", _products(torch.matmul, lambda a, b, bias: (a, b)) + [views], fn)


def linear(fn):
    """fn(x, w, bias) returns x @ w.T + bias for tensors [M, K], [N, K] and [N], float32 or float16, contiguous.

    One kernel does it all: no copy of w, no second pass for the bias.
    """
    on = over("shape {} x {} x {}", lambda *shape: _transposed(*_factors(*shape)))
    once = over("", lambda: _transposed(*_odd_sums(32, 32, 64)))
    properties("linear", _products(torch.nn.functional.linear, _transposed) + [
        ("the bias is added before the sum is rounded", once(_right(torch.nn.functional.linear), ())),
        ("one kernel reads the inputs and stores the result", on(own_work, (40, 33, 48)))], fn)


def _random(*shape):
    """Standard normal float32 numbers, the same at every call with this shape."""
    return guarded(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE))


# ---------------------------------------------------------------- rows

def _soft(operation):
    """torch.softmax or torch.log_softmax along rows, in float64."""
    return lambda x: operation(x.double(), dim=1)


def _scores(rows, N, first=6):
    """Random scores whose first column has the largest of each row, and a positive one."""
    x = _random(rows, N)
    x[:, 0] = first
    return [x]


def _masked(rows, N):
    [x] = _scores(rows, N)
    x[:, 100::3] = -float("inf")
    return [x]


def _one(first, others):
    """So far below the first that only one weight is left. N is no power of two, though a multiple of 64."""
    x = torch.full((7, 192), float(others), device=DEVICE)
    x[:, 0] = first
    return [guarded(x)]


def _rows(operation):
    """The properties of softmax and of its logarithm."""
    right, on = agrees(_soft(operation)), over("shape {} x {}", _scores)
    return [("the values are right", on(right, (7, 256), (3, 1024))),
            ("a length that is no power of two", on(right, (7, 50), (3, 1000))),
            ("a single column", over("", lambda: [_random(5, 1)])(right, ())),
            ("scores of 1e4", over("", _one)(right, (1e4, 0))),
            # all negative: the name keeps that to itself, for a bug hunt
            ("a row that is rare in practice", over("", _one)(right, (-1e4, -2e4), (-1e30, -2e30))),
            ("rows that lie apart in memory", over("", lambda: [_scores(7, 320)[0][:, :64]])(right, ())),
            ("every output element is written", on(everywhere(unwritten), (7, 256), (4, 100))),
            ("nothing is written outside of the tensors", on(everywhere(outside), (7, 50), (5, 1))),
            ("the inputs are left as they were", on(untouched, (6, 256)))]


def _shifted(rows, N, scale=1.0, shift=0.0, masked=0):
    """Random scores; the first of every `masked` columns is -inf."""
    x = scale * torch.randn(rows, N, generator=torch.Generator().manual_seed(N)) + shift
    if masked:
        x[:, ::masked] = -float("inf")
    return [guarded(x.to(DEVICE))]


def _entropy(x):
    p = torch.softmax(x.double(), 1)
    return -torch.where(p > 0, p * torch.log(p), 0.0).sum(1)


# ---------------------------------------------------------------- products

def _factors(M, N, K):
    return _random(M, K), _random(K, N), _random(N)


def _transposed(a, b, bias):
    return a, guarded(b.T.contiguous()), bias


def _views():
    return _random(64, 128).T, _random(64, 256)[:, ::4].T


def _right(expected):
    return agrees(lambda *inputs: expected(*(x.double() for x in inputs)))


def _products(expected, arrange):
    """The properties of an operation with one matrix product inside; arrange(a, b, bias) makes its inputs."""
    on = over("M, N, K = {}, {}, {}", lambda *shape: arrange(*_factors(*shape)))
    right = _right(expected)
    half = over("", lambda: arrange(*_large_and_small(32, 32, 512)))
    return [("the values are right", on(right, (64, 64, 64), (96, 64, 128))),
            ("rows or columns that are no multiple of the block", on(right, (50, 64, 64), (64, 77, 64))),
            ("an inner length that is no multiple of the block", on(right, (64, 64, 50), (64, 64, 7))),
            ("a single row and a single column", on(right, (1, 48, 64), (48, 1, 64), (1, 1, 64))),
            ("float16 is summed in float32", half(right, ())),
            ("every output element is written", on(everywhere(unwritten), (64, 64, 64), (33, 70, 64))),
            ("nothing is written outside of the tensors",
             on(everywhere(outside), (50, 64, 64), (64, 77, 64), (1, 1, 7))),
            ("the inputs are left as they were", on(untouched, (192, 64, 64)))]


def _large_and_small(M, N, K):
    """float16 factors [M, K] and [K, N] and a bias of zeros, whose product is exact in float32, in any order.

    A sum begins with 2048, ends with -2048, and in between grows by 2^-7 at a time: a float16 does not move from 2048
    for less than 1, so not for a tile of 64 either. Each row and column has a power of two, to tell it from the next.
    """
    row = torch.full([K], 2.0**-7)
    row[0], row[-1] = 2048, -2048
    powers = lambda n: 2.0 ** (torch.arange(n) % 4)
    return _halves(powers(M)[:, None] * row, powers(N).expand(K, N), torch.zeros(N))


def _odd_sums(M, N, K):
    """float16 factors of a product that is 2049 everywhere, which no float16 is, and a bias of 1: 2050 is one."""
    a = torch.zeros(M, K)
    a[:, 0], a[:, -1] = 2048, 1
    return _halves(a, torch.ones(K, N), torch.ones(N))


def _halves(*tensors):
    return [guarded(x.to(DEVICE, torch.float16)) for x in tensors]
