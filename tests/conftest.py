"""Choose GPU or interpreter before any test module imports triton, and say which tests share a process."""
from xdist.scheduler import LoadFileScheduling

from helpers import device  # noqa: F401


class OneByOne(LoadFileScheduling):
    """A process gets single tests, but the cells of a notebook together, and the tests of what one fixture compiles.

    With whole files one process would compile for minutes, on a GPU above all, while the others have nothing left to do.
    """
    def _split_scope(self, nodeid):
        return super()._split_scope(nodeid) if ".ipynb::" in nodeid or "compiles" in nodeid else nodeid


def pytest_xdist_make_scheduler(config, log):
    return OneByOne(config, log)
