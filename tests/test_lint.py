"""What every notebook keeps to, whatever it teaches."""
import json
import re

import nbformat
import pytest

import books

IMPORT_CELL = '''import sys
sys.path.insert(0, "..")                  # the course's folder, which holds helpers/
from helpers import check, compiled, device, lessons, plotting, reference
import matplotlib.pyplot as plt, numpy as np, torch
print(device.describe())'''
TAGS = {"nbval-ignore-output", "raises-exception"}
BUDGET = 3                                               # cells of a lesson that nbval may leave uncompared

every_lesson = pytest.mark.parametrize("name", books.NAMES)


def code_cells(name):
    return [cell for cell in books.read(name).cells if cell.cell_type == "code"]


@every_lesson
def test_is_valid(name):
    nbformat.validate(books.read(name))


@every_lesson
def test_begins_with_title_and_import_cell(name):
    cells = books.read(name).cells
    assert re.match(rf"# {name[:2]} · \S", cells[0].source)
    for part in ("**You will**", "**Needs**", "**Time**"):
        assert part in cells[0].source
    assert cells[1].source == IMPORT_CELL


@every_lesson
def test_ends_with_recap_and_references(name):
    assert "\n## Recap\n" in books.prose(name) and "\n## References\n" in books.prose(name)


@every_lesson
def test_was_run_from_top_to_bottom(name):
    counts = [cell.execution_count for cell in code_cells(name)]
    assert counts == list(range(1, len(counts) + 1))


@every_lesson
def test_no_stderr_no_error(name):
    for cell in code_cells(name):
        for output in cell.outputs:
            assert output.get("name") != "stderr", cell.source
            assert output.output_type != "error" or "raises-exception" in cell.metadata.get("tags", []), cell.source


@every_lesson
def test_no_addresses_no_semicolons(name):
    for cell in code_cells(name):
        words = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
        assert not re.search(r"0x[0-9a-f]{6,}", "\n".join(words)), cell.source
        assert not cell.source.rstrip().endswith(";"), cell.source


@every_lesson
def test_code_cells_are_short(name):
    for cell in code_cells(name):
        assert len(cell.source.splitlines()) <= 40, cell.source
        assert max(map(len, cell.source.splitlines())) <= 120, cell.source


@every_lesson
def test_figures_have_alt_text(name):
    for image in re.findall(r"!\[([^\]]*)\]\(", books.prose(name)) + re.findall(r"<img(?![^>]*\balt=\"\w)[^>]*>", books.prose(name)):
        assert len(image) > 20 and not image.startswith("<img")
    for cell in code_cells(name):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"]["alt"]) > 20, cell.source


@every_lesson
def test_linked_figures_exist(name):
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", books.prose(name)):
        assert (books.NOTEBOOKS / target).is_file(), target


@every_lesson
def test_few_cells_are_left_uncompared(name):
    tags = [tag for cell in code_cells(name) for tag in cell.metadata.get("tags", [])]
    assert set(tags) <= TAGS
    assert tags.count("nbval-ignore-output") <= BUDGET


@every_lesson
def test_no_placeholder_is_left(name):
    assert not re.search(r"PLACEHOLDER|TODO|FIXME", "\n".join(cell.source for cell in books.read(name).cells))


@every_lesson
def test_metadata_names_no_machine(name):
    text = (books.NOTEBOOKS / f"{name}.ipynb").read_text()
    assert not re.search(r"/home/|/root/|/tmp/|site-packages", text)
    assert set(json.loads(text)["metadata"]) == {"kernelspec", "language_info"}
