"""Right and wrong versions of quantizing to 8 bits."""
import torch

from helpers import check
from mistakes.ways import in_place


def quantize(x, block, largest=448, magnitude=torch.abs, common=False, floor=0.0, guard=True, short=True, whole=False):
    scales = torch.stack([magnitude(rows).max() / largest for rows in x.split(block)])
    if common:
        scales[:] = scales.max()
    if guard:
        scales = torch.where(scales == 0, 1.0, scales)
    scales = torch.where(scales.abs() < floor, floor, scales)
    if not short and len(x) % block and len(scales) > 1:
        scales[-1] = scales[-2]
    x8 = x / scales.repeat_interleave(block)[:len(x), None]
    return (x8.round() if whole else x8).to(torch.float8_e4m3fn), scales


def wrong(**mistake):
    return lambda x, block: quantize(x, block, **mistake)


def truncated(x, block):
    x8, scales = quantize(x, block)
    bits = (x8.float().abs() * scales.repeat_interleave(block)[:len(x), None] > x.abs()).to(torch.uint8)
    return (x8.view(torch.uint8) - bits).view(torch.float8_e4m3fn), scales


def fails_in_a_library(x, block):
    x8, scales = quantize(x, block)
    return torch.minimum(x8, x8), scales                 # PyTorch has no such operation: NotImplementedError


CASES = {check.quantize: dict(right=[quantize], wrong={
    "the largest number of a block becomes 448": wrong(largest=256),
    "every number comes back to within 1/16 of itself": [wrong(whole=True), truncated],
    "the largest may be negative": wrong(magnitude=lambda rows: rows),
    "an outlier spoils no other block": wrong(common=True),
    "a last block that is short": [wrong(short=False),
                                   lambda x, block: (quantize(x, block)[0].float(), quantize(x, block)[1])],
    "a block of zeros has the scale 1": wrong(guard=False),
    "very large and very small blocks": wrong(floor=1e-12),
    "the inputs are left as they were": in_place(quantize)}, also=[fails_in_a_library])}
