"""The vector addition in Triton: any length, type and layout."""
import pytest
import torch

from helpers import device
from helpers.lessons.vector_add_triton import add

VIEWS = {"contiguous": lambda x: x, "transposed": lambda x: x.mT, "every second": lambda x: x[..., ::2],
         "expanded": lambda x: x[:1].expand(x.shape), "a slice": lambda x: x[1:, 1:]}


@pytest.mark.parametrize("shape", [(0,), (1,), (1023,), (1025,), (7, 300), (2, 0, 3), ()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_lengths_and_types(shape, dtype):
    x, y = ((torch.randn(shape) * 20).abs().to(device.DEVICE, dtype) for _ in range(2))
    z = add(x, y)
    assert z.dtype == dtype and torch.equal(z, x + y)


@pytest.mark.parametrize("second", VIEWS)
@pytest.mark.parametrize("first", VIEWS)
def test_layouts(first, second):
    shape = 40, 40
    x, y = (VIEWS[view](torch.randn(shape, device=device.DEVICE))[:20, :20] for view in (first, second))
    assert torch.equal(add(x, y), x + y)
