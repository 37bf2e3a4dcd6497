"""The suites of what others have claimed of Triton kernels, in their sizes or near them."""
import functools

from helpers import reference
from helpers.bench import clock, kernels
from helpers.bench.attention import LAST, compared, eight_bits, versions
from helpers.bench.run import suite
from helpers.device import DEVICE

import torch

BATCHES, SHORT_TO_LONG = [1, 2, 4, 8], [128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
SHAPES_256 = [(1, 256), (2, 128), (8, 32)]               # heads, features of a head: a model dimension of 256
TABLE_LENGTH = 8192
SHAPES = [(4, 8, 512, 32), (1, 16, 8192, 128)]           # batch, heads, N, D
PRODUCT = 8192


@suite(seconds=65)
def lengths_and_batches():
    """Time against sequence length for batches of 1 to 8: 8 heads of 64, forward, no mask, float16."""
    peers = kernels.peers(False)
    fns = {"standard": peers["standard"], **versions(), "SDPA flash": peers["SDPA flash"]}
    for batch in BATCHES:
        for N in SHORT_TO_LONG:
            yield from compared(fns, (batch, 8, N, 64), last=LAST)


@suite(seconds=28)
def table_8192():
    """Time and peak memory of every version at N = 8192: a model dimension of 256 as 1, 2 and 8 heads, forward, no
    mask, float16."""
    for heads, D in SHAPES_256:
        fns = {"v1, 1-D grid": kernels.v1(tiles=dict(BLOCK_V=D)), "v1": kernels.v1(), **versions(), **eight_bits(D)}
        yield from compared({**kernels.peers(False), **fns}, (1, heads, TABLE_LENGTH, D), last=LAST)


@suite(seconds=22)
def types():
    """float32, float16, bfloat16 and FP8: matrix products, then attention, and its difference from the standard one."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        facts = dict(name="matrix product", dtype=str(dtype).removeprefix("torch."), n=PRODUCT)
        yield facts, functools.partial(kernels.tolerant, "standard", _product, dtype)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            fns = {**kernels.peers(False), **versions(), **(eight_bits(shape[3]) if dtype == torch.float16 else {})}
            if dtype == torch.float32:                   # these two take half precision only
                del fns["SDPA flash"], fns["SDPA cudnn"]
            yield from compared(fns, shape, dtype=dtype, last=LAST, more=_difference)


def _difference(fn, q, k, v):
    standard = reference.torch_attention(q, k, v)
    return dict(largest_difference=(fn(q, k, v).double() - standard.double()).abs().max().item(),
                largest_value=standard.abs().max().item())


def _product(dtype):
    a, b = (torch.randn(PRODUCT, PRODUCT, device=DEVICE).to(dtype) for _ in range(2))
    one = torch.ones((), device=DEVICE)

    def product():
        return torch._scaled_mm(a, b.T, one, one, out_dtype=torch.float16) if dtype == torch.float8_e4m3fn else a @ b.T
    clock.verified("the product", product()[:256], a[:256].double() @ b.T.double(), 1e-2, str(dtype))
    return clock.rate(2 * PRODUCT**3, product)
