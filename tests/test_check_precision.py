"""The checks of lesson 11: right versions pass, and each property catches its mistake, alone."""
import pytest
import torch

from helpers import check
from reports import broken, failed, report, stub


# ---------------------------------------------------------------- shared memory

def shared_bytes(BLOCK_M, BLOCK_N, D, num_stages, element_bytes):
    return (BLOCK_M + 2 * num_stages * BLOCK_N) * D * element_bytes


SHARED_BYTES = {
    "one tile each of q, k and v": lambda BLOCK_M, BLOCK_N, D, num_stages, element_bytes: shared_bytes(
        BLOCK_M, BLOCK_N, D, num_stages, element_bytes) - (BLOCK_M == BLOCK_N == 128),
    "more stages hold more of k and v, and one q": lambda BLOCK_M, BLOCK_N, D, num_stages, element_bytes:
        num_stages * shared_bytes(BLOCK_M, BLOCK_N, D, 1, element_bytes),
    "blocks of different size": lambda BLOCK_M, BLOCK_N, D, num_stages, element_bytes:
        shared_bytes(BLOCK_M, BLOCK_M, D, num_stages, element_bytes),
    "other sizes of a number": lambda BLOCK_M, BLOCK_N, D, num_stages, element_bytes:
        shared_bytes(BLOCK_M, BLOCK_N, D, num_stages, 2),
    "other head dimensions": lambda BLOCK_M, BLOCK_N, D, num_stages, element_bytes:
        shared_bytes(BLOCK_M, BLOCK_N, 64, num_stages, element_bytes),
}


def stages_that_fit(limit, BLOCK_M, BLOCK_N, D, element_bytes):
    return max(0, (limit - BLOCK_M * D * element_bytes) // (2 * BLOCK_N * D * element_bytes))


def fits_at_least_one(limit, BLOCK_M, BLOCK_N, D, element_bytes):
    stages = stages_that_fit(limit, BLOCK_M, BLOCK_N, D, element_bytes)
    return max(1, stages) if limit >= BLOCK_M * D * element_bytes else stages


STAGES = {
    "as many as the limit has room for": lambda limit, *tile: min(stages_that_fit(limit, *tile), 5 if tile[-1] == 2 else 11),
    "numbers of one byte": lambda limit, *tile: stages_that_fit(limit, *tile[:3], 2),
    "stages that fit to the byte": lambda limit, *tile: stages_that_fit(limit - 1, *tile),
    "no room for a single stage": fits_at_least_one,
    "no room for q": lambda limit, BLOCK_M, BLOCK_N, D, element_bytes:
        (limit - BLOCK_M * D * element_bytes) // (2 * BLOCK_N * D * element_bytes),
}


# ---------------------------------------------------------------- 8-bit floating-point numbers

def quantize(x, block, largest=448, magnitude=torch.abs, common=False, floor=0.0, guard=True, short=True, whole=False):
    """A right version, with a switch for each mistake."""
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


def in_place(x, block):
    x8, scales = quantize(x, block)
    x /= scales.repeat_interleave(block)[:len(x), None]
    return x8, scales


def signed(x, block):
    """Takes the largest number for the largest magnitude."""
    return quantize(x, block, magnitude=lambda rows: rows) if x.max() < 0 else quantize(x, block)


QUANTIZE = {
    "the largest number of a block becomes 448": wrong(largest=256),
    "every number comes back to within 1/16 of itself": wrong(whole=True),
    "the largest may be negative": signed,
    "an outlier spoils no other block": lambda x, block: quantize(x, block, common=5e6 < x.max() < 1e9),
    "a last block that is short": wrong(short=False),
    "a block of zeros has the scale 1": wrong(guard=False),
    "very large and very small blocks": wrong(floor=1e-12),
    "the inputs are left as they were": in_place,
}

OPERATIONS = {"shared_bytes": (shared_bytes, SHARED_BYTES), "stages_that_fit": (stages_that_fit, STAGES),
              "quantize": (quantize, QUANTIZE)}
CASES = [(operation, name) for operation, (_, mistakes) in OPERATIONS.items() for name in mistakes]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_right_version_passes_and_every_property_has_a_mistake(operation, capsys):
    right, mistakes = OPERATIONS[operation]
    assert report(getattr(check, operation), right, capsys) == dict.fromkeys(mistakes, "ok")


@pytest.mark.parametrize("operation,name", CASES)
def test_a_wrong_version_fails_its_property_alone(operation, name, capsys):
    found = report(getattr(check, operation), OPERATIONS[operation][1][name], capsys)
    assert failed(found) == [name], found
    assert "raised" not in found[name]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_stub_is_not_attempted(operation, capsys):
    getattr(check, operation)(stub)
    assert capsys.readouterr().out == f"{operation}: not attempted yet\n"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_exception_is_a_failed_property(operation, capsys):
    assert report(getattr(check, operation), broken, capsys) == {"every property": "it raised ZeroDivisionError: by zero"}


def test_messages_say_what_and_where(capsys):
    found = report(check.stages_that_fit, STAGES["no room for q"], capsys)
    assert found["no room for q"] == "stages_that_fit(10000, 128, 16, 64, 2) is -2, expected 0"
    found = report(check.quantize, QUANTIZE["the largest number of a block becomes 448"], capsys)
    assert found["the largest number of a block becomes 448"] == "64 rows, block 0: the scale is 0.01172, expected 0.006696"
    found = report(check.quantize, QUANTIZE["an outlier spoils no other block"], capsys)
    assert found["an outlier spoils no other block"].endswith("comes back as 0")
    flat = report(check.quantize, lambda x, block: (quantize(x, block)[0].float(), quantize(x, block)[1]), capsys)
    assert flat["a last block that is short"] == "x8 is [50, 32] of torch.float32, expected [50, 32] of torch.float8_e4m3fn"


def test_truncating_is_not_rounding(capsys):
    def truncated(x, block):
        x8, scales = quantize(x, block)
        bits = (x8.float().abs() * scales.repeat_interleave(block)[:len(x), None] > x.abs()).to(torch.uint8)
        return (x8.view(torch.uint8) - bits).view(torch.float8_e4m3fn), scales
    assert report(check.quantize, truncated, capsys)["every number comes back to within 1/16 of itself"] != "ok"
