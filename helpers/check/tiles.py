"""Checks of the tiles that fit into shared memory."""
from helpers.check.core import equal, properties


def shared_bytes(fn):
    """fn(BLOCK_M, BLOCK_N, D, num_stages, element_bytes) returns the bytes of a tile of q and stages of k and v."""
    properties("shared_bytes", [
        ("one tile each of q, k and v", _bytes((64, 64, 64, 1, 2), (128, 128, 64, 1, 2))),
        ("more stages hold more of k and v, and one q", _bytes((64, 64, 64, 2, 2), (64, 64, 64, 3, 2))),
        ("blocks of different size", _bytes((128, 64, 64, 1, 2), (64, 128, 64, 1, 2))),
        ("other sizes of a number", _bytes((64, 64, 64, 1, 1), (64, 64, 64, 1, 4))),
        ("other head dimensions", _bytes((64, 64, 128, 1, 2), (64, 64, 256, 1, 2)))], fn)


def stages_that_fit(fn):
    """fn(limit, BLOCK_M, BLOCK_N, D, element_bytes) returns the largest num_stages that fits into limit bytes, or 0."""
    properties("stages_that_fit", [
        ("as many as the limit has room for", _stages((100_000, 128, 64, 64, 2), (232_448, 128, 128, 64, 2))),
        ("numbers of one byte", _stages((100_000, 128, 64, 64, 1))),
        ("stages that fit to the byte", _stages((81_920, 128, 64, 64, 2), (81_919, 128, 64, 64, 2))),
        ("no room for a single stage", _stages((32_767, 128, 64, 64, 2), (20_000, 128, 64, 64, 2))),
        ("no room for q", _stages((10_000, 128, 16, 64, 2), (0, 128, 64, 64, 2)))], fn)


def _bytes(*cases):
    return equal("shared_bytes", _shared_bytes, *cases)


def _stages(*cases):
    return equal("stages_that_fit", lambda limit, BLOCK_M, BLOCK_N, D, size: max(
        [n for n in range(1, 100) if _shared_bytes(BLOCK_M, BLOCK_N, D, n, size) <= limit], default=0), *cases)


def _shared_bytes(BLOCK_M, BLOCK_N, D, num_stages, element_bytes):
    q, k, v = BLOCK_M * D, num_stages * BLOCK_N * D, num_stages * BLOCK_N * D
    return element_bytes * (q + k + v)
