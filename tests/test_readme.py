"""The README says what was measured: its table, its sentence and its figure come from figures/h200/*.json."""
import copy
import re
import sys

import matplotlib
import pytest

from helpers import ROOT, bench
from test_setup import PINS

sys.path.insert(0, str(ROOT / "figures"))
import headline  # noqa: E402

README = (ROOT / "README.md").read_text()


def test_the_readme_is_up_to_date():
    assert headline.readme(README) == README


@pytest.mark.skipif(matplotlib.__version__ != PINS["matplotlib"], reason="another matplotlib draws other bytes")
def test_the_figure_is_up_to_date(tmp_path):
    headline.draw(tmp_path)
    assert (tmp_path / "headline.svg").read_bytes() == (ROOT / "figures" / "headline.svg").read_bytes()


@pytest.mark.parametrize("record,row,change", [("flash_attention_v3", "v3", 1.02), ("backward", "ours", 0.98),
                                               ("flash_attention_v3", "SDPA cudnn", 1.02)])
def test_another_measurement_is_noticed(monkeypatch, tmp_path, record, row, change):
    """The test above can fail: with one kernel a little faster or slower, block and figure differ."""
    before, recorded = (tmp_path / "a"), bench.recorded
    def changed(name):
        found = copy.deepcopy(recorded(name))
        for r in found["rows"] if name == record else []:
            if r["name"] == row and "tflops" in r:
                r["tflops"] *= change
        return found
    for folder in (before, tmp_path / "b"):
        folder.mkdir()
        headline.draw(folder)
        monkeypatch.setattr(bench, "recorded", changed)
    assert headline.readme(README) != README
    assert (before / "headline.svg").read_bytes() != (tmp_path / "b" / "headline.svg").read_bytes()


def test_the_table_by_another_way():
    """Every number of the table, looked up row by row in the records."""
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in README.splitlines() if re.match(r"\| (forward|backward), D", line)]
    assert len(rows) == 8
    for label, *cells in rows:
        way, D, is_causal = label.split(",")[0], int(re.search(r"D = (\d+)", label)[1]), "causal" in label
        name, ours = headline.PASSES[way]
        found = {r["name"]: r.get("tflops") for r in bench.recorded(name)["rows"]
                 if (r["N"], r["D"], r["is_causal"]) == (16384, D, is_causal)}
        expected = [found["standard"], found["SDPA efficient"], found["SDPA flash"], found["SDPA cudnn"], found[ours]]
        assert [cell.strip("*") for cell in cells[:5]] == ["out of memory" if x is None else f"{x:.0f}" for x in expected]
        assert cells[5:] == [f"{found[ours] / found[peer]:.2f}" for peer in ("SDPA flash", "SDPA cudnn")]


def test_markers():
    for text in ("no markers", f"{headline.BEGIN}{headline.END}" * 2):
        with pytest.raises(ValueError, match="expected one"):
            headline.readme(text)


def test_what_the_map_says_of_v2():
    """`faster than PyTorch's FlashAttention-2`, at every length that was recorded."""
    assert "v2: batches, heads, masks; on an H200 faster than PyTorch's FlashAttention-2" in README
    rows = {(r["name"], r["N"], r["D"], r["is_causal"]): r["median_ms"] for r in bench.recorded("flash_attention_v2")["rows"]}
    assert all(ms < rows["SDPA flash", *where] for (name, *where), ms in rows.items() if name == "v2")
