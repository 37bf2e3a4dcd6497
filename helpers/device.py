"""Where Triton kernels run: on an NVIDIA GPU if there is one, otherwise in Triton's interpreter on the CPU.

Triton decides at its import, so this module comes first: `from helpers import device`, then `import triton`.
TRITON_INTERPRET=1 in the environment asks for the interpreter on a GPU machine too, to debug; TRITON_INTERPRET=0
forbids it, so that a machine without a GPU can compile kernels (helpers/compiled.py).
"""
import functools
import os
import sys

import torch

_wish = os.environ.get("TRITON_INTERPRET")
INTERPRETED = _wish == "1" or (_wish != "0" and not torch.cuda.is_available())

if INTERPRETED and _wish != "1":
    if "triton" in sys.modules:
        raise ImportError("triton was imported before helpers.device, so its interpreter can no longer be turned on: "
                          "restart the kernel and run the notebook's first code cell first")
    os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402  (after the choice, see above)
import triton.language as tl  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"


def describe() -> str:
    """One line that says where kernels run. It begins with `[gpu]`, so the tests do not compare it."""
    versions = f"torch {torch.__version__.split('+')[0]}, triton {triton.__version__}"
    if INTERPRETED:
        emulated = "" if torch.cuda.is_available() else ", CUDA C++ in an emulator"
        return f"[gpu] none in use: Triton runs in its interpreter{emulated} ({versions})"
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    return f"[gpu] {name}, compute capability {major}.{minor} ({versions})"


def capability(x: torch.Tensor) -> int:
    """The compute capability of x's GPU without its second digit: 80 for 8.0 to 8.9, 90, 100, ...

    The interpreter passes for 90: it runs what a Hopper GPU runs.
    """
    return 10 * _major(x.device) if x.is_cuda else 90


_major = functools.cache(lambda gpu: torch.cuda.get_device_capability(gpu)[0])           # asked at each launch


def dot_type(dtype: torch.dtype) -> tl.dtype:
    """The type in which a kernel hands tiles of `dtype` to tl.dot: the same type, with one exception.

    The interpreter multiplies the bit patterns of bfloat16 numbers as if they were integers. There they become float32
    first, which holds every bfloat16 product exactly. Raises TypeError for anything but float16, bfloat16 and float32.
    """
    types = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
    if dtype not in types:
        raise TypeError(f"no kernel for {dtype}: use torch.float16, torch.bfloat16 or torch.float32")
    return tl.float32 if INTERPRETED and dtype == torch.bfloat16 else types[dtype]
