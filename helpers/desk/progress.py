"""Which exercises are done: `make progress`, or `progress.show()` in a notebook.

An exercise is run as the tests run it: the cells that its lesson imports and exports, the answer, the check. That takes
place on the CPU, each in a process of its own, so that an answer that hangs or crashes is no more than a line of the
report. Exercises that are still as they were handed out are not run, and answers whose verdict is known are not run
again. What counts is what is saved.
"""
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import time
from multiprocessing.connection import wait

from helpers import ROOT
from helpers.desk import exercises, update

KNOWN = ROOT / "build" / "progress.json"                 # {what a verdict depends on, hashed: the verdict}
LIMIT_S = 60                                             # for one exercise
QUIET = dict(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MPLBACKEND="agg")
NOT_YET = "not attempted"
GAVE_UP = "failing: it "


def show():
    """Print the report of all lessons, in a notebook too."""
    command = [sys.executable, "-m", "helpers.desk.progress"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            print(line, end="")


def verdict(printed):
    """"done", "not attempted", or which properties fail, from what a check printed."""
    held, failed = (re.findall(rf"^  {word} +(.+?)(?:: |$)", printed, re.MULTILINE) for word in ("ok", "FAIL"))
    if failed:
        return f"failing: {failed[0]}" + (f", and {len(failed) - 1} more" if failed[1:] else "")
    return "done" if held and NOT_YET not in printed else NOT_YET


def _run(send, cells, name, answer):
    """In a process of its own: send the verdict on an answer."""
    from helpers.check import report
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        send.send(verdict(exercises.attempt(cells, name, answer)))
    except Exception as error:
        send.send(f"failing: {report.raised(error)}")


def verdicts(tasks):
    """{key: verdict} of {key: (cells, name, answer)}, some at a time, each stopped after LIMIT_S seconds."""
    if tasks:                                            # imported once, for all processes
        from helpers import bench, check, compiled, plotting, reference  # noqa: F401
        from helpers.interpreter import traffic  # noqa: F401
    fork = multiprocessing.get_context("fork")
    left, running, found = list(tasks.items()), {}, {}
    while left or running:
        if sys.stderr.isatty():
            print(f"looked at {len(found)} of {len(tasks)} answers", end="\r", file=sys.stderr)
        while left and len(running) < len(os.sched_getaffinity(0)):
            key, task = left.pop(0)
            receive, send = fork.Pipe(duplex=False)
            process = fork.Process(target=_run, args=(send, *task))
            process.start()
            send.close()
            running[receive] = key, process, time.monotonic() + LIMIT_S
        ready = wait(running, timeout=0.1)
        for receive, (key, process, end) in list(running.items()):
            if receive in ready:
                try:
                    found[key] = receive.recv()
                except EOFError:
                    found[key] = f"{GAVE_UP}ended the process"
            elif time.monotonic() > end:
                found[key] = f"{GAVE_UP}ran for more than {LIMIT_S} seconds"
            if key in found:
                process.kill()
                process.join()
                del running[receive]
    return found


def remembered(lessons):
    """A function like `verdicts` that reads from a file what it found earlier, as long as helpers/ and what the lessons
    export are the same."""
    code = hashlib.sha256()
    for path in sorted((ROOT / "helpers").rglob("*.py")):
        code.update(path.read_bytes())
    for cell in (cell for text in lessons.values() for cell in json.loads(text)["cells"]):
        if "".join(cell["source"]).startswith("#| export"):
            code.update("".join(cell["source"]).encode())

    def of(tasks):
        keys = {key: hashlib.sha256(f"{code.hexdigest()} {task[1:]}".encode()).hexdigest() for key, task in tasks.items()}
        known = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
        found = verdicts({key: task for key, task in tasks.items() if keys[key] not in known})
        said = {key: found.get(key) or known[keys[key]] for key in tasks}
        KNOWN.parent.mkdir(exist_ok=True)
        KNOWN.write_text(json.dumps({keys[key]: word for key, word in said.items() if not word.startswith(GAVE_UP)}))
        return said
    return of


def lines(lessons, original, of=verdicts):
    """The report's lines. lessons: {file name: JSON text of the notebook}; original: the same as they were handed out;
    of: `verdicts`, or what `remembered` returns."""
    notebooks = {name: json.loads(text)["cells"] for name, text in lessons.items()}
    given = {name: {each.number: each.cells for each in exercises.found(json.loads(text)["cells"])}
             for name, text in original.items()}
    all_of = {name: exercises.found(cells) for name, cells in notebooks.items()}
    tasks = {(name, each.number): (cells, f"{name} {each.number}", each.cells) for name, cells in notebooks.items()
             for each in all_of[name] if each.cells != given.get(name, {}).get(each.number)}
    said = of(tasks)
    total = []
    for name, found in all_of.items():
        each_said = [(each, said.get((name, each.number), NOT_YET)) for each in found]
        total += each_said
        title = "".join(notebooks[name][0]["source"]).split("\n")[0].lstrip("# ")
        yield f"{textwrap.shorten(title, 41, placeholder=' ...'):<42}{_sum(each_said)}"
        if any(word != NOT_YET for _, word in each_said):
            yield from (f"     {textwrap.shorten(each.title, 36, placeholder=' ...'):<37}{textwrap.shorten(word, 76)}"
                        for each, word in each_said)
    yield f"{'All lessons':<42}{_sum(total)}"


def _sum(said):
    """How many of the (exercise, verdict) are done, and the minutes of the others."""
    left = [each.minutes for each, word in said if word != "done"]
    return f"{len(said) - len(left)} of {len(said)} done" + (f", {sum(left)} minutes left" if left else "")


if __name__ == "__main__":
    os.environ |= QUIET                                  # before PyTorch and Triton are imported
    paths = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    now = {f"notebooks/{path.name}": path.read_text(encoding="utf-8") for path in paths}
    for line in lines(now, update.handed_out(now), remembered(now)):
        print(line)
