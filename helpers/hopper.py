"""Gluon's words for a Hopper GPU, under one name in every version of Triton; and where its kernels run.

A launch on CUDA tensors runs on the GPU, and one on CPU tensors in the simulator (helpers/simulator).

Triton 3.6 and 3.7 call the copies async_copy_global_to_shared and async_copy_shared_to_global, later ones async_load and
async_store; and the copy that adds has no public name before 3.8.
"""
import functools

from helpers import device  # (before triton: helpers.device says why)

import torch
from triton._C.libtriton import ir
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import (fence_async_shared, mbarrier, tma,  # noqa: F401
                                                              warpgroup_mma, warpgroup_mma_wait)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor  # noqa: F401

# where a Gluon kernel can run on this machine: "cuda" for a Hopper GPU, "cpu" for the simulator
HOPPER = not device.INTERPRETED and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
DEVICE = "cuda" if HOPPER else "cpu"


@builtin
def _add(tensor_desc, coord, src, _semantic=None):
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, tensor_desc.handle, coord, src.handle)


async_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared            # (desc, corner, full, tile)
async_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global          # (desc, corner, tile)
async_add = getattr(tma, "async_atomic_add", _add)                                          # the same, and adds
store_wait = tma.store_wait


def _on_gpu_or_simulated(run):
    @functools.wraps(run)
    def launch(self, *args, grid, warmup=False, **kwargs):
        tensors = [getattr(x, "base", x) for x in (*args, *kwargs.values())]
        if any(isinstance(x, torch.Tensor) and not x.is_cuda for x in tensors):
            from helpers import simulator
            return simulator.launch(self, grid, *args, **kwargs)
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)
    return launch


if not hasattr(GluonJITFunction.run, "__wrapped__"):                   # once a process
    GluonJITFunction.run = _on_gpu_or_simulated(GluonJITFunction.run)
