"""Right and wrong versions of sums, turns and block counts."""
import math

import torch

from helpers import check, device  # (before triton: helpers.device says why)
from mistakes.ways import beyond_the_end, in_place, when, without_the_last

import triton
import triton.language as tl

OUTSIDE = "nothing is written outside of the tensors"


def cdiv(n, block):
    return (n + block - 1) // block


def mistakes(right):
    """Wrong versions of an operation on vectors, from a right one. The vector is the last tensor argument."""
    def on(applies, spoil):
        return when(right, lambda *args: applies(len([x for x in args if isinstance(x, torch.Tensor)][-1])), spoil)

    def last_is_zero(z, *_):
        z[-1] = 0
        return z

    def refuses(*_):
        raise RuntimeError("a grid of zero programs")

    return {
        "every value that was written is right": on(lambda n: n % 1024 == 0 and n, lambda z, *_: z + 1),
        "written values are right at a length that is no multiple of the block":
            on(lambda n: n % 1024 and n > 1, last_is_zero),
        "a single element": on(lambda n: n == 1, lambda z, *_: z + 1),
        "an empty vector": on(lambda n: n == 0, refuses),
        "every output element is written": on(lambda n: n > 1, without_the_last),
        OUTSIDE: on(lambda n: n > 1, beyond_the_end),
        "the inputs are left as they were": in_place(right),
    }


def block_sums(x, block):
    return torch.stack([piece.sum() for piece in x.split(block)]) if len(x) else x


@triton.jit
def scale_add_kernel(a, x_ptr, y_ptr, z_ptr, n, read, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < read)
    y = tl.load(y_ptr + offsets, mask=offsets < n)
    tl.store(z_ptr + offsets, a * x + y, mask=offsets < n)


def reads_beyond(more):
    """A kernel that reads so many elements beyond the end, and writes none of them."""
    def scale_add(a, x, y):
        z, n = torch.empty_like(x), len(x)
        scale_add_kernel[(triton.cdiv(n, 64),)](a, x, y, z, n, n + more, 64)
        return z
    return scale_add


CASES = {run: dict(right=[right], wrong=mistakes(right)) for run, right in (
    (check.vector_add, torch.add), (check.reverse, lambda x: x.flip(0)), (check.block_sums, block_sums))}
CASES[check.scale_add] = dict(right=[lambda a, x, y: a * x + y, reads_beyond(0)],
                              wrong=mistakes(lambda a, x, y: a * x + y))
CASES[check.scale_add]["wrong"][OUTSIDE] = device.INTERPRETED * [reads_beyond(1), reads_beyond(10**6)]
CASES[check.cdiv] = dict(right=[cdiv], wrong={
    "a length that is a multiple of the block": lambda n, b: n // b + 1,
    "a length that is no multiple of the block": [lambda n, b: n // b, lambda n, b: round(n / b)],
    "nothing to do needs no block": lambda n, b: max(1, cdiv(n, b)),
    "lengths too long for a float": lambda n, b: math.ceil(n / b)})
