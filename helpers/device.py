"""Where Triton kernels run: on an NVIDIA GPU of compute capability 8.0 or later, else in Triton's interpreter on the CPU.

Triton decides at its import, so this module comes first: `from helpers import device`, then `import triton`.
TRITON_INTERPRET=1 in the environment asks for the interpreter on a GPU machine too, to debug; TRITON_INTERPRET=0
forbids it, so that a machine without a GPU can compile kernels (helpers/compiled.py). Triton's other words for 1 (true,
on, yes) count as well, and so do others for 0; an empty one is none. Of several GPUs, the first decides.
"""
import functools
import os
import sys

import torch

LEAST = 8, 0                                             # the compute capability that the course's kernels need


def _capability():
    """The compute capability of the first GPU, (0, 0) if there is none or it does not answer."""
    try:
        return torch.cuda.get_device_capability(0) if torch.cuda.is_available() else (0, 0)
    except (AssertionError, RuntimeError):
        return 0, 0


_wish = os.environ.get("TRITON_INTERPRET", "")
_asked = _wish.lower() in ("1", "true", "on", "yes", "y")            # as Triton reads it
INTERPRETED = _asked or (not _wish and _capability() < LEAST)

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")               # a * b + c in one step, as ever: Triton 3.9 asks

if INTERPRETED:
    if "triton" in sys.modules and not _asked:
        raise ImportError("triton was imported before helpers.device, so its interpreter can no longer be turned on: "
                          "restart the kernel and run the notebook's first code cell first")
    os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402  (after the choice, see above)
import triton.language as tl  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"


def describe() -> str:
    """One line that says where kernels run, and why. It begins with `[gpu]`, so the tests do not compare it."""
    versions = f"(torch {torch.__version__.split('+')[0]}, triton {triton.__version__})"
    able, interpreter = _capability(), "Triton runs in its interpreter"
    if not any(able):
        return f"[gpu] none in use: Triton {'is interpreted' if INTERPRETED else 'compiles'}, CUDA C++ emulated {versions}"
    gpu = f"[gpu] {torch.cuda.get_device_name(0)}, compute capability {able[0]}.{able[1]}"
    if not INTERPRETED:
        return f"{gpu} {versions}"
    if able < LEAST:
        return f"{gpu}: Triton's kernels here need {LEAST[0]}.{LEAST[1]}, so {interpreter} {versions}"
    return f"{gpu}, not in use: {interpreter}, as TRITON_INTERPRET asks {versions}"


def capability(x: torch.Tensor) -> int:
    """The compute capability of x's GPU without its second digit: 80 for 8.0 to 8.9, 90, 100, ...

    The interpreter passes for 90: it runs what a Hopper GPU runs.
    """
    return 10 * _major(x.device) if x.is_cuda else 90


def multiprocessors(x: torch.Tensor) -> int:
    """How many multiprocessors x's GPU has. Interpreter and simulator pass for two, which work one after the other."""
    return _multiprocessors(x.device) if x.is_cuda else 2


_major = functools.cache(lambda gpu: torch.cuda.get_device_capability(gpu)[0])           # asked at each launch
_multiprocessors = functools.cache(lambda gpu: torch.cuda.get_device_properties(gpu).multi_processor_count)


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The type in which a kernel hands tiles of `dtype` to tl.dot: Triton's name for it.

    Raises TypeError for anything but float16, bfloat16 and float32.
    """
    if dtype not in _dot_types:
        raise TypeError(f"no kernel for {dtype}: use torch.float16, torch.bfloat16 or torch.float32")
    return _dot_types[dtype]


_dot_types = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


if INTERPRETED:
    import helpers.interpreter  # noqa: F401  (makes it strict)
