"""The check of an operator of PyTorch: softmax along rows."""
import contextlib
import functools
import itertools
import logging
import warnings

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.check.core import difference, first, properties, untouched
from helpers.device import DEVICE


def operator(fn):
    """fn(name) returns an operator of torch.library with this name: softmax of each row of x [rows, N], differentiable.

    Inputs are of float32 and float16, and one that lies transposed in memory.
    """
    def on(problem):
        return lambda fn: first(problem(fn(_new_name()), x) for x in _rows())

    with _unheard():
        properties("softmax as an operator", [
            ("the numbers", on(lambda op, x: difference(op(x), torch.softmax(x.double(), 1), _step(x)))),
            ("the input stays as it was", on(untouched)),
            ("the fake's shape", on(functools.partial(_fake, "shape"))),
            ("the fake's type", on(functools.partial(_fake, "dtype"))),
            ("the fake's strides", on(functools.partial(_fake, "stride"))),
            ("the gradient", on(_gradients_differ)),
            ("two calls, then their gradients", on(_two_calls)),
            ("forward and backward in one graph", lambda fn: _one_graph(fn(_new_name()), _rows()[2])),
            ("one graph for all lengths", lambda fn: _every_length(fn(_new_name())))], fn)


@contextlib.contextmanager
def _unheard():
    """What PyTorch logs and warns of when an answer is wrong is the report's to tell."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


_numbers = itertools.count()


def _new_name():
    """Never the same: PyTorch takes apart what had the name before, and graphs that are still compiled for it crash."""
    return f"course_check::softmax_{next(_numbers)}"


def _rows(N=12):
    torch.manual_seed(N)
    x = torch.randn(5, N).to(DEVICE)
    return x, x.half(), torch.randn(N, 5).to(DEVICE).T


def _step(x):
    return 2e-3 if x.dtype == torch.float16 else 1e-5


def _fake(what, op, x):
    with FakeTensorMode() as mode:
        fake = op(mode.from_tensor(x))
    real, fake = (f() if callable(f) else f for f in (getattr(op(x), what), getattr(fake, what)))
    return "" if fake == real else f"for x {list(x.shape)}, strides {x.stride()}, {x.dtype}: {fake}, and really {real}"


def _two_calls(op, x):
    return _gradients_differ(op, x, x.flip(1))


def _one_graph(op, x):
    torch.compiler.reset()
    return _gradients_differ(torch.compile(lambda x: op(x), fullgraph=True, backend="aot_eager"), x)


def _every_length(op):
    torch.compiler.reset()
    compiled = torch.compile(lambda x: op(x), fullgraph=True, dynamic=True, backend="aot_eager")
    if problem := _gradients_differ(compiled, _rows(12)[0]):
        return problem
    with torch.compiler.set_stance("fail_on_recompile"):
        return _gradients_differ(compiled, _rows(20)[0])


def _gradients_differ(op, *inputs):
    """All calls first, then all gradients, the last first."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = [op(x) for x in leaves]
    for x, z in zip(leaves[::-1], outputs[::-1]):
        dz = torch.linspace(-1, 2, x.numel(), device=DEVICE).view(x.shape).to(x.dtype)
        exact = x.detach().double().requires_grad_()
        want, = torch.autograd.grad(torch.softmax(exact, 1), exact, dz.double())
        if problem := difference(torch.autograd.grad(z, x, dz)[0], want, _step(x)):
            return f"dx: {problem}"
    return ""
