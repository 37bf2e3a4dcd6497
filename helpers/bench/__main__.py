"""`python -m helpers.bench SUITE ...`: measure and write figures/<device>/<suite>.json.

Each record says where, when and from which commit it was measured, what the card does at most, and has a row per kernel
and size with median and quartiles in ms. A run of everything is one process, and ends after BUDGET seconds at most.
Started again at the same commit, it goes on where it was stopped, and leaves alone what is complete; suites that are
named are measured anew, unless what is left over from them is of an interrupted run. A suite that needs more GPUs than
there are is left out, unless it is named.
"""
import sys

from helpers import device
from helpers.bench import SUITES, clock, made_of, run
from helpers.records import save

import torch

BUDGET = 570                                             # seconds of measuring: ten minutes with all the rest


def main(names) -> int:
    """Run the named suites, or all that are not complete, and write their JSON. Returns how many failed."""
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        sys.exit(f"there is no suite {unknown[0]!r}; the suites are {', '.join(SUITES)}")
    if device.INTERPRETED:
        sys.exit("nothing to measure: this machine has no NVIDIA GPU, and times from Triton's interpreter mean nothing")
    where = clock.provenance(f"python -m helpers.bench {' '.join(names)}".strip())
    able = [name for name, suite in SUITES.items() if suite.gpus <= max(1, torch.cuda.device_count())]
    todo = names or [name for name in able if not run.is_complete(name, where)]
    if len(todo) < len(able) and not names:
        done = (name for name in able if name not in todo)
        print(f"complete at {where['commit']}: {', '.join(done)} (name one to measure it anew)", flush=True)
    progress, failed = run.Progress({name: SUITES[name].seconds for name in todo}, BUDGET), 0
    for name in todo:
        progress.begin(name)
        torch.cuda.empty_cache()                         # CUDA programs and first calls run in processes of their own
        try:
            rows = run.run_suite(name, where, progress.row)
        except TimeoutError as stop:
            sys.exit(str(stop))
        except Exception as problem:                     # the other suites can still be measured
            failed += 1
            print(f"{name} failed: {type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
            continue
        save(name, made_of(name, where, rows))
        run.partial(name, where).unlink()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
