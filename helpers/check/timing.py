"""The checks of lesson 13: a timing function on a toy GPU, TFLOP/s, and the share of what a card can do."""
from helpers.check.core import properties

PLAIN = dict(kernel=1000, cached=1000, compile=0, flush=0)         # a GPU on which only one thing can go wrong at a time


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


def _near(what, got, want):
    if not isinstance(got, (int, float)):
        return f"{what} is {got!r}, expected a number"
    return "" if abs(got - want) <= 0.02 * want else f"{what} is {got:.5g}, expected {want:.5g}"


# ---------------------------------------------------------------- a timing function

class UnevenFlushes(ToyGPU):
    """Overwriting its cache takes once, twice or three times as long, so that the time cannot be subtracted."""

    def flush(self):
        self._launch((1 + self.calls % 3) * self.flush_us)
        self.in_cache = False


class FastNowAndThen(ToyGPU):
    """Every seventh call takes a tenth less."""

    def kernel(self):
        self.kernel_us = self.cached_us = 1000 if self.calls % 7 else 900
        super().kernel()


def _changes_nothing(what, calls=20, gpu=ToyGPU, **change):
    def case(fn):
        before, after = fn(ToyGPU(**PLAIN), calls), fn(gpu(**PLAIN | change), calls)
        return _near(f"the time of a kernel of 1000 us {what}", after, before)
    return case


MEDIAN_TIME = [("the end of the kernel is waited for", lambda fn: _near("the time of a kernel of 1000 us", fn(ToyGPU(**PLAIN), 20), 1000)),
               ("compiling is not counted", _changes_nothing("that is compiled at its first call", calls=1, compile=50_000)),
               ("inputs come from memory, not from the cache", _changes_nothing("that takes 100 us with a warm cache", cached=100)),
               ("overwriting the cache is not counted", _changes_nothing("after a flush of 3000 to 9000 us", gpu=UnevenFlushes, flush=3000)),
               ("one slow call in seven changes nothing", _changes_nothing("that is ten times slower now and then", slow_every=7)),
               ("one fast call in seven changes nothing", _changes_nothing("that is a tenth faster now and then", gpu=FastNowAndThen))]


def median_time(fn):
    """fn(gpu, calls) returns the median time in us of so many calls of gpu.kernel(), on a ToyGPU."""
    properties("median_time", MEDIAN_TIME, fn)


# ---------------------------------------------------------------- operations a second

BASE = dict(ms=1.0, B=1, heads=1, N=4096, D=64, is_causal=False, backward=False)


def _together(fn):
    """A causal mask does the same to a backward pass: what each of the two does has a property of its own."""
    base, masked, backward, both = (fn(**BASE | change) for change in (
        {}, dict(is_causal=True), dict(backward=True), dict(is_causal=True, backward=True)))
    return _near("the rate with is_causal = True, backward = True, beside the same without,",
                 both / base, masked * backward / base**2)


def _times(factor, **change):
    def case(fn):
        told = ", ".join(f"{key} = {value}" for key, value in change.items())
        return _near(f"the rate with {told}, beside the same without,", fn(**BASE | change) / fn(**BASE), factor)
    return case


TFLOPS = [("4 N^2 D operations in a millisecond", lambda fn: _near("the rate of one head, N = 4096, D = 64, in 1 ms", fn(**BASE), 4.294967)),
          ("the rate falls as the time grows", _times(0.25, ms=4.0)),
          ("batches and heads count", _times(24, B=3, heads=8)),
          ("twice the length is four times the work", _times(4, N=8192)),
          ("wider heads are more work", _times(2, D=128)),
          ("a causal mask halves the work", _times(0.5, is_causal=True)),
          ("backward is 2.5 times forward", _times(2.5, backward=True)),
          ("causal and backward together", _together)]


def tflops(fn):
    """fn(ms, B, heads, N, D, is_causal=False, backward=False) returns TFLOP/s."""
    properties("tflops", TFLOPS, fn)


# ---------------------------------------------------------------- the share of the ceiling

CARD = dict(matmul_tflops=500.0, copy_gb_per_s=4000.0)


def _share(what, want, *arguments):
    return lambda fn: _near(what, fn(*arguments, CARD), want)


SHARE = [("much arithmetic on few bytes", _share("1e12 operations on 1e6 bytes in 4 ms: the share", 0.5, 4.0, 1e12, 1e6)),
         ("little arithmetic on many bytes", _share("1e6 operations on 4e9 bytes in 4 ms: the share", 0.25, 4.0, 1e6, 4e9)),
         ("arithmetic and memory work at the same time", _share("1e12 operations on 8e9 bytes in 4 ms: the share", 0.5, 4.0, 1e12, 8e9))]


def share(fn):
    """fn(ms, operations, moved, ceilings) returns the least possible time over ms, ceilings as in a record."""
    properties("share", SHARE, fn)
