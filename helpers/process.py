"""Call a function of ours in a process of its own, with another environment: JSON goes in and JSON comes out."""
import importlib
import json
import os
import subprocess
import sys

from helpers import ROOT


class Failed(RuntimeError):
    """A process failed: its last words, and all that it wrote to `stderr`."""

    def __init__(self, message, stderr):
        super().__init__(message)
        self.stderr = stderr


def call(module: str, function: str, *arguments, **environment):
    """What module.function(*arguments) returns in a new Python process with these environment variables.

    Arguments and result are what JSON can hold. Failed, a RuntimeError, with the exception if the function raises one,
    or with the last line of stderr if the process dies.
    """
    done = subprocess.run([sys.executable, "-m", "helpers.process"], input=json.dumps([module, function, arguments]),
                          capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Failed(f"the process of {function} ended with status {done.returncode}: {last}", done.stderr)
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise Failed(answer["error"], done.stderr)
    return answer["result"]


def _answer(module, function, arguments) -> dict:
    try:
        return dict(result=getattr(importlib.import_module(module), function)(*arguments))
    except Exception as problem:
        return dict(error=f"{type(problem).__name__}: {problem}")


if __name__ == "__main__":
    print(json.dumps(_answer(*json.load(sys.stdin))))
