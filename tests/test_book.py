"""The book's pages say what the lessons say. (The built site is tested by `make test-book`.)"""
import re

import pytest

import books
from helpers import ROOT
from helpers.lessons import fp8, prefetch, warp_specialization

GLOSSARY = re.findall(r"^## (.+)\n\n((?:.+\n)+)", (ROOT / "book" / "glossary.md").read_text(), re.MULTILINE)
CHEAT_SHEET = (ROOT / "book" / "cheat_sheet.md").read_text()


def test_glossary_is_in_order():
    terms = [term.lower() for term, _ in GLOSSARY]
    assert terms == sorted(set(terms)) and len(terms) > 90


@pytest.mark.parametrize("term,entry", GLOSSARY, ids=[term for term, _ in GLOSSARY])
def test_a_term_stands_in_the_lesson_that_it_names(term, entry):
    (number, file), = re.findall(r"\[Lesson (\d\d)\]\(\.\./notebooks/(\w+)\.ipynb\)$", entry.strip())
    assert file.startswith(number)
    words = "|".join(map(re.escape, term.split(", ")))
    assert re.search(rf"(?<!\w)({words})(s|es|ed|ing)?(?!\w)", books.prose(file), re.IGNORECASE)


def sizes(tiles):
    """A kernel's tiles as the cheat sheet writes them."""
    if "PARTS" in tiles:
        return "{PARTS}, {BLOCK_N}, {STAGES}".format(**tiles)
    return "{BLOCK_M} x {BLOCK_N}, {num_warps}, {num_stages}".format(**tiles)


@pytest.mark.parametrize("row,D,is_causal", [("64", 64, False), ("128, no mask", 128, False),
                                             ("128, causal, from 8192 keys", 128, True), ("256", 256, False)])
def test_tiles_of_the_cheat_sheet(row, D, is_causal):
    cells = [row, *map(sizes, (prefetch.tiles_v3(D, 8192, is_causal),
                               warp_specialization.tiles_ws(D, 8192, 8192, is_causal, False), fp8.tiles_fp8(D, 90)))]
    assert f"| {' | '.join(cells)} |" in CHEAT_SHEET
