"""Queries and a cache: contiguous or in pages, in the type of q or in eight bits."""
import torch

from helpers.device import INTERPRETED
from helpers.validate.heads import groups
from helpers.validate.inputs import equal, kinds_of, remembered, served, strides, together


def cache(q, k_cache, v_cache, lengths, block_table, scales):
    """Check the arguments of attention to a cache: q [B, heads, N_q, D], lengths int32 [B], and either k_cache and
    v_cache [B, kv_heads, N_max, D], or block_table int32 [B, n] and pages [pages, kv_heads, page, D].

    The cache has the type of q; or float8_e4m3fn, and scales, float32 [2, ...], a number for each of its rows. Raises
    TypeError or ValueError, naming the argument. The numbers in lengths and block_table are left to cache_numbers.
    """
    some = {name: x for name, x in (("block_table", block_table), ("scales", scales)) if x is not None}
    _cache_fits(kinds_of(q=q, k_cache=k_cache, v_cache=v_cache, lengths=lengths, **some))


@remembered
def _cache_fits(kinds):
    shapes = {name: list(shape) for name, _, _, shape, _ in kinds}
    (_, q_dtype, place, *_), eight, paged = kinds[0], "scales" in shapes, "block_table" in shapes
    served("q", q_dtype, place)
    expected = dict.fromkeys(("k_cache", "v_cache"), torch.float8_e4m3fn if eight else q_dtype)
    expected |= dict(q=q_dtype, lengths=torch.int32, block_table=torch.int32, scales=torch.float32)
    for name, dtype, where, shape, steps in kinds:
        if dtype != expected[name]:
            more = "" if name not in ("k_cache", "v_cache") else " beside scales" if eight else (
                ", the type of q, or torch.float8_e4m3fn beside scales")
            raise TypeError(f"{name} is {dtype}: expected {expected[name]}{more}")
        together(name, where, "q", place)
        if name in ("q", "k_cache", "v_cache"):
            strides(name, shape, steps)
    B, (rows, kv_heads, page, _) = shapes["q"][0], shapes["k_cache"]
    if paged and (len(shapes["block_table"]) != 2 or not page):
        raise ValueError(f"block_table has shape {shapes['block_table']}, k_cache {shapes['k_cache']}: expected [B, n] "
                         "and [pages, kv_heads, page, D], with at least one key a page")
    fitting = dict(v_cache=shapes["k_cache"], lengths=[B], scales=[2, rows, kv_heads, page],
                   block_table=[B, *shapes.get("block_table", [])[1:]])
    for name, shape in shapes.items():
        if shape != fitting.get(name, shape):
            raise ValueError(f"{name} has shape {shape}: expected {fitting[name]}")
    if not paged:
        equal("k_cache", rows, "q", B, "{} batches")
    groups(shapes["q"], "k_cache", shapes["k_cache"])
    if eight and place.type == "cuda" and torch.cuda.get_device_capability(place) < (9, 0):
        raise ValueError(f"q is on a GPU of compute capability {torch.cuda.get_device_capability(place)}: FP8 needs 9.0 "
                         "or later")


def cache_numbers(lengths, block_table, N_max: int, pages: int, page: int):
    """ValueError for a length that is not 0 to N_max, or a page in use that is not 0 to pages - 1, saying where.

    In the interpreter only: on a GPU the host would wait for all work that is under way. There, kernels answer with NaN.
    """
    for b, length in enumerate(lengths.tolist() if INTERPRETED else ()):
        if not 0 <= length <= N_max:
            raise ValueError(f"lengths[{b}] is {length}: expected 0 to {N_max}, for which the cache has room")
        used = [] if block_table is None else block_table[b, :-(-length // page)].tolist()
        for i, number in enumerate(used):
            if not 0 <= number < pages:
                raise ValueError(f"block_table[{b}, {i}] is {number}: expected 0 to {pages - 1}, the pages of the cache")
