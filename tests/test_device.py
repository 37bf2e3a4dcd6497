"""GPU or interpreter: the choice, and what follows from it."""
import os
import runpy
import subprocess
import sys

import pytest
import torch
import triton.language as tl

from helpers import ROOT, device


def python(code, **env):
    env = {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env)


def test_one_line_for_nbval():
    assert device.describe().startswith("[gpu] ") and "\n" not in device.describe()
    assert ("interpret" in device.describe()) == device.INTERPRETED == (device.DEVICE == "cpu")


PRETEND = """
import os, torch
for wish, gpu, capability in {cases}:
    if os.fork():
        os.wait()
        continue
    if wish is not None:
        os.environ["TRITON_INTERPRET"] = wish
    torch.cuda.is_available = lambda: gpu
    torch.cuda.get_device_capability = lambda device=0: [capability, (12, 0)][device]   # the second GPU is a better one
    torch.cuda.get_device_name = lambda device=0: ["Tesla T4", "a second GPU"][device]
    if wish == "too late":
        os.environ["TRITON_INTERPRET"] = ""
        import triton
    try:
        from helpers import device
    except ImportError as problem:
        print(problem, flush=True)
        os._exit(0)
    import triton
    assert device.INTERPRETED == triton.knobs.runtime.interpret
    print(device.INTERPRETED, device.DEVICE, device.describe().partition(" (torch")[0], sep="; ", flush=True)
    os._exit(0)
"""
NONE, T4 = "[gpu] none in use: ", "[gpu] Tesla T4, compute capability "
CHOICES = {                                              # (TRITON_INTERPRET, is there a GPU, its capability): what is told
    ("0", False, (0, 0)): f"False; cuda; {NONE}Triton compiles, CUDA C++ emulated",
    ("True", False, (0, 0)): f"True; cpu; {NONE}Triton is interpreted, CUDA C++ emulated",
    ("", False, (0, 0)): f"True; cpu; {NONE}Triton is interpreted, CUDA C++ emulated",
    ("", True, (8, 0)): f"False; cuda; {T4}8.0",
    ("off", True, (7, 5)): f"False; cuda; {T4}7.5",
    ("yes", True, (9, 0)): f"True; cpu; {T4}9.0, not in use: Triton runs in its interpreter, as TRITON_INTERPRET asks",
    (None, True, (7, 5)): f"True; cpu; {T4}7.5: Triton's kernels here need 8.0, so Triton runs in its interpreter",
    ("too late", False, (0, 0)): "triton was imported before helpers.device, so its interpreter can no longer be turned on: "
                                 "restart the kernel and run the notebook's first code cell first"}


def test_the_choice_is_triton_s_and_is_told():
    """GPUs are pretended, each in a process of its own; PyTorch is imported once for all."""
    done = python(PRETEND.format(cases=list(CHOICES)))
    assert done.stdout.splitlines() == [*CHOICES.values()], done.stderr


def test_dot_type():
    assert device.dot_type(torch.float16) == tl.float16 and device.dot_type(torch.float32) == tl.float32
    assert device.dot_type(torch.bfloat16) == tl.bfloat16
    with pytest.raises(TypeError, match="no kernel for torch.int64"):
        device.dot_type(torch.int64)


def test_capability():
    x = torch.empty(0, device=device.DEVICE)
    major = torch.cuda.get_device_capability()[0] if x.is_cuda else 9
    assert device.capability(x) == 10 * major


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_bench_refuses(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["helpers.bench"])
    with pytest.raises(SystemExit, match="no NVIDIA GPU"):
        runpy.run_module("helpers.bench", run_name="__main__")
