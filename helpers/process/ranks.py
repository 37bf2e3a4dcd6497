"""Several processes that compute together over torch.distributed, as `torchrun` starts them, for a notebook or a test.

    with Ranks(4, "helpers.lessons.many_gpus") as ranks:
        ranks(fn, 1, 2)                                  # [what fn(1, 2) returns on rank 0, on rank 1, ...]

A function of a notebook is sent as source, and sees the names of that module; any other is imported. Arguments and results
are what JSON can hold. A rank that fails ends with a non-zero status, and then all do.
"""
import concurrent.futures
import datetime
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from helpers import ROOT
from helpers.process import Failed

GRACE = 20                                               # seconds in which the others may say what they noticed


class Ranks:
    """So many processes of one group: of "gloo" and the interpreter, or of "nccl", each with a GPU of its own.

    A rank that waits longer than `timeout` seconds for another gives up.
    """

    def __init__(self, size: int, module: str, backend: str = "gloo", timeout: float = 60):
        self.folder = tempfile.TemporaryDirectory()
        self.words = [Path(self.folder.name) / f"rank_{rank}" for rank in range(size)]
        shared = dict(WORLD_SIZE=str(size), OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        if backend == "gloo":
            shared |= dict(TRITON_INTERPRET="1")
        command = [sys.executable, "-m", "helpers.process.ranks", module, backend, f"{self.folder.name}/store", str(timeout)]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words.open("w"), text=True,
                             cwd=ROOT, env=os.environ | shared | dict(RANK=str(rank), LOCAL_RANK=str(rank)))
            for rank, words in enumerate(self.words)]

    def __call__(self, fn, *arguments) -> list:
        """What fn(*arguments) returns on each rank. Failed, a RuntimeError, with the last words of those that failed."""
        source = textwrap.dedent(inspect.getsource(fn)) if fn.__module__ == "__main__" else None
        request = json.dumps([fn.__module__, source, fn.__name__, arguments])
        with concurrent.futures.ThreadPoolExecutor(len(self.processes)) as pool:
            asked = [pool.submit(_ask, process, request) for process in self.processes]
            for answer in concurrent.futures.as_completed(asked):
                if not answer.result():
                    concurrent.futures.wait(asked, GRACE)
                    self._end(asked)
        return [json.loads(answer.result()) for answer in asked]

    def _end(self, asked):
        failed = [rank for rank, answer in enumerate(asked) if answer.done() and not answer.result()]
        statuses = [self.processes[rank].wait() for rank in failed]
        self.close()
        said = [(words.read_text().strip() or "no message").splitlines()[-1].removeprefix(f"[rank{rank}]: ")
                for rank, words in enumerate(self.words)]
        raise Failed("; ".join(f"rank {rank} ended with status {status}: {said[rank]}"
                               for rank, status in zip(failed, statuses)), "\n".join(said))

    def close(self):
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.communicate()

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self.close()


def _ask(process, request) -> str:
    """The line that a process answers, "" if it ends instead."""
    try:
        print(request, file=process.stdin, flush=True)
    except BrokenPipeError:
        pass
    return process.stdout.readline()


def _serve(module, backend, store, timeout):
    answers, sys.stdout = sys.stdout, sys.stderr         # what fn prints is no answer
    names = vars(importlib.import_module(module))
    import torch
    import torch.distributed as dist
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.device("cuda", rank) if backend == "nccl" else None
    if gpu:
        torch.cuda.set_device(gpu)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=size, device_id=gpu,
                            timeout=datetime.timedelta(seconds=float(timeout)))
    for line in sys.stdin:
        home, source, name, arguments = json.loads(line)
        own = dict(names) if source else vars(importlib.import_module(home))
        if source:
            exec(source, own)
        print(json.dumps(own[name](*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
