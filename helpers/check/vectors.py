"""Checks of vectors and of grids: to add, turn and sum them, in Triton, and to count blocks."""
import functools

import torch

from helpers.check.core import agrees, equal, everywhere, guarded, outside, over, properties, untouched, unwritten
from helpers.device import DEVICE


def _vectors(arguments, expected):
    """The properties of an operation on vectors: arguments(n) makes the inputs, expected(*inputs) the right result."""
    over_lengths, right, lengths = over("length {}", arguments), agrees(expected), (1, 31, 1000, 1024, 4097)
    return [("every value that was written is right", over_lengths(right, 1024, 4096)),
            ("written values are right at a length that is no multiple of the block",
             over_lengths(right, 31, 1000, 4097)),
            ("a single element", over_lengths(right, 1)),
            ("an empty vector", over_lengths(right, 0)),
            ("every output element is written", over_lengths(everywhere(unwritten), *lengths)),
            ("nothing is written outside of the tensors", over_lengths(everywhere(outside), *lengths)),
            ("the inputs are left as they were", over_lengths(untouched, 1024))]


def _random(*shape):
    return guarded(torch.randn(*shape, device=DEVICE))


def _sums(x, block):
    return torch.stack([piece.sum() for piece in x.split(block)]) if len(x) else x


def vector_add(fn):
    """fn(x, y) returns x + y, for float32 tensors [n]."""
    properties("vector_add", _vectors(lambda n: (_random(n), _random(n)), lambda x, y: x + y), fn)


def scale_add(fn):
    """fn(a, x, y) returns a * x + y, for a number a and float32 tensors [n]."""
    properties("scale_add", _vectors(lambda n: (2.5, _random(n), _random(n)), lambda a, x, y: a * x + y), fn)


def reverse(fn):
    """fn(x) returns x from its last element to its first, for a float32 tensor [n]."""
    properties("reverse", _vectors(lambda n: (_random(n),), lambda x: x.flip(0)), fn)


def block_sums(fn):
    """fn(x, block) returns the sum of each stretch of `block` elements of a float32 tensor [n]: [ceil(n / block)]."""
    properties("block_sums", _vectors(lambda n: (_random(n), 128), _sums), fn)


def cdiv(fn):
    """fn(n, block) returns how many blocks of that size cover n elements."""
    counts = functools.partial(equal, "cdiv", lambda n, block: -(-n // block))
    properties("cdiv", [
        ("a length that is a multiple of the block", counts((8, 4), (1024, 256))),
        ("a length that is no multiple of the block", counts((9, 4), (11, 4), (1, 1024))),
        ("nothing to do needs no block", counts((0, 4))),
        ("lengths too long for a float", counts((2**60 + 1, 2)))], fn)
