"""The checks of vectors and of grids: lessons that add, turn and sum them, in Triton."""
import torch

from helpers.check.core import difference, guarded, outside, properties, unwritten
from helpers.device import DEVICE


def _vectors(arguments, expected):
    """The properties of an operation on vectors: arguments(n) makes the inputs, expected(*inputs) the right result."""
    def agrees(*lengths):
        def case(fn):
            for n in lengths:
                inputs = arguments(n)
                want = expected(*inputs)
                problem = difference(fn(*inputs), want)
                if problem:
                    return f"length {n}: {problem}"
            return ""
        return case

    def written(fn):
        for n in (1, 31, 1000, 1024, 4097):
            problem = unwritten(fn(*arguments(n)))
            if problem:
                return f"length {n}: {problem}"
        return ""

    def inside(fn):
        for n in (1, 31, 1000, 1024, 4097):
            inputs = arguments(n)
            out = fn(*inputs)
            for x in (out, *inputs):
                problem = outside(x) if isinstance(x, torch.Tensor) else ""
                if problem:
                    return f"length {n}: {problem}"
        return ""

    def untouched(fn):
        inputs = arguments(1024)
        before = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
        fn(*inputs)
        changed = [i for i, (x, y) in enumerate(zip(inputs, before)) if isinstance(x, torch.Tensor) and not x.equal(y)]
        return f"argument {changed[0] + 1} was changed" if changed else ""

    return [("every value that was written is right", agrees(1024, 4096)),
            ("written values are right at a length that is no multiple of the block", agrees(31, 1000, 4097)),
            ("a single element", agrees(1)),
            ("an empty vector", agrees(0)),
            ("every output element is written", written),
            ("nothing is written outside of the tensors", inside),
            ("the inputs are left as they were", untouched)]


def _random(*shape):
    return guarded(torch.randn(*shape, device=DEVICE))


VECTOR_ADD = _vectors(lambda n: (_random(n), _random(n)), lambda x, y: x + y)
SCALE_ADD = _vectors(lambda n: (2.5, _random(n), _random(n)), lambda a, x, y: a * x + y)
REVERSE = _vectors(lambda n: (_random(n),), lambda x: x.flip(0))
BLOCK_SUMS = _vectors(lambda n: (_random(n), 128), lambda x, block: torch.stack([c.sum() for c in x.split(block)])
                      if len(x) else x)


def vector_add(fn):
    """fn(x, y) returns x + y, for float32 tensors [n]."""
    properties("vector_add", VECTOR_ADD, fn)


def scale_add(fn):
    """fn(a, x, y) returns a * x + y, for a number a and float32 tensors [n]."""
    properties("scale_add", SCALE_ADD, fn)


def reverse(fn):
    """fn(x) returns x from its last element to its first, for a float32 tensor [n]."""
    properties("reverse", REVERSE, fn)


def block_sums(fn):
    """fn(x, block) returns the sum of each stretch of `block` elements of a float32 tensor [n]: [ceil(n / block)]."""
    properties("block_sums", BLOCK_SUMS, fn)


# ---------------------------------------------------------------- grids

def _counts(*cases):
    def case(fn):
        for n, block, want in cases:
            got = fn(n, block)
            if got != want:
                return f"cdiv({n}, {block}) is {got}, expected {want}"
        return ""
    return case


CDIV = [("a length that is a multiple of the block", _counts((8, 4, 2), (1024, 256, 4))),
        ("a length that is no multiple of the block", _counts((9, 4, 3), (11, 4, 3), (1, 1024, 1))),
        ("nothing to do needs no block", _counts((0, 4, 0))),
        ("lengths too long for a float", _counts((2**60 + 1, 2, 2**59 + 1)))]


def cdiv(fn):
    """fn(n, block) returns how many blocks of that size cover n elements."""
    properties("cdiv", CDIV, fn)
