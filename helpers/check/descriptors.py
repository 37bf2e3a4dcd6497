"""The checks for tensor descriptors and for programs side by side."""
import torch

from helpers.check.core import equal, properties
from helpers.device import DEVICE


def _memory(*shape, steps=None, offset=0, dtype=torch.float16):
    """A tensor of zeros of this shape, with these strides and this offset, both in elements."""
    if steps is None:
        steps = [1]
        for n in shape[:0:-1]:
            steps.insert(0, n * steps[0])
    last = offset + sum((n - 1) * step for n, step in zip(shape, steps))
    return torch.zeros(last + 1, dtype=dtype, device=DEVICE).as_strided(shape, steps, offset)


def _describes(*cases):
    """A case that calls fn with each x of (x, want) and compares whether the answer is true."""
    def case(fn):
        for x, want in cases:
            got = fn(x)
            if bool(got) != want:
                where = f"shape {list(x.shape)}, " if 1 in x.shape else ""
                where += f"strides {list(x.stride())}" + (", address 8 mod 16" if x.data_ptr() % 16 else "")
                return f"{where}, {str(x.dtype)[6:]}: {got}, expected {want}"
        return ""
    return case


def can_describe(fn):
    """fn(x), x [B, heads, N, D], says whether the tensor memory accelerator can fetch tiles of x."""
    properties("can_describe", [
        ("a tensor that lies in one piece",
         _describes((_memory(2, 3, 10, 64), True), (_memory(1, 2, 7, 128), True))),
        ("features side by side", _describes((_memory(2, 3, 10, 64, steps=(3840, 1280, 128, 2)), False))),
        ("rows multiples of 16 bytes apart",
         _describes((_memory(2, 3, 10, 24), True), (_memory(2, 3, 10, 20), False))),
        ("heads and batches, too", _describes((_memory(2, 3, 10, 64, steps=(2048, 644, 64, 1)), False),
                                              (_memory(2, 3, 10, 64, steps=(2004, 640, 64, 1)), False))),
        ("any layout with such steps", _describes((_memory(2, 3, 10, 64, steps=(1920, 64, 192, 1)), True))),
        ("the beginning of the tensor", _describes((_memory(2, 3, 10, 64, offset=8), True),
                                                   (_memory(2, 3, 10, 64, offset=4), False))),
        ("bytes, not elements", _describes((_memory(2, 3, 10, 20, dtype=torch.float32), True),
                                           (_memory(2, 3, 10, 24, dtype=torch.uint8), False))),
        ("a step of 0", _describes((_memory(2, 3, 10, 64, steps=(0, 640, 64, 1)), False),
                                   (_memory(2, 3, 10, 64, steps=(640, 0, 64, 1)), False))),
        ("a step that is never taken", _describes((_memory(1, 3, 10, 64, steps=(5, 640, 64, 1)), False)))], fn)


def _programs(*cases):
    """A case: fn(registers, shared, threads) is the last number of each tuple."""
    wanted = {tuple(arguments): programs for *arguments, programs in cases}
    return equal("side_by_side", lambda *arguments: wanted[arguments], *wanted)


def side_by_side(fn):
    """fn(registers, shared, threads) returns how many programs a multiprocessor of an H100 or H200 holds at once."""
    properties("side_by_side", [
        ("registers are the limit", _programs((255, 1000, 128, 2), (64, 1000, 128, 8))),
        ("registers come in eights", _programs((170, 1000, 128, 2), (168, 1000, 128, 3))),
        ("shared memory is the limit", _programs((32, 100_000, 128, 2), (32, 40_000, 128, 5))),
        ("1 KB more for each program",
         _programs((32, 58_000, 128, 3), (32, 115_712, 128, 2), (32, 115_713, 128, 1))),
        ("other numbers of threads", _programs((64, 1000, 256, 4), (168, 1000, 384, 1))),
        ("at most 2,048 threads", _programs((16, 1000, 512, 4))),
        ("at most 32 programs", _programs((16, 0, 32, 32))),
        ("not even one fits", _programs((64, 240_000, 128, 0), (255, 1000, 512, 0)))], fn)
