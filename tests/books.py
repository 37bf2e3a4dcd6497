"""What the tests know of notebooks: their cells, their exercises, and how to run a solution."""
import ast
import contextlib
import io
import itertools
import linecache
import re
import textwrap
from dataclasses import dataclass

import nbformat

from helpers.lessons import MARK, NOTEBOOKS

NAMES = [path.stem for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))]
ATTEMPTS = itertools.count()
SOLUTION = re.compile(r"<summary>Solution</summary>(.*?)</details>", re.DOTALL)
FENCED = re.compile(r"^```[\w+]+\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass
class Exercise:
    lesson: str
    number: str
    bug_hunt: bool
    stub: str           # the cell with the stub or the planted fault
    check: str          # the cell with the check
    hints: int
    solution: str


def read(lesson):
    return nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4)


def prose(lesson):
    """The text of a lesson's markdown cells."""
    return "\n".join(cell.source for cell in read(lesson).cells if cell.cell_type == "markdown")


def exercises(lesson):
    """Every `### Exercise N.M` of a lesson: the next code cell is the stub, the one after it the check."""
    found, cells = [], read(lesson).cells
    for place, cell in enumerate(cells):
        text = cell.source if cell.cell_type == "markdown" else ""
        for heading in re.findall(r"^### Exercise (.+)$", text, re.MULTILINE):
            stub, check = [c.source for c in cells[place + 1:] if c.cell_type == "code"][:2]
            after = next(c.source for c in cells[place + 1:] if c.cell_type == "markdown")
            answer = SOLUTION.search(after)
            solution = solved(stub, FENCED.findall(answer[1])) if answer else ""
            number, bug_hunt = heading.split()[0], "Bug hunt" in heading
            found.append(Exercise(lesson, number, bug_hunt, stub, check, after.count("<summary>Hint"), solution))
    return found


def solved(stub, pieces):
    """A solution from its fenced pieces: a whole cell, or for a bug hunt pairs of wrong lines and right ones."""
    if len(pieces) % 2 or not all(_lines(stub, wrong) for wrong in pieces[::2]):
        return "".join(pieces)
    lines = stub.splitlines()
    for wrong, right in zip(pieces[::2], pieces[1::2]):
        at = _lines("\n".join(lines), wrong)
        margin = min(re.match(" *", line)[0] for line in lines[slice(*at)] if line)
        lines[at[0]:at[1]] = textwrap.indent(textwrap.dedent(right).rstrip(), margin).splitlines()
    return "\n".join(lines)


def _lines(stub, wrong):
    """Where in a stub some lines are, whatever their margin and comments: (first, the one after the last), or None."""
    def bare(text):
        lines = textwrap.dedent(text).strip("\n").splitlines()
        return [re.sub(r"\s*(#|//) .*", "", line).rstrip() for line in lines]

    stub, wrong = stub.splitlines(), bare(wrong)
    places = [(i, i + len(wrong)) for i in range(len(stub))]
    return next((place for place in places if bare("\n".join(stub[slice(*place)])) == wrong), None)


def defined(source):
    """Names of the functions that a piece of Python defines."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def _imports(source):
    """Does a cell import, and nothing else?"""
    return source.strip() and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)


def attempt(exercise, source):
    """Run the cells that only import, the exported ones, `source` and the check; return what the check printed."""
    first, *cells = [c.source for c in read(exercise.lesson).cells if c.cell_type == "code"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        namespace = {"__name__": f"attempt_{next(ATTEMPTS)}"}           # operators are registered under this name
        needed = [c for c in cells if c.startswith(MARK) or _imports(c)]
        for place, cell in enumerate([first, *needed, source, exercise.check]):
            file = f"<{exercise.lesson} {exercise.number} {place} {hash(cell)}>"
            linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
            exec(compile(cell, file, "exec"), namespace)
    return printed.getvalue().split("\n", 1)[1]          # without the import cell's line
