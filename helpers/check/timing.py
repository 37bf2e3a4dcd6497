"""Checks of measuring: a timing function on a toy GPU, TFLOP/s, and the share of what a card can do."""
from helpers.check.core import near, properties

PLAIN = dict(kernel=1000, cached=1000, compile=0, flush=0)        # a GPU on which only one thing can go wrong at a time


class ToyGPU:
    """A GPU made of a few numbers, to practise timing on: what goes wrong on a real one goes wrong here, every time.

    Times are in microseconds. A call puts work into the GPU's queue and returns at once, as on a real GPU.
    """

    def __init__(self, kernel=200, cached=120, compile=900_000, flush=60, slow_every=0):
        self.kernel_us, self.cached_us, self.compile_us, self.flush_us = kernel, cached, compile, flush
        self.slow_every = slow_every                   # every so many calls, one takes ten times as long
        self.host = self.queue_ends = 0.0              # the host's clock, and when the GPU will be idle
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
        self.host += 5                                 # what a launch costs the host
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
         _same("that is a tenth faster now and then", gpu=TwoInFive, cached=900))
    ], fn)


KERNEL = "the time of a kernel of 1000 us"


def _same(what, calls=20, gpu=ToyGPU, **change):
    def case(fn):
        before, after = fn(ToyGPU(**PLAIN), calls), fn(gpu(**PLAIN | change), calls)
        return near(f"{KERNEL} {what}", after, before, 0.02)
    return case


# ---------------------------------------------------------------- operations a second

BASE = dict(ms=1.0, B=1, heads=1, N=4096, D=64, is_causal=False, backward=False)


def tflops(fn):
    """fn(ms, B, heads, N, D, is_causal=False, backward=False) returns TFLOP/s."""
    properties("tflops", [
        ("4 N^2 D operations in a millisecond",
         lambda fn: near("the rate of one head, N = 4096, D = 64, in 1 ms", fn(**BASE), 4 * 4096**2 * 64 / 1e9, 1e-6)),
        ("the rate falls as the time grows", _times(0.25, ms=4.0)),
        ("batches and heads count", _times(24, B=3, heads=8)),
        ("twice the length is four times the work", _times(4, N=8192)),
        ("wider heads are more work", _times(2, D=128)),
        ("a causal mask halves the work", _times(0.5, is_causal=True)),
        ("backward is 2.5 times forward", _times(2.5, backward=True)),
        ("causal and backward together", _together)], fn)


def _times(factor, **change):
    def case(fn):
        told = ", ".join(f"{key} = {value}" for key, value in change.items())
        return near(f"the rate with {told}, beside the same without,", fn(**BASE | change) / fn(**BASE), factor, 1e-6)
    return case


def _together(fn):
    """A causal mask does the same to a backward pass: what each of the two does has a property of its own."""
    base, masked, backward, both = (fn(**BASE | change) for change in (
        {}, dict(is_causal=True), dict(backward=True), dict(is_causal=True, backward=True)))
    return near("the rate with is_causal = True, backward = True, beside the same without,",
                both / base, masked * backward / base**2, 1e-6)


# ---------------------------------------------------------------- the share of the ceiling

def share(fn):
    """fn(ms, operations, moved, ceilings) returns the least possible time over ms, ceilings as in a record."""
    card = dict(matmul_tflops=500.0, copy_gb_per_s=4000.0)

    def case(what, want, *arguments):
        return lambda fn: near(f"{what} in 4 ms: the share", fn(4.0, *arguments, card), want, 1e-6)

    properties("share", [
        ("much arithmetic on few bytes", case("1e12 operations on 1e6 bytes", 0.5, 1e12, 1e6)),
        ("little arithmetic on many bytes", case("1e6 operations on 4e9 bytes", 0.25, 1e6, 4e9)),
        ("arithmetic and memory work at the same time", case("1e12 operations on 8e9 bytes", 0.5, 1e12, 8e9))], fn)
