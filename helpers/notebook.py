"""Kernels are written once, in the notebook that teaches them; everything else loads them from there.

A code cell whose first line is `#| export` (nbdev's convention) is part of its notebook's module.
"""
import json
import linecache
import types

from helpers import ROOT, device  # noqa: F401  (chooses GPU or interpreter before an exported cell imports triton)

NOTEBOOKS = ROOT / "notebooks"
MARK = "#| export"


def load(lesson: str) -> types.ModuleType:
    """Import the exported cells of notebooks/<lesson>.ipynb, and nothing else of it, as a module.

    The notebook is read at each call, so saved edits count. Tracebacks, `inspect.getsource` and Triton's compiler see
    the exported source. Raises ValueError for an unknown lesson and for a lesson that exports nothing.
    """
    source = exported_source(lesson)
    file = f"<exported cells of {lesson}.ipynb>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module = types.ModuleType(lesson)
    module.__file__ = file
    exec(compile(source, file, "exec"), module.__dict__)
    return module


def exported_source(lesson: str) -> str:
    """The exported cells of a lesson as one Python source, each behind a comment with its place in the notebook."""
    path = NOTEBOOKS / f"{lesson}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb")))
        raise ValueError(f"there is no lesson {lesson!r}; the lessons are {known}")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for number, cell in enumerate(cells, 1):
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and text.split("\n", 1)[0].strip() == MARK:
            parts.append(f"# {lesson}.ipynb, cell {number}\n{text}\n")
    if not parts:
        raise ValueError(f"lesson {lesson!r} exports nothing: none of its code cells begins with `{MARK}`")
    return "\n\n".join(parts)
