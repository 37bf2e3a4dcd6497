"""GPU or interpreter: the choice, and what follows from it."""
import os
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
    assert ("interpreter" in device.describe()) == device.INTERPRETED == (device.DEVICE == "cpu")


def test_triton_imported_too_early():
    if not device.INTERPRETED:
        pytest.skip("with a GPU the order does not matter")
    done = python("import triton; from helpers import device")
    assert "ImportError: triton was imported before helpers.device" in done.stderr


def test_interpreter_on_request_and_forbidden():
    show = "from helpers import device; import os; print(device.INTERPRETED, os.environ.get('TRITON_INTERPRET'))"
    assert python(show, TRITON_INTERPRET="1").stdout == "True 1\n"
    assert python(show, TRITON_INTERPRET="0").stdout == "False 0\n"


def test_dot_type():
    assert device.dot_type(torch.float16) == tl.float16 and device.dot_type(torch.float32) == tl.float32
    assert device.dot_type(torch.bfloat16) == (tl.float32 if device.INTERPRETED else tl.bfloat16)
    with pytest.raises(TypeError, match="no kernel for torch.int64"):
        device.dot_type(torch.int64)


def test_capability():
    x = torch.empty(0, device=device.DEVICE)
    major = torch.cuda.get_device_capability()[0] if x.is_cuda else 9
    assert device.capability(x) == 10 * major


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_bench_refuses():
    done = subprocess.run([sys.executable, "-m", "helpers.bench"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "no NVIDIA GPU" in done.stderr and "Traceback" not in done.stderr
