"""What sanitizers say of small launches, some with planted faults: `python -m helpers.bench.sanitizers PROGRAM` is one.

compute-sanitizer's tools are NVIDIA's, consan is Triton's. PyTorch's pool of memory is off, unless a program's name says so.
"""
import os
import re
import sys
import tempfile

from helpers import cuda, lessons, process
from helpers.bench import kernels, ncu, planted

import torch
import triton

LIMIT_S = 25                                             # of one program
EARLY = "handed on before it is read"                    # with which a ring ends, unlike with the others
NO_EMPTY, NO_FULL = "the writer does not wait for empty", "the reader does not wait for full"
BARRIER = "        __syncthreads();                     // everyone has read them before they are overwritten\n"
SANITIZED = [("memcheck", "v2"), ("memcheck", "add, no mask"), ("memcheck", "add, no mask, PyTorch's pool"),
             ("racecheck", "v2"), ("racecheck", "product, no barrier"), ("racecheck", "ring"), ("racecheck", EARLY),
             ("synccheck", "v2"), ("synccheck", "barrier in a branch"), ("synccheck", "ring"),
             ("consan", "ring"), ("consan", EARLY), ("consan", NO_EMPTY), ("consan", NO_FULL)]
BRANCH = """__global__ void odd(int* out) {
    if (threadIdx.x % 2) __syncthreads();
    out[threadIdx.x] = threadIdx.x;
}
int main() {
    int *out, got[64], wrong = 0;
    cudaMalloc(&out, sizeof(got));
    odd<<<1, 64>>>(out);
    if (cudaMemcpy(got, out, sizeof(got), cudaMemcpyDeviceToHost)) return 2;
    for (int i = 0; i < 64; i++) wrong += got[i] != i;
    return wrong > 0;
}
"""
SOURCES = {"product, no barrier": lambda: ((cuda.CUDA / "matrix_add_mul.cu").read_text().replace(BARRIER, ""), 64, 64, 64),
           "barrier in a branch": lambda: (BRANCH,)}         # their text, and arguments


def sanitized(tool: str, program: str) -> dict:
    """Run a program under a sanitizer: how many errors it found, its words on the first, and the program's result."""
    command, environment = [sys.executable, "-m", "helpers.bench.sanitizers", program], {}
    if program in SOURCES:
        text, *arguments = SOURCES[program]()
        command = [cuda.build(text, "sm_%d%d" % torch.cuda.get_device_capability()), *arguments]
    if "pool" not in program:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"      # or all tensors lie in a few large allocations
    if tool != "consan":
        command = [ncu.find("compute-sanitizer"), "--tool", tool, *command]
    with tempfile.TemporaryDirectory() as folder:
        if tool == "consan":
            environment |= dict(TRITON_INSTRUMENTATION_MODE="consan", TRITON_CACHE_DIR=folder)
        status, out, err = process.output(*command, limit_s=LIMIT_S, **environment)
    if status is None:
        raise RuntimeError(f"it did not end within {LIMIT_S} s")
    result = re.findall("^result: (.+)", out, re.MULTILINE)
    if program in SOURCES and status in (0, 1):
        result = [("right", "wrong")[status]]
    return dict(result=result[0] if result else "stopped", **(assertion if tool == "consan" else summary)(out + err))


def summary(printed: str) -> dict:
    """errors and words of what compute-sanitizer printed. RuntimeError if it came to no end."""
    total = re.search(r"SUMMARY: (\d+)", printed)
    if not total:
        raise RuntimeError(f"compute-sanitizer said no more than {printed.strip()[-200:]!r}")
    told = [line.strip("= ") for line in printed.splitlines() if line.startswith("=====")]
    words = [line for line in told if re.match(r"Invalid|Error: Race|Barrier error|Divergent", line)][:1]
    words += [re.sub(r" in /\S+/", " in ", line) for line in told if re.match(r"(at|and) ", line)][:1]
    return dict(errors=int(total[1]), words=words)


def assertion(printed: str) -> dict:
    """errors and words of a process with consan, which stops at the first. RuntimeError if it died of something else."""
    broken = re.findall(r"Assertion `(.+?)\.?` failed", printed)[:1]
    if not broken and "result: " not in printed:
        raise RuntimeError(f"the process died: {printed.strip()[-200:]!r}")
    return dict(errors=len(broken), words=broken)


def launched(program: str) -> str:
    """Launch what a name of SANITIZED says, small: is the result right?"""
    if program == "v2":
        q, k, v = torch.randn(3, 1, 2, 512, 64, device="cuda").half()
        got, want = kernels.v2()(q, k, v).float(), kernels.reference.torch_attention(*(x.float() for x in (q, k, v)))
        return "right" if torch.allclose(got, want, atol=2e-3) else "wrong"
    if program.startswith("add"):
        module = lessons.variant("vector_add_triton", ("x_ptr + offsets, mask=mask", "x_ptr + offsets"))
        x, y = torch.randn(2, 1000, device="cuda")
        return "right" if torch.equal(module.add(x.clone(), y.clone()), x + y) else "wrong"
    changes = planted.PLANTED[program][1] if program in planted.PLANTED else ()
    module, o = lessons.variant("warp_specialization", *changes), torch.full((100,), -1, dtype=torch.int32, device="cuda")
    module.numbers_kernel[1,](o, len(o), STAGES=2, num_warps=4)
    return "right" if torch.equal(o, torch.arange(100, device="cuda", dtype=torch.int32)**2) else "wrong"


def _consan_memory():
    """Triton's sanitizer keeps its notes in memory that we give it."""
    from triton.runtime import _allocation
    for enter in (triton.set_allocator, _allocation.set_profile_allocator):
        enter(lambda size, alignment, stream: torch.empty(size, device="cuda", dtype=torch.int8))


if __name__ == "__main__":
    if os.environ.get("TRITON_INSTRUMENTATION_MODE"):
        _consan_memory()
    print("result:", launched(sys.argv[1]), flush=True)
