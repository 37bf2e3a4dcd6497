"""Checks of measuring: a timing function on a toy GPU, what a report says, and kernels that a report has accused."""
import numpy as np
import torch

from helpers.check.core import agrees, everywhere, first, guarded, near, outside, over, properties, unwritten
from helpers.check.kernels import shared_out, whole_sectors
from helpers.device import DEVICE

PLAIN = dict(kernel=1000, cached=1000, compile=0, flush=0)        # a GPU on which only one thing can go wrong at a time


class ToyGPU:
    """A GPU made of five numbers, to practise timing on. What goes wrong on a real one does here.

    Times are in microseconds. A call puts work into a queue and returns at once, as on a real GPU.
    """

    def __init__(self, kernel=200, cached=120, compile=900_000, flush=60, slow_every=0):
        self.kernel_us, self.cached_us, self.compile_us = kernel, cached, compile
        self.flush_us = flush
        self.slow_every = slow_every            # every so many calls, one takes ten times as long
        self.host = self.queue_ends = 0.0       # the host's clock, and when the GPU will be idle
        self.calls, self.in_cache = 0, False

    def clock(self):
        """What the host's clock shows."""
        return self.host

    def kernel(self):
        """Start the kernel. The first time, it is compiled while the host waits."""
        if self.calls == 0:
            self.host += self.compile_us
        self.calls += 1
        slow = self.slow_every and self.calls % self.slow_every == 0
        self._launch((self.cached_us if self.in_cache else self.kernel_us) * (10 if slow else 1))
        self.in_cache = True

    def flush(self):
        """Start a kernel that overwrites the cache."""
        self._launch(self.flush_us)
        self.in_cache = False

    def synchronize(self):
        """Let the host wait until the queue is empty."""
        self.host = max(self.host, self.queue_ends)

    def _launch(self, us):
        self.host += 5                          # what a launch costs the host
        self.queue_ends = max(self.queue_ends, self.host) + us


# ---------------------------------------------------------------- a timing function

class UnevenFlushes(ToyGPU):
    """Overwriting its cache takes once, twice or three times as long, so that the time cannot be subtracted."""

    def flush(self):
        self._launch((1 + self.calls % 3) * self.flush_us)
        self.in_cache = False


class TwoInFive(ToyGPU):
    """Two calls of five take another time, given as `cached`."""

    def kernel(self):
        kernel, other = self.kernel_us, self.cached_us
        self.kernel_us = self.cached_us = other if self.calls % 5 in (1, 3) else kernel
        super().kernel()
        self.kernel_us, self.cached_us = kernel, other


def median_time(fn):
    """fn(gpu, calls) returns the median time in us of so many calls of gpu.kernel(), on a ToyGPU."""
    properties("median_time", [
        ("the end of the kernel is waited for", lambda fn: near(KERNEL, fn(ToyGPU(**PLAIN), 20), 1000, 0.02)),
        ("compiling is not counted", _same("that is compiled at its first call", calls=1, compile=50_000)),
        ("inputs come from memory, not from the cache", _same("that takes 100 us with a warm cache", cached=100)),
        ("overwriting the cache is not counted",
         _same("after a flush of 3000 to 9000 us", gpu=UnevenFlushes, flush=3000)),
        ("one slow call in seven changes nothing", _same("that is ten times slower now and then", slow_every=7)),
        ("two slow calls in five change nothing",
         _same("that is a tenth slower now and then", gpu=TwoInFive, cached=1100)),
        ("two fast calls in five change nothing",
         _same("that is a tenth faster now and then", gpu=TwoInFive, cached=900)),
        ("as many calls as asked for", _count)
    ], fn)


KERNEL = "the time of a kernel of 1000 us"


def _same(what, calls=20, gpu=ToyGPU, **change):
    def case(fn):
        before, after = fn(ToyGPU(**PLAIN), calls), fn(gpu(**PLAIN | change), calls)
        return near(f"{KERNEL} {what}", after, before, 0.02)
    return case


def _count(fn):
    few, many = ToyGPU(**PLAIN), ToyGPU(**PLAIN)
    fn(few, 9), fn(many, 29)
    return "" if many.calls - few.calls == 20 else f"with calls = 9 the kernel runs {few.calls} times, with 29 {many.calls}"


# ---------------------------------------------------------------- a report of the hardware's counters

IDLE = dict(tensor=3.0, exp=2.0, issue=20.0, l2=10.0, dram=1.5)


def verdict(fn):
    """fn(row) returns the name of a report's busiest unit, "waiting" if none reaches 60; where dram does, l2 is out."""
    def case(want, **percent):
        def asked(fn):
            got, told = fn(IDLE | percent), ", ".join(f"{name} {value}" for name, value in (IDLE | percent).items())
            return "" if got == want else f"{told}: {got!r}, expected {want!r}"
        return asked

    def first_of(*cases):
        return lambda fn: first(each(fn) for each in cases)

    properties("verdict", [
        ("the matrix units are busy", case("tensor", tensor=85.0)),
        ("the unit of exp2 is busy", case("exp", exp=85.0)),
        ("instructions are issued all the time", case("issue", issue=90.0)),
        ("the cache is busy", case("l2", l2=88.0)),
        ("memory is busy", case("dram", dram=92.0)),
        ("of two busy units, the busier", first_of(case("tensor", tensor=80.0, issue=65.0),
                                                   case("issue", tensor=70.0, issue=85.0))),
        ("where memory is busy, the cache is no suspect", first_of(case("dram", dram=90.0, l2=94.0),
                                                                   case("tensor", dram=61.0, l2=94.0, tensor=70.0))),
        ("nothing is busy", first_of(case("waiting"), case("waiting", issue=45.0, tensor=50.0))),
        ("60 percent is busy, and a little less is not", first_of(case("dram", dram=60.0), case("waiting", l2=59.9))),
        ("what else is in the report does not matter", case("waiting", warps=95.0, us=4000.0))], fn)


# ---------------------------------------------------------------- the largest of each feature

def _values(heads, N, D=64):
    x = np.random.default_rng(heads + N).standard_normal((heads, N, D))
    x[..., 5] -= 20                                    # a feature whose largest is negative
    return (guarded(torch.tensor(x, dtype=torch.float16, device=DEVICE)),)


def _type(fn, v):
    return "" if (got := fn(v).dtype) == torch.float32 else f"it is {str(got)[6:]}"


_on = over("v [{}, {}, 64]", _values)
_right = agrees(lambda v: v.float().abs().amax(1).cpu().numpy())
_shapes = (1, 128), (2, 1000)
LARGEST = [("one head", _on(_right, (1, 128), (1, 1024))), ("several heads", _on(_right, (3, 512))),
           ("a length that is no multiple of a tile", _on(_right, (1, 1000), (1, 77))),
           ("the result is float32", _on(_type, (1, 128))),
           ("every output element is written", _on(everywhere(unwritten), *_shapes)),
           ("nothing is written outside of the tensors", _on(everywhere(outside), *_shapes)),
           ("sectors of v are fetched whole and once", _on(whole_sectors, (1, 1024), (2, 1000)))]


def largest_features(fn):
    """fn(v) returns the largest |v| of each feature, float32 [heads, D], for float16 v [heads, N, 64]."""
    properties("largest_features", LARGEST, fn)


def largest_by_many(fn):
    """fn(v) is `largest_features` with a head's rows shared out among programs, at most 512 rows for each."""
    shared = _on(lambda fn, v: shared_out(fn, v, 512 * 64), (1, 4096), (2, 1000))
    properties("largest_by_many", [*LARGEST, ("no program reads more than 512 rows", shared)], fn)
