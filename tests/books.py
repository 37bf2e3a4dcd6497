"""What the tests know of notebooks: their cells, their exercises, and how to run a solution."""
import ast
import contextlib
import io
import linecache
import re
from dataclasses import dataclass

import nbformat

from helpers.lessons import MARK, NOTEBOOKS

PATHS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
NAMES = [path.stem for path in PATHS]
SOLUTION = re.compile(r"<summary>Solution</summary>(.*?)</details>", re.DOTALL)
FENCED = re.compile(r"```python\n(.*?)```", re.DOTALL)


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


def span(values, digits=1):
    """The least and the largest of values, as prose says it: "1.2 to 3.4"."""
    values = list(values)
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def exercises(lesson):
    """Every `### Exercise N.M` of a lesson: the next code cell is the stub, the one after it the check."""
    found, cells = [], read(lesson).cells
    for place, cell in enumerate(cells):
        for heading in re.findall(r"^### Exercise (.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []:
            code = [c.source for c in cells[place + 1:] if c.cell_type == "code"]
            after = next(c.source for c in cells[place + 1:] if c.cell_type == "markdown")
            found.append(Exercise(lesson, heading.split()[0], "Bug hunt" in heading, code[0], code[1],
                                  after.count("<summary>Hint"), "".join(FENCED.findall(SOLUTION.search(after)[1]))))
    return found


def defined(source):
    """Names of the functions that a piece of Python defines."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]


def attempt(exercise, source):
    """Run the import cell, the exported cells, `source` and the check; return what the check printed."""
    cells = [c.source for c in read(exercise.lesson).cells if c.cell_type == "code"]
    exported = [c for c in cells if c.startswith(MARK)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        namespace = {"__name__": exercise.lesson}
        for place, cell in enumerate([cells[0], *exported, source, exercise.check]):
            file = f"<{exercise.lesson} {exercise.number} {place} {hash(cell)}>"
            linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
            exec(compile(cell, file, "exec"), namespace)
    return printed.getvalue().split("\n", 1)[1]          # without the import cell's line
