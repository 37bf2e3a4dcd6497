"""What a check prints: a line a property, an exception with the reader's own line, and how many properties hold."""
import dis
import linecache
import os
import sysconfig
import textwrap

from helpers import ROOT
from helpers.interpreter.accesses import MemoryFault

WIDTH = 100                                              # JupyterLab shows some 105 in a window of 1280 pixels
NOT_THEIRS = str(ROOT / "helpers"), sysconfig.get_path("stdlib"), "<exported cells", "<frozen"


def show(title, results):
    """Print the {property: "" or what went wrong} of one operation. True if every property holds."""
    print(title)
    problems, told = [*results.values()], set()
    alike = len(problems) > 1 and problems[0] and len(set(problems)) == 1
    for name, problem in {"every property": problems[0]}.items() if alike else results.items():
        said = f"{name}: {'the same' if problem in told else problem}" if problem else name
        print(textwrap.fill(said, WIDTH, break_long_words=False, break_on_hyphens=False, subsequent_indent=" " * 8,
                            initial_indent="  FAIL  " if problem else "  ok    "))
        told |= {problem}
    print(f"  {problems.count('')} of {len(problems)} properties hold")
    return not any(problems)


def is_stub(error):
    """Did the reader's own code say `raise NotImplementedError`? Where a library raises it, something was attempted."""
    cause = _chain(error)[-1]
    if not isinstance(cause, NotImplementedError):
        return False
    frame, at = [(step.tb_frame, step.tb_lasti) for step in _steps(cause)][-1]
    return _theirs(frame) and dis.opname[frame.f_code.co_code[at]] == "RAISE_VARARGS"


def raised(error):
    """A sentence about an exception, with the reader's line that led to it."""
    cause, place = _chain(error)[-1], "it"
    if isinstance(cause, MemoryFault):                   # names the line itself
        return str(cause)
    message = str(cause)
    if getattr(cause, "src", None) and hasattr(getattr(cause, "node", None), "lineno"):      # of Triton's compiler
        place = _line(cause.node.lineno, "of the kernel", cause.src.splitlines()[cause.node.lineno - 1])
        message = str(cause.error_message or "")
    else:
        for step in [step for link in _chain(error) for step in _steps(link) if _theirs(step.tb_frame)][-1:]:
            code = step.tb_frame.f_code
            place = _line(step.tb_lineno, f"in {code.co_name}", linecache.getline(code.co_filename, step.tb_lineno))
    told = " ".join(message.split())[:200]
    return f"{place} raised {type(cause).__name__}" + (f": {told}" if told else "")


def _line(number, where, text):
    return f"line {number}, {where}: `{textwrap.shorten(text, 80, placeholder=' ...')}`"


def _chain(error):
    """The exception and its causes: Triton's interpreter wraps what a kernel raises."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _steps(error):
    step = error.__traceback__
    while step is not None:
        yield step
        step = step.tb_next


def _theirs(frame):
    """Is this code the reader's: from a cell or a file, but not from the course, from Python or from a package?"""
    file = os.path.normpath(frame.f_code.co_filename)    # a notebook finds helpers/ behind a `..`
    return not file.startswith(NOT_THEIRS) and "site-packages" not in file
