"""What checks of Gluon kernels share: cases that run a kernel in the simulator, or compile it for a Hopper GPU."""
import re

import torch

from helpers import compiled, simulator
from helpers.hopper import TensorDescriptor
from triton.experimental.gluon import language as gl

HOPPER = "it compiles for a Hopper GPU"
ORDERS = "no fault, in ten orders of events"


def described(x, *block):
    """A descriptor of x with tiles of this block."""
    kind = {torch.float32: gl.float32, torch.float16: gl.float16}[x.dtype]
    return TensorDescriptor.from_tensor(x, list(block), gl.NVMMASharedLayout.get_default_for(list(block), kind))


def noise(*shape, seed=0):
    """Random numbers, float32, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sentence(fault):
    """A simulator's fault in a line; "" for none."""
    return "; ".join(fault.args) if fault else ""


def runs(run):
    """A case: run(kernel), or what the simulator says against it."""
    def case(kernel):
        try:
            return run(kernel)
        except simulator.Fault as fault:
            return _sentence(fault)
    return case


def orders(run):
    """A case that simulates run(kernel) in ten orders of events."""
    return lambda kernel: _sentence(simulator.schedules(lambda: run(kernel)))


def compiles(arguments, *words):
    """A case that compiles a kernel, and finds these words in its PTX."""
    def case(kernel):
        try:
            ptx = compiled.compile_gluon(kernel, arguments)["ptx"]
        except RuntimeError as problem:
            return told(str(problem))
        missing = [word for word in words if word not in ptx]
        return f"there is no {missing[0]} in what it compiles to" if missing else ""
    return case


def told(message):
    """What the compiler says, in a sentence: of the lines that it shows, the last one is the reader's."""
    found = re.fullmatch(r"(.*): at \d+:\d+:\n(?:.*\n)?([^\n]+)\n *\^\n(.*)", message, re.DOTALL)
    return " ".join(("{}: `{}`: {}".format(*map(str.strip, found.groups())) if found else message).split())
