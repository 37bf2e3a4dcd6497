"""Loading exported cells."""
import inspect
import json
import traceback

import pytest

from helpers import lessons


def test_loads_exported_cells_only():
    module = lessons.vector_add_triton
    assert callable(module.add)
    assert not hasattr(module, "scale_add") and not hasattr(module, "plotting")


def test_source_is_real():
    add = lessons.vector_add_triton.add
    assert inspect.getsource(add).startswith("def add(x: torch.Tensor")


def test_traceback_shows_the_line():
    with pytest.raises(TypeError) as caught:
        lessons.vector_add_triton.add(None, None)
    assert "z = torch.empty_like(x)" in "".join(traceback.format_exception(caught.value))


def test_unknown_lesson():
    with pytest.raises(ValueError, match="there is no lesson '99_nothing'; the lessons are 00_start_here, "):
        lessons.nothing


def test_lesson_without_exports():
    with pytest.raises(ValueError, match="'00_start_here' exports nothing"):
        lessons.start_here


def test_a_saved_edit_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "NOTEBOOKS", tmp_path)
    for answer in (1, 2):
        cell = {"cell_type": "code", "source": ["#| export\n", f"answer = {answer}\n"]}
        (tmp_path / "50_x.ipynb").write_text(json.dumps({"cells": [cell]}))
        assert lessons.load("50_x").answer == answer
