"""The mistakes that readers make, planted in the solutions of lessons 07 to 09: what the checks say of them."""
import numpy as np
import pytest

import books
from helpers import device

EXERCISES = {e.number: e for name in books.NAMES if name[:2] in ("07", "08", "09") for e in books.exercises(name)}
OWN, LENGTH, LOW = ("each row has a maximum of its own", "a length that is no multiple of the block",
                    "a later key weighs nothing, however low the scores")
OUT_OF_WINDOW = "a key outside of the window weighs nothing, however low the scores"
BEFORE, AFTER, OUTSIDE = ("tiles before the window are not visited", "tiles above the diagonal are not visited",
                          "nothing is written outside of the tensors")
START, END = "tl.maximum(block * BLOCK - window + 1, 0) // BLOCK * BLOCK", "tl.minimum((block + 1) * BLOCK, N)"
EARLY = "tl.maximum((block * BLOCK - window + 1) // BLOCK * BLOCK - {} * BLOCK, 0)"
LARGE = 128 if device.INTERPRETED else 64                # compiling 128 x 128 in float32 takes half a minute
EXACT = "tl.maximum(block * BLOCK - window + 1, 0)"


def planted(number, changes):
    """Which properties the solution of an exercise fails, in order, once each piece of text has its replacement."""
    source = EXERCISES[number].solution
    for old, new in changes.items():
        assert source.count(old) == 1, (old, source)
        source = source.replace(old, new)
    with np.errstate(all="ignore"):
        printed = books.attempt(EXERCISES[number], source)
    assert "  ok  " in printed
    return [line[8:].split(": ")[0] for line in printed.splitlines() if line.startswith("  FAIL")]


def test_a_maximum_that_rows_share_is_found_out_first():
    assert planted("7.1", {"s.max(axis=1)": "s.max()"}) == [OWN]
    assert planted("8.1", {"tl.max(s, axis=1)": "tl.max(s)"}) == [OWN, LENGTH]     # rows beyond the end have a maximum too: 0
    assert planted("8.1", {"tl.max(s, axis=1)": "tl.max(s, axis=0)"})[0] == OWN


@pytest.mark.parametrize("number,mask", [("7.3", "-np.inf"), ("8.3", '-float("inf")'), ("9.3", '-float("inf")')])
@pytest.mark.parametrize("value", ["-1e4", "-1e9"])
def test_a_mask_that_is_only_very_negative_is_found_out(number, mask, value):
    assert planted(number, {mask: value}) == [OUT_OF_WINDOW if number == "9.3" else LOW]


def with_blocks(size):
    return {"cdiv(N, 32)": f"cdiv(N, {size})", "BLOCK=32": f"BLOCK={size}"}


@pytest.mark.parametrize("size", [16, 32, LARGE])
@pytest.mark.parametrize("change", [{}, {START: EXACT}], ids=["at a multiple", "at the first key"])
def test_a_window_passes_with_any_block(change, size):
    assert planted("9.3", change | with_blocks(size)) == []


@pytest.mark.parametrize("change,problems", [
    ({START: EARLY.format(1)}, [BEFORE]), ({START: EARLY.format(2)}, [BEFORE]), ({START: "0"}, [BEFORE]),
    ({START: "tl.maximum(block * BLOCK - window, 0) // BLOCK * BLOCK"}, [BEFORE]),
    ({END: "N"}, [AFTER]), ({END: "tl.minimum((block + 2) * BLOCK, N)"}, [AFTER]),
    ({START: EXACT, END: "N"}, [AFTER]), ({START: "0", END: "N"}, [BEFORE, AFTER])],
    ids=["one early", "two early", "from 0", "off by one", "to N", "one late", "exact to N", "all tiles"])
def test_tiles_for_nothing_are_found_out(change, problems):
    assert planted("9.3", change) == problems


def test_a_store_without_a_mask_is_found_out():
    assert planted("9.3", {"o, mask=rows[:, None] < N)": "o)"}) == [OUTSIDE]
    assert OUTSIDE in planted("9.2", {"o, mask=rows[:, None] < N_q)": "o)"})
