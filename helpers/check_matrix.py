"""Checks for operations on rows and for matrix products, part of helpers/check.py."""
import numpy as np
import torch

from helpers.device import DEVICE
from helpers.properties import difference, properties, unwritten


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
    _run("matmul", _products(torch.matmul, lambda M, N, K: (_random(M, K), _random(K, N)))
         + [("views that are not contiguous", _agrees(torch.matmul, views))], fn)


def linear(fn):
    """fn(x, w, bias) returns x @ w.T + bias for tensors [M, K], [N, K] and [N], float32 or float16, contiguous."""
    _run("linear", _products(torch.nn.functional.linear, lambda M, N, K: (_random(M, K), _random(N, K), _random(N))), fn)


def _run(title, cases, fn):
    with np.errstate(all="ignore"):                      # the interpreter computes with NumPy: inf and NaN are the check's to report
        properties(title, cases, fn)


def _random(*shape):
    """Standard normal float32 numbers, the same at every call with this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


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


def _written(*cases):
    def case(fn):
        for inputs in cases:
            problem = unwritten(fn(*inputs))
            if problem:
                return f"shape {_shape(inputs)}: {problem}"
        return ""
    return case


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
    far = torch.zeros(7, 192, device=DEVICE)             # no power of two, though a multiple of 64
    far[:, 0] = 1e4                                      # the others are so far below that only one weight is left
    return [("the values are right", agrees(_scores(7, 256), _scores(3, 1024))),
            ("a length that is no power of two", agrees(_scores(7, 50), _scores(3, 1000))),
            ("a single column", agrees(_random(5, 1))),
            ("scores of 1e4", agrees(far)),
            ("scores of -1e4 and less", agrees(far - 2e4)),
            ("rows that lie apart in memory", agrees(_scores(7, 320)[:, :64])),
            ("every output element is written", _written((_scores(7, 256),), (_scores(4, 100),))),
            ("the inputs are left as they were", _untouched((_scores(6, 256),)))]


def _products(expected, arguments):
    """The properties of an operation with one matrix product inside; arguments(M, N, K) makes its inputs."""
    in_float32 = lambda case: lambda fn: case(lambda *inputs: fn(*(x.half() for x in inputs)).float())
    ones = [torch.ones_like(x) for x in arguments(16, 16, 4096)]
    if len(ones) > 2:
        ones[2].zero_()                                  # the bias: 4096 is a float16, 4097 is not
    agrees = lambda *cases: _agrees(expected, *(arguments(*case) for case in cases))
    return [("the values are right", agrees((64, 64, 64), (128, 64, 192))),
            ("rows or columns that are no multiple of the block", agrees((50, 64, 64), (64, 77, 64))),
            ("an inner length that is no multiple of the block", agrees((64, 64, 50), (64, 64, 7))),
            ("a single row and a single column", agrees((1, 1, 64))),
            ("float16 is summed in float32", in_float32(_agrees(expected, ones))),
            ("every output element is written", _written(arguments(64, 64, 64), arguments(33, 70, 64))),
            ("the inputs are left as they were", _untouched(arguments(192, 64, 64)))]
