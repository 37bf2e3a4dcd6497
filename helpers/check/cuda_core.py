"""What the checks of CUDA kernels are made of: a main program around a kernel, faults by name, results, counts.

The kernel first runs in the emulator, which names what is against the rules: a thread outside its arrays, a race, a
barrier that was not reached. A kernel without such a fault is then asked for its results (on the GPU if there is one)
and for what it moves, which the emulator counts. So the report is the same on every machine.
"""
import functools
import inspect
import re
import tempfile
from pathlib import Path

import numpy as np

from helpers import cuda
from helpers.check.core import difference, properties, unwritten
from helpers.check.memory import POISON

STUB = "// your lines here"                              # a kernel that still has this comment was not attempted

# Reads the arrays from a file, puts them where the kernel can reach them, launches, and writes all of them back.
MAIN = """
#line 1 "main.cu"
#include "harness.cuh"
int main(int argc, char** argv) {                        // file, number of arrays, their lengths, then the numbers m
    std::vector<float*> p(size_t(atoi(argv[2])));
    std::vector<int> m;
    for (int i = 3; i < argc; i++) m.push_back(atoi(argv[i]));
    std::vector<size_t> length(m.begin(), m.begin() + long(p.size()));
    m.erase(m.begin(), m.begin() + long(p.size()));
    FILE* file = fopen(argv[1], "rb");
    for (size_t i = 0; i < p.size(); i++) {
        std::vector<float> host(length[i]);
        if (fread(host.data(), sizeof(float), length[i], file) != length[i]) return 2;
        p[i] = to_device(host);
    }
    fclose(file);
    LAUNCH
    CUDA_CHECK(cudaGetLastError());
    CUDA_CHECK(cudaDeviceSynchronize());
    file = fopen(argv[1], "wb");
    for (size_t i = 0; i < p.size(); i++) fwrite(to_host(p[i], length[i]).data(), sizeof(float), length[i], file);
    fclose(file);
}
"""

# What the emulator's sentence has in it, for each kind of fault
FAULTS = {"no thread is outside its arrays": r": out of bounds$", "no two threads race": r": a race$"}
BARRIERS = {"every thread reaches every barrier": r"^the __syncthreads\(\) of block",
            "shared memory is written before it is read": r"which no thread of the block has written$"}
PATIENCE_S = 10                                          # the checks run a kernel for a second at most
ELSE = "it runs to its end"                              # whatever else stopped it


def cuda_properties(title, source, launch, arrays, values, barriers=False, counts=(), counted=None, tell=None):
    """Print the report on one kernel.

    launch: C++ that starts it on pointers p[0], p[1], … and whole numbers m[0], m[1], …
    arrays(*m): the inputs and, last, the expected output, NumPy arrays of any shape
    values: {property: tuples m on which the output is compared}, which are also run to find faults
    barriers: report on the faults of shared memory as well
    counts: (property, function of what the kernel moved) pairs, looked at on the size `counted`; "" is all well
    tell: function of what the kernel moved on that size, a sentence to end the report with when every property holds
    """
    if STUB in source:
        print(f"{title}: the line `{STUB}` is still in it: not attempted yet")
        return
    run = functools.partial(_run, source + MAIN.replace("LAUNCH", launch), arrays)
    emulated, faults = _faults(run, arrays, dict.fromkeys(m for sizes in values.values() for m in sizes), barriers)
    if faults["it compiles"]:
        properties(title, [("it compiles", lambda _: faults["it compiles"])], source)
        return
    over = functools.partial(_over, arrays)

    def wrong(name, m):
        return ("" if "written" in name else unwritten(result(m)[-1])) or difference(result(m)[-1], arrays(*m)[-1])

    cases = [(name, lambda _, found=found: found) for name, found in faults.items()]
    clean = not any(faults.values())
    if clean:
        result = functools.cache(lambda m: run(m, cuda.run, emulate=False)) if cuda.has_gpu() else emulated.get
        cases += [(name, over(sizes, functools.partial(wrong, name))) for name, sizes in values.items()]
        cases += [("every output element is written", over(emulated, lambda m: unwritten(result(m)[-1]))),
                  ("the inputs are left as they were", over(emulated, lambda m: _changed(arrays(*m), result(m))))]
        traffic = functools.cache(lambda: run(counted, cuda.traffic, returns=True))
        cases += [(name, lambda _, count=count: count(*traffic().values())) for name, count in counts]
    if properties(title, cases, source) and tell:
        print(f"  {_size(arrays, counted)}: {tell(*traffic().values())}.")
    if not clean:
        print("  What it computes is looked at when nothing above fails.")


def _run(program, arrays, m, how, returns=False, **options):
    """The arrays after how(program, …), whose output was all poison before; or what it returned."""
    before = [np.ascontiguousarray(a, np.float32) for a in arrays(*m)]
    before[-1] = np.full(before[-1].shape, POISON["float32"], np.int32).view(np.float32)
    lengths = [a.size for a in before]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays"
        np.concatenate([a.ravel() for a in before]).tofile(path)
        returned = how(program, path, len(before), *lengths, *m, **options)
        after = np.split(np.fromfile(path, np.float32), np.cumsum(lengths)[:-1])
    return returned if returns else [a.reshape(b.shape) for a, b in zip(after, before)]


def _faults(run, arrays, sizes, barriers):
    """The arrays after an emulated run of each size, and {property: what is wrong}."""
    kinds = FAULTS | BARRIERS if barriers else FAULTS
    found, after = dict.fromkeys(["it compiles", *kinds, ELSE], ""), {}
    for m in sizes:
        try:
            after[m] = run(m, cuda.run, emulate=True, limit_s=PATIENCE_S)
        except (cuda.CudaError, ValueError) as error:
            text = str(error)
            fault = re.search(r"^emulator: cell\.cu(?::(\d+))?: (.*)$", text, re.M)
            if not fault and "ended with status" not in text and "was stopped" not in text:
                return after, {"it compiles": _compiler_error(text)}
            sentence = " ".join(text.split()) if not fault else f"line {fault[1]}: {fault[2]}" if fault[1] else fault[2]
            if taken := re.search(r"writes (\S+) in global memory, which .* wrote .*a race$", sentence):
                sentence = f"several threads take {taken[1]}: {sentence}"
            name = next((name for name, pattern in kinds.items() if fault and re.search(pattern, fault[2])), ELSE)
            found[name] = found[name] or f"{_size(arrays, m)}: {sentence}"
            if "was stopped" in text:                    # an endless loop would be one on the next size, too
                found[ELSE] += ": does the loop advance?"
                break
    return after, found


def _compiler_error(text):
    """The first error of a compiler's output, in the kernel if there is one there."""
    if inside := re.search(r"^cell\.cu:(\d+):(?:.*?error:)? (.*)$", text, re.M):
        return f"line {inside[1]}: {inside[2]}"
    elsewhere = re.search(r"error: (.*)$", text, re.M)
    return f"called from the main program: {elsewhere[1]}" if elsewhere else text.removeprefix("cell.cu: ")


def _size(arrays, m):
    return ", ".join(f"{name} = {number}" for name, number in zip(inspect.signature(arrays).parameters, m))


def _over(arrays, sizes, problem):
    """The case of a property: the first size on which problem(m) is not empty."""
    return lambda _: next((f"{_size(arrays, m)}: {wrong}" for m in sizes if (wrong := problem(m))), "")


def _changed(before, after):
    wrong = [i for i, (x, y) in enumerate(zip(before[:-1], after)) if not np.array_equal(np.float32(x), y)]
    return f"input {wrong[0] + 1} was changed" if wrong else ""
