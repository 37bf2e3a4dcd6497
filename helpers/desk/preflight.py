"""Can this machine hold the course, and what will be downloaded? Run by `make setup` before anything else, with whatever
Python is there.

It says what is missing in one sentence and exits with 1. Written so that old Pythons can read it.
"""
import os
import platform
import shutil
import sys
import time

PAUSE_S = 10                                             # to stop a download that nobody wanted


def problem():
    """One sentence on what is missing, or None."""
    if platform.system() == "Darwin":
        return "There is no Triton for macOS: run the course on a Linux machine, a virtual or a remote one will do."
    if platform.system() != "Linux":
        return "There is no Triton for this system (%s): on Windows, run the course inside WSL2." % platform.system()
    if platform.machine() not in ("x86_64", "aarch64"):
        return "There is no Triton for %s processors: use an x86-64 or arm64 machine." % platform.machine()
    if not (3, 10) <= sys.version_info[:2] <= (3, 14):
        return ("The course needs Python 3.10 to 3.14 and this one is %s: install one of those, then name it, "
                "for example `make lab PYTHON=python3.12`." % platform.python_version())
    try:
        import ensurepip  # noqa: F401  (venv needs it; Debian and Ubuntu ship it in a package of its own)
        import venv  # noqa: F401
    except ImportError:
        return ("This Python cannot make virtual environments: install the package python3-venv "
                "(Debian, Ubuntu: apt install python3-venv), or name another Python, `make lab PYTHON=...`.")
    return None


def download(environment):
    """What will be downloaded, and how to have less: sentences, and whether somebody should think before it begins."""
    into = "Everything goes into .venv; `make clean` removes it."
    if "cpu" in environment.get("PIP_EXTRA_INDEX_URL", ""):
        return "Downloading PyTorch's build for CPUs and the rest: 2.5 GB on disk in the end. " + into, False
    cuda = "Downloading PyTorch with its CUDA libraries: several GB. " + into
    if shutil.which("nvidia-smi") or os.path.exists("/proc/driver/nvidia/version"):
        return cuda, False
    return (cuda + "\nThis machine seems to have no NVIDIA GPU, so the build for CPUs will do: 2.5 GB on disk in the end. "
            "For that, stop now (Ctrl+C) and add CPU=yes: `make lab CPU=yes`."), True


if __name__ == "__main__":
    if problem():
        sys.exit(problem())
    sentences, doubtful = download(os.environ)
    print(sentences)
    sys.stdout.flush()
    if doubtful and sys.stdin.isatty():
        time.sleep(PAUSE_S)
