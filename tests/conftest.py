"""Choose GPU or interpreter before any test module imports triton, and say which tests share a process."""
from xdist.scheduler import LoadFileScheduling

from helpers import device


class OneByOne(LoadFileScheduling):
    """A process gets single tests, but the cells of a notebook together, and the tests of what one fixture compiles."""

    def _split_scope(self, nodeid):
        return super()._split_scope(nodeid) if ".ipynb::" in nodeid or "compiles" in nodeid else nodeid


def pytest_xdist_make_scheduler(config, log):
    """On a GPU each test compiles kernels of its own, which takes most of its time: no process gets a whole file."""
    return None if device.INTERPRETED else OneByOne(config, log)
