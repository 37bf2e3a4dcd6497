"""Processes of their own, with another environment and a time limit: a command, or a function of ours, JSON in and out."""
import json
import os
import signal
import subprocess
import sys

from helpers import ROOT


class Failed(RuntimeError):
    """A process failed: its last words, and all that it wrote to `stderr`."""

    def __init__(self, message, stderr):
        super().__init__(message)
        self.stderr = stderr


LIMIT_S = 600                                            # no process of ours takes as long


def output(*command, limit_s=LIMIT_S, input=None, **environment):
    """Run a command with these environment variables: its status, stdout and stderr.

    After limit_s seconds it is ended, with all that it started; the status is None then.
    """
    child = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.PIPE, cwd=ROOT, env=os.environ | environment, start_new_session=True)
    try:
        out, err = child.communicate(input, limit_s)
        return child.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return None, *child.communicate()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise


def call(module: str, function: str, *arguments, limit_s=LIMIT_S, **environment):
    """What module.function(*arguments) returns in a new Python process with these environment variables.

    Arguments and result are what JSON can hold. Failed, a RuntimeError, with the exception if the function raises one,
    or with the last line of stderr if the process dies, or does not end within limit_s seconds.
    """
    status, out, err = output(sys.executable, "-m", "helpers.process", input=json.dumps([module, function, arguments]),
                              limit_s=limit_s, **environment)
    if status is None:
        raise Failed(f"the process of {function} did not end within {limit_s} s", err)
    if status:
        last = (err.strip() or "no message").splitlines()[-1]
        raise Failed(f"the process of {function} ended with status {status}: {last}", err)
    answer = json.loads(out.splitlines()[-1])
    if "error" in answer:
        raise Failed(answer["error"], err)
    return answer["result"]
