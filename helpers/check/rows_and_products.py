"""Checks for operations on rows and for matrix products, part of helpers/check.py."""
import numpy as np
import torch

from helpers.device import DEVICE
from helpers.check.core import difference, everywhere, guarded, outside, properties, unwritten


def softmax(fn):
    """fn(x) returns the softmax of each row of a float32 tensor [rows, N]."""
    masked = _scores(5, 256)
    masked[:, 100::3] = -float("inf")
    _run("softmax", _rows(torch.softmax) + [("scores of -inf weigh nothing", _agrees(_soft(torch.softmax), (masked,)))], fn)


def log_softmax(fn):
    """fn(x) returns the logarithm of the softmax of each row of a float32 tensor [rows, N]."""
    _run("log_softmax", _rows(torch.log_softmax), fn)


def matmul(fn):
    """fn(a, b) returns a @ b for tensors [M, K] and [K, N], float32 or float16, of any strides."""
    views = (_random(64, 128).T, _random(64, 256)[:, ::4].T)
    _run("matmul", _products(torch.matmul, lambda a, b, bias: (a, b))
         + [("views that are not contiguous", _agrees(torch.matmul, views))], fn)


def linear(fn):
    """fn(x, w, bias) returns x @ w.T + bias for tensors [M, K], [N, K] and [N], float32 or float16, contiguous."""
    _run("linear", _products(torch.nn.functional.linear, lambda a, b, bias: (a, b.T.contiguous(), bias)), fn)


def _run(title, cases, fn):
    with np.errstate(all="ignore"):                      # the interpreter computes with NumPy: inf and NaN are the check's to report
        properties(title, cases, fn)


def _random(*shape):
    """Standard normal float32 numbers, the same at every call with this shape."""
    return guarded(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE))


def _scores(rows, N):
    """Random scores whose first column has the largest of each row, and a positive one."""
    x = _random(rows, N)
    x[:, 0] = 6
    return x


def _soft(operation):
    """torch.softmax or torch.log_softmax along rows, in float64."""
    return lambda x: operation(x.double(), dim=1)


def _agrees(expected, *cases):
    def case(fn):
        for inputs in cases:
            problem = difference(fn(*inputs), expected(*(x.double() for x in inputs)))
            if problem:
                return f"shape {_shape(inputs)}: {problem}"
        return ""
    return case


def _shape(inputs):
    return " and ".join(str(list(x.shape)) for x in inputs)


def _everywhere(problem, *cases):
    return everywhere(problem, lambda inputs: f"shape {_shape(inputs)}", *cases)


def _untouched(inputs):
    def case(fn):
        before = [x.clone() for x in inputs]
        fn(*inputs)
        changed = [i for i, (x, y) in enumerate(zip(inputs, before)) if not x.equal(y)]
        return f"argument {changed[0] + 1} was changed" if changed else ""
    return case


def _rows(operation):
    """The properties of softmax and of its logarithm."""
    agrees = lambda *cases: _agrees(_soft(operation), *((x,) for x in cases))
    far = guarded(torch.zeros(7, 192, device=DEVICE))    # no power of two, though a multiple of 64
    far[:, 0] = 1e4                                      # the others are so far below that only one weight is left
    below = guarded(far - 2e4)                           # all negative: its property's name keeps that to itself, for a bug hunt
    return [("the values are right", agrees(_scores(7, 256), _scores(3, 1024))),
            ("a length that is no power of two", agrees(_scores(7, 50), _scores(3, 1000))),
            ("a single column", agrees(_random(5, 1))),
            ("scores of 1e4", agrees(far)),
            ("a row that is rare in practice", agrees(below)),
            ("rows that lie apart in memory", agrees(_scores(7, 320)[:, :64])),
            ("every output element is written", _everywhere(unwritten, (_scores(7, 256),), (_scores(4, 100),))),
            ("nothing is written outside of the tensors", _everywhere(outside, (_scores(7, 50),), (_random(5, 1),))),
            ("the inputs are left as they were", _untouched((_scores(6, 256),)))]


def _products(expected, arrange):
    """The properties of an operation with one matrix product inside; arrange(a, b, bias) makes its inputs."""
    inputs = lambda *tensors: [guarded(x) for x in arrange(*tensors)]
    arguments = lambda M, N, K: inputs(_random(M, K), _random(K, N), _random(N))
    agrees = lambda *cases: _agrees(expected, *(arguments(*case) for case in cases))
    edges = [arguments(50, 64, 64), arguments(64, 77, 64), arguments(1, 1, 64)]
    return [("the values are right", agrees((64, 64, 64), (128, 64, 192))),
            ("rows or columns that are no multiple of the block", agrees((50, 64, 64), (64, 77, 64))),
            ("an inner length that is no multiple of the block", agrees((64, 64, 50), (64, 64, 7))),
            ("a single row and a single column", agrees((1, 48, 64), (48, 1, 64), (1, 1, 64))),
            ("float16 is summed in float32", _agrees(expected, inputs(*_large_and_small(64, 64, 512)))),
            ("every output element is written", _everywhere(unwritten, arguments(64, 64, 64), arguments(33, 70, 64))),
            ("nothing is written outside of the tensors", _everywhere(outside, *edges)),
            ("the inputs are left as they were", _untouched(arguments(192, 64, 64)))]


def _large_and_small(M, N, K):
    """float16 factors [M, K] and [K, N] and a bias of zeros, whose product is exact in float32, in whatever order it is summed.

    A sum begins with 2048, ends with -2048, and in between grows by 2^-7 at a time: a float16 does not move from 2048 for
    less than 1, so not for a tile of 64 either. Each row and column has a power of two of its own, to tell it from the next.
    """
    row = torch.full([K], 2.0**-7)
    row[0], row[-1] = 2048, -2048
    powers = lambda n: 2.0 ** (torch.arange(n) % 4)
    return [x.to(DEVICE, torch.float16) for x in (powers(M)[:, None] * row, powers(N).expand(K, N), torch.zeros(N))]
