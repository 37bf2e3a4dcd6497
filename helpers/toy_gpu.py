"""A GPU made of a few numbers, to practise timing on: what goes wrong on a real one goes wrong here, every time."""


class ToyGPU:
    """Times are in microseconds. A call puts work into the GPU's queue and returns at once, as on a real GPU."""

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
