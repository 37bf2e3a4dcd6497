"""Choose GPU or interpreter before a test imports triton, share tests among processes, leave out what needs a GPU."""
import re
from collections import Counter

import torch
from xdist.scheduler import LoadFileScheduling

from helpers import device


class OneByOne(LoadFileScheduling):
    """A process gets single tests, but the cells of a notebook together, and the tests that share what they compile, or
    the processes that they start.

    With whole files one process would compile for minutes while the others have nothing left to do.
    """
    def _split_scope(self, nodeid):
        group = re.search(r"test_compiled.*\[(\w+)", nodeid) or re.search(r"(test_ring)\.py", nodeid)
        return group[1] if group else super()._split_scope(nodeid) if ".ipynb::" in nodeid else nodeid


def pytest_xdist_make_scheduler(config, log):
    return OneByOne(config, log)


left_out = {}                                            # why: the number of tests


def missing(item):
    """What this machine lacks for a test marked `gpu`, or `gpu(9)` for compute capability 9, else None."""
    for mark in item.iter_markers("gpu"):
        major = None if device.INTERPRETED else torch.cuda.get_device_capability()[0]
        if major is None or mark.args and major not in mark.args:
            return f"an NVIDIA GPU of compute capability {mark.args[0]}" if mark.args else "an NVIDIA GPU"


def pytest_collection_modifyitems(config, items):
    lacks = [missing(item) for item in items]
    left_out.update(Counter(filter(None, lacks)))
    items[:] = [item for item, lack in zip(items, lacks) if not lack]
    if hasattr(config, "workeroutput"):                  # a process of xdist: the one that reports gets to know
        config.workeroutput["left_out"] = left_out


def pytest_testnodedown(node, error):
    left_out.update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter):
    if left_out:
        reasons = ", ".join(f"{number} for want of {lack}" for lack, number in sorted(left_out.items()))
        terminalreporter.write_line(f"tests left out: {reasons}")
