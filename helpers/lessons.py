"""Lessons are modules: `from helpers.lessons import flash_attention_triton`.

A code cell whose first line is `#| export` (nbdev's convention) is part of its notebook's module. helpers.lessons.TOPIC
is made of the exported cells of notebooks/NN_TOPIC.ipynb, and of nothing else of it, by a finder of Python's import
system: a real module, executed once a process, whose source tracebacks, inspect, Dynamo and pickle find. After an
edit, restart, or call importlib.reload.
"""
import importlib
import importlib.abc
import importlib.machinery
import itertools
import json
import linecache
import sys
import types
from pathlib import Path

from helpers import ROOT, device  # noqa: F401  (chooses GPU or interpreter before an exported cell imports triton)

NOTEBOOKS = ROOT / "notebooks"
MARK = "#| export"
_variants = itertools.count()                            # their numbers
__path__ = []                                            # makes this module a package, whose modules the finder makes


def notebook(topic: str) -> Path:
    """The notebook of a topic. Raises ImportError, with the topics there are, if there is none."""
    found = {each.stem.split("_", 1)[1]: each for each in sorted(NOTEBOOKS.glob("[0-9]*_*.ipynb"))}
    if topic not in found:
        raise ImportError(f"there is no lesson {topic!r}; the lessons are {', '.join(found)}",
                          name=f"{__name__}.{topic}")
    return found[topic]


def source(topic: str) -> str:
    """The exported cells of a lesson as one Python source, each behind a comment with its place in the notebook.

    Raises ImportError for an unknown lesson and for one that exports nothing.
    """
    file = notebook(topic)
    parts = []
    for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"], 1):
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and text.split("\n", 1)[0].strip() == MARK:
            parts.append(f"# {file.name}, cell {number}\n{text}\n")
    if not parts:
        raise ImportError(f"lesson {topic!r} exports nothing: none of its code cells begins with `{MARK}`",
                          name=f"{__name__}.{topic}")
    return "\n\n".join(parts)


def variant(topic: str, *changes):
    """The module of a lesson with other lines: for each (old, new) of `changes`, the one place where old stands is new.

    It is not what an import finds. Raises ValueError if there is not one such place.
    """
    return module_of(changed(source(topic), changes, f"lesson {topic!r}"), f"{topic}_{next(_variants)}")


def changed(code: str, changes, where: str) -> str:
    """The source with these (old, new) lines. `where` says in an error what it is the source of."""
    for old, new in changes:
        if code.count(old) != 1:
            raise ValueError(f"{old!r} stands {code.count(old)} times in {where}, and not once")
        code = code.replace(old, new)
    return code


def module_of(code: str, name: str):
    """A module of this source, which tracebacks and inspect find. It is not what an import finds."""
    module = types.ModuleType(name)
    _execute(module, code, f"<{name}>")
    return module


def _execute(module, code, file):
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)          # None: it does not age
    module.__file__ = file                               # with this, inspect finds the source of classes as well
    exec(compile(code, file, "exec"), module.__dict__)


class _Lessons(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads helpers.lessons.TOPIC."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, topic = fullname.rpartition(".")
        if package == __name__:
            return importlib.machinery.ModuleSpec(fullname, self, origin=f"<exported cells of {notebook(topic).name}>")

    def exec_module(self, module):
        _execute(module, source(module.__name__.rpartition(".")[2]), module.__spec__.origin)


if not any(type(finder).__name__ == "_Lessons" for finder in sys.meta_path):
    sys.meta_path.insert(0, _Lessons())


def __getattr__(topic):
    """lessons.TOPIC, imported when it is first asked for."""
    if not topic.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{topic}")
        except ImportError as problem:
            if problem.name != f"{__name__}.{topic}":
                raise
            raise AttributeError(str(problem)) from problem
    raise AttributeError(f"module {__name__!r} has no attribute {topic!r}")
