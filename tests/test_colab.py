"""Lessons in Colab: badges and copies, and what is installed there. tests/one_click.py runs a copy from an empty folder."""
import importlib.metadata
import json
import re
from pathlib import Path

import nbformat
import pytest

import books
from helpers import ROOT
from helpers.desk import colab


def test_readme_has_its_badge():
    assert colab.badge(books.NAMES[0], "figures/") in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", books.NAMES)
def test_a_lesson_has_its_badge_and_its_copy_fetches_the_course(name):
    lesson = books.read(name)
    assert lesson.cells[0].source.endswith(colab.badge(name, "../figures/"))
    copied = colab.copy(json.loads((books.NOTEBOOKS / f"{name}.ipynb").read_text()))
    nbformat.validate(nbformat.reads(colab.written(copied), as_version=4))
    fetch, imports = copied["cells"][1:3]
    assert f"https://github.com/{colab.repository()} /content/course" in fetch["source"]
    assert imports["source"] == lesson.cells[1].source
    prose = "\n".join(cell["source"] for cell in copied["cells"] if cell["cell_type"] == "markdown")
    assert not re.search(r"\]\((?!https://)[^)]*\.(ipynb|svg|md)", prose)


def test_a_badge_is_exchanged_or_put_at_the_end():
    badge = colab.badge("x", "")
    assert colab.with_badge("text\n", badge) == f"text\n\n{badge}"
    assert colab.with_badge(f"a\n\n{colab.badge('old', '')}\n\nb", badge) == f"a\n\n{badge}\n\nb"


OTHERS = {"numpy": [], "matplotlib": [], "matplotlib-inline": []}


@pytest.mark.parametrize("here,wanted", [
    (dict(torch=["triton==3.4.0; platform_system == 'Linux'"], numpy=[]), ["triton==3.4.0", "matplotlib==", "matplotlib-inl"]),
    (dict(torch=["filelock"]) | OTHERS, ["triton==3.7.1"]),
    (dict(torch=[], triton=[]) | OTHERS, []),
    ({}, ["torch==", "triton==3.7.1", "numpy==", "numpy==", "matplotlib==", "matplotlib-inline=="])])
@pytest.mark.parametrize("nvcc", [False, True])
def test_only_what_is_missing_is_installed(monkeypatch, here, wanted, nvcc):
    def version(name):
        if name not in here:
            raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", here.get)
    monkeypatch.setattr(colab.shutil, "which", lambda name: "nvcc" if nvcc else None)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    wanted = wanted + ([] if nvcc else ["cuda-toolkit[nvcc,cudart]=="])
    found = colab.missing()
    assert len(found) == len(wanted) and all(line.startswith(start) for line, start in zip(found, wanted))
