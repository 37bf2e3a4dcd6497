"""Run the CUDA programs of the course, on the GPU where there is one, else in the emulator of CUDA/emulator.

Everywhere below, `source` is the name of a file in CUDA/ ("vec_add.cu") or CUDA C++ text of the reader's own.
"""
import ctypes
import functools
import importlib.util
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

CUDA = Path(__file__).resolve().parent.parent / "CUDA"
LIMIT_S = 100                                            # no program of the course runs for longer


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rewrite = _load(CUDA / "emulator" / "rewrite.py")
toolchain = _load(CUDA / "toolchain.py")
CudaError, find_nvcc = toolchain.CudaError, toolchain.find_nvcc


@functools.cache
def has_gpu():
    """True if the CUDA driver is here and lists a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _read(source):
    """(file name, text) of a source."""
    if "\n" in source or "{" in source:
        return "cell.cu", source
    path = CUDA / source
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in CUDA.glob("*.cu")))
        raise FileNotFoundError(f"there is no {source} in {CUDA.name}/, which has {there}")
    return path.name, path.read_text()


def build(source, arch="sm_80"):
    """Path of the program that nvcc makes of a source: machine code for `arch`, PTX for newer GPUs."""
    virtual = arch.replace("sm_", "compute_")
    both = ["-gencode", f"arch={virtual},code={arch}", "-gencode", f"arch={virtual},code={virtual}"]
    return toolchain.with_nvcc(*_read(source), ".gpu", arch, both)[0]


def _execute(source, args, emulate, arch, environment, limit_s=LIMIT_S):
    name, text = _read(source)
    if emulate:
        program, _ = toolchain.with_emulator(name, rewrite.rewrite(text, name))
    else:
        program = build(source, arch)
    try:
        done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, timeout=limit_s,
                              env={**os.environ, **environment})
    except subprocess.TimeoutExpired:
        raise CudaError(f"{name} ran for more than {limit_s} s and was stopped") from None
    return done.returncode, done.stdout, done.stderr


def run(source, *args, emulate=None, arch="sm_80", check=True, limit_s=LIMIT_S):
    """Compile, run with these command-line arguments, and return what was printed.

    On the GPU if there is one, else emulated; `emulate` True or False decides otherwise. `arch` names the GPU to compile
    for; newer ones run it too. A program that fails, or runs for longer than limit_s seconds, raises CudaError with its
    words; check=False returns them instead."""
    status, out, err = _execute(source, args, not has_gpu() if emulate is None else emulate, arch, {}, limit_s)
    if status and check:
        raise CudaError(f"{_read(source)[0]} ended with status {status}:\n{out}{err}".rstrip())
    return out + err


def traffic(source, *args):
    """What each kernel moves, counted by the emulator while the program runs: {kernel: counts}, all launches together.

    counts has launches, threads, barriers; for each kind of load, store, atomic the global `{kind}s` (by single threads),
    `{kind}_bytes`, `{kind}_requests` (by warps) and `{kind}_sectors` (of 32 bytes); the same with `shared_` in front and
    wavefronts (passes over the 32 banks) instead of sectors; and arrays, {array: the same numbers for it alone}."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traffic.json"
        status, out, err = _execute(source, args, True, None, {"CUDA_EMULATOR_TRAFFIC": str(path)})
        if status:
            raise CudaError(f"{_read(source)[0]} ended with status {status}:\n{out}{err}".rstrip())
        kernels = json.loads(path.read_text())
    for counts in kernels.values():
        arrays = counts["arrays"] = {}
        counts.update(_zeros("global") | _zeros("shared"))
        for flow in counts.pop("flows"):
            array = arrays.setdefault(flow["array"], _zeros(flow["space"]))
            for key, unit in _keys(flow["space"], flow["kind"]).items():
                array[key] += flow[unit]
                counts[key] += flow[unit]
    return kernels


def _keys(space, kind):
    """{name of a number in traffic(): its name in the emulator's file}."""
    stem, unit = ("shared_" + kind, "wavefronts") if space == "shared" else (kind, "sectors")
    return {f"{stem}s": "accesses", f"{stem}_bytes": "bytes", f"{stem}_requests": "requests", f"{stem}_{unit}": unit}


def _zeros(space):
    return {key: 0 for kind in ("load", "store", "atomic") for key in _keys(space, kind)}


def ptx(source, arch="sm_80"):
    """The PTX text that nvcc makes of the source for that GPU."""
    return toolchain.with_nvcc(*_read(source), ".ptx", arch, [f"-arch={arch}", "-ptx"])[0].read_text()


def _cubin(source, arch):
    return toolchain.with_nvcc(*_read(source), ".cubin", arch, [f"-arch={arch}", "-cubin", "-Xptxas", "-v"])


def sass(source, arch="sm_80"):
    """The machine code for that GPU, as text."""
    listing = subprocess.run([toolchain.find_tool("cuobjdump"), "-sass", _cubin(source, arch)[0]],
                             capture_output=True, text=True)
    if listing.returncode:
        raise CudaError(f"cuobjdump cannot read the machine code: {listing.stderr.strip()}")
    return listing.stdout


def resources(source, arch="sm_80"):
    """{kernel: what it takes of a multiprocessor}, as ptxas reports it: registers (of a thread), shared (static bytes of
    a block), spill (bytes of a thread that found no register)."""
    entry = re.compile(r"entry function '(?P<name>\w+)'.*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
                       r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)", re.S)
    return {_plain(m["name"]): {"registers": int(m["registers"]),
                                "shared": int((re.search(r"(\d+) bytes smem", m["rest"]) or [0, 0])[1]),
                                "spill": int(m["stores"]) + int(m["loads"])}
            for m in entry.finditer(_cubin(source, arch)[1])}


def _plain(mangled):
    """_Z7vec_addPKfS0_Pfm is vec_add: the length of a name stands before it."""
    m = re.match(r"_Z(\d+)(\w+)", mangled)
    return m[2][:int(m[1])] if m else mangled


class Source(str):
    """C++ text, which Jupyter shows with its syntax in colours."""

    def _repr_markdown_(self):
        return f"```cpp\n{self.strip(chr(10))}\n```"

    def __repr__(self):
        return str(self)


def show(source, kernel=None):
    """The text of a source, or of one of its kernels with the comment above it. ValueError if it has none of that name."""
    name, text = _read(source)
    if kernel is None:
        return Source(text)
    spans = rewrite.spans(text)
    if kernel not in spans:
        raise ValueError(f"{name} has no kernel {kernel!r}; it has {', '.join(spans)}")
    return Source(text[slice(*spans[kernel])])
