#!/usr/bin/env python3
"""Finds the compilers of the CUDA programs and keeps what they make in build/, named after a hash of all that went in.

    toolchain.py nvcc         prints nvcc and the flags that it always needs (the Makefile asks)
    toolchain.py cuobjdump    prints the path of that tool
"""
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CUDA = Path(__file__).resolve().parent
BUILD = CUDA / "build"
TOOLKIT = "/usr/local/cuda/bin/nvcc"                     # where NVIDIA's installer puts it


class CudaError(RuntimeError):
    """A program that could not be compiled or did not succeed; the text says which and why."""


def find_nvcc():
    """Path of nvcc: the machine's, else the one from pip (cuda-toolkit[nvcc,cudart]). CudaError if there is none."""
    pip = Path(sysconfig.get_path("purelib")) / "nvidia"
    for path in [shutil.which("nvcc"), TOOLKIT, *sorted(pip.glob("cu*/bin/nvcc"))]:
        if path and os.access(path, os.X_OK):
            return str(path)
    raise CudaError("no nvcc on PATH or in the Python packages: pip install 'cuda-toolkit[nvcc,cudart]==13.0.3'")


def nvcc_command():
    """nvcc and the flags that it always needs. The one from pip has its libraries in lib, but looks for them in lib64."""
    nvcc = find_nvcc()
    lib = Path(nvcc).resolve().parent.parent / "lib"
    return [nvcc] + ([f"-L{lib}"] if (lib / "libcudart_static.a").exists() else [])


def find_tool(name):
    """Path of cuobjdump or nvdisasm: on PATH, beside nvcc, or in Triton's package. CudaError if it is nowhere."""
    triton = importlib.util.find_spec("triton")
    beside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name if triton else None
    for path in [shutil.which(name), Path(find_nvcc()).resolve().parent / name, beside]:
        if path and os.access(path, os.X_OK):
            return str(path)
    raise CudaError(f"no {name} on PATH, beside nvcc or in Triton's package: pip install triton")


@functools.cache
def arches(nvcc):
    """The GPUs that this nvcc makes machine code for: ["sm_75", "sm_80", …]."""
    return subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()


def build(name, text, suffix, command):
    """What command(input path, output path), a list to execute, makes of a program's text: (path, what was printed).

    Made only once. Two processes that make the same thing at once both finish, and the last to rename wins."""
    parts = [text, *command(name, "out")]
    parts += [p.read_text() for p in sorted([*CUDA.glob("*.cuh"), *CUDA.glob("emulator/*.h")])]
    BUILD.mkdir(exist_ok=True)
    result = BUILD / f"{Path(name).stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}{suffix}"
    log = Path(f"{result}.log")
    if not (result.exists() and log.exists()):
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            scratch = Path(folder)
            (scratch / name).write_text(text)
            done = subprocess.run(command(str(scratch / name), str(scratch / "made")), capture_output=True, text=True)
            printed = (done.stdout + done.stderr).replace(f"{folder}/", "").replace(f"{CUDA}/", "")
            if done.returncode:
                raise CudaError(f"{Path(name).stem}.cu does not compile:\n{printed[:4000]}".rstrip())
            (scratch / "log").write_text(printed)
            os.replace(scratch / "log", log)
            os.replace(scratch / "made", result)
    return result, log.read_text()


def with_nvcc(name, text, suffix, arch, flags):
    """build() with nvcc for one GPU. ValueError for an arch that this nvcc does not know."""
    known = arches(find_nvcc())
    if arch not in known:
        raise ValueError(f"arch {arch!r} is none of those this nvcc knows: {', '.join(known)}")
    return build(name, text, suffix, lambda i, o: [*nvcc_command(), "-O3", "-std=c++17", f"-I{CUDA}", *flags, i, "-o", o])


def with_emulator(name, text):
    """build() of already rewritten text with a C++ compiler against the emulator."""
    cxx = shutil.which(os.environ.get("CXX", "g++"))
    if not cxx:
        raise CudaError("no g++ here, which the emulator needs: install g++, or set CXX to another C++ compiler")
    flags = ["-O1", "-std=c++17", "-Wno-unknown-pragmas", "-fstack-clash-protection", f"-I{CUDA / 'emulator'}", f"-I{CUDA}"]
    include = '#include "cuda_runtime.h"\n'              # read once for all programs; the compiler finds the .gch beside it
    read, _ = build("emulator.hpp", include, ".hpp.gch", lambda i, o: [cxx, *flags, "-x", "c++-header", i, "-o", o])
    read.with_suffix("").write_text(include)
    flags = ["-include", str(read.with_suffix("")), *flags]
    return build(f"{Path(name).stem}.cpp", text, ".emulated", lambda i, o: [cxx, *flags, i, "-o", o])


if __name__ == "__main__":
    try:
        print(*(nvcc_command() if sys.argv[1:] == ["nvcc"] else [find_tool("cuobjdump")]))
    except CudaError as problem:
        sys.exit(str(problem))
