"""The exercises of the lessons: where they stand, and how to run one without the rest of its lesson."""
import ast
import contextlib
import io
import itertools
import linecache
import re
from dataclasses import dataclass

HEADING = re.compile(r"^### Exercise (([\d.]+) · .+) \(\w+, (\d+) minutes\)$", re.MULTILINE)
ATTEMPTS = itertools.count()


@dataclass
class Exercise:
    number: str         # "9.2"
    title: str          # "9.2 · Bug hunt"
    minutes: int
    cells: list[str]    # the code from its heading to its hints: the answer, what the reader added, and the check
    after: str          # the markdown cell behind them: hints and solution


def found(cells):
    """The exercises in a notebook's cells, dictionaries as the file has them."""
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    exercises = []
    for place, (kind, text) in enumerate(texts):
        for title, number, minutes in HEADING.findall(text) if kind == "markdown" else ():
            code = []
            for kind_below, below in texts[place + 1:]:
                if kind_below == "code":
                    code.append(below)
                elif kind_below == "markdown" and "<summary>" in below:
                    exercises.append(Exercise(number, title, int(minutes), code, below))
                    break
    return exercises


def _imports(source):
    """Does a cell import, and nothing else?"""
    with contextlib.suppress(SyntaxError):
        return source.strip() and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)


def attempt(cells, name, answer):
    """Run what an exercise needs of its lesson, the first cell, those that only import and the exported ones, then the
    code cells of `answer`, of which the last is the check. Returns what the check printed.

    cells: the lesson's, dictionaries as the file has them; name: for tracebacks. A cell of the answer that raises does
    not stop it, as in a notebook; if the check then printed nothing, the first such exception is raised.
    """
    from helpers.lessons import MARK                     # brings PyTorch and Triton along, which `found` can do without

    first, *code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    needed = [first, *(source for source in code if source.startswith(MARK) or _imports(source))]
    namespace = {"__name__": f"attempt_{next(ATTEMPTS)}"}               # operators are registered under this name
    problems = []
    for place, source in enumerate([*needed, *answer]):
        file, printed = f"<{name} {place} {hash(source)}>", io.StringIO()
        source = re.sub(r"^[%!]", "# ", source, flags=re.MULTILINE)     # IPython's, not Python
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(source, file, "exec"), namespace)
        except Exception as problem:
            if place < len(needed):
                raise
            problems.append(problem)
    if problems and not printed.getvalue():
        raise problems[0]
    return printed.getvalue()
