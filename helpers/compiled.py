"""Compile a lesson's Triton or Gluon kernel for any NVIDIA GPU, without having one, and read what came out."""
import base64
import inspect
import itertools
import linecache
import re
import subprocess
import tempfile
import textwrap
import types
from pathlib import Path

from helpers import process


def compile_kernel(lesson: str, kernel: str, arguments: dict, capability: int = 90,
                   num_warps: int = 4, num_stages: int = 3) -> dict:
    """Compile `kernel` of `lesson` for compute capability `capability` (80: A100, 90: H100 and H200, 100: B200).

    `arguments` maps each parameter to an example of what a launch would pass: "*fp16" for a pointer to float16,
    "tensordesc<fp16[64, 128]>" for a descriptor of tiles of 64 x 128, an int or a float for a number, a list for a
    tuple, None, the value for a tl.constexpr ("fp16" stands for tl.float16, and the name of a function of the lesson for
    that). As at a launch, None and an int of 1 become constants, and multiples of 16 are promised to the compiler.

    Returns a dictionary: registers (per thread), stack (bytes per thread that did not fit in registers), shared (bytes
    per block), and the texts ptx and sass. Raises RuntimeError with the compiler's message if it refuses.
    """
    return compile_kernels([dict(lesson=lesson, kernel=kernel, arguments=arguments, capability=capability,
                                 num_warps=num_warps, num_stages=num_stages)])[0]


def compile_gluon(kernel, arguments: dict, **options) -> dict:
    """compile_kernel for a Gluon kernel that is at hand, from a notebook's cell for instance."""
    return compile_kernels([dict(source=source_of(kernel), kernel=kernel.fn.__name__, arguments=arguments, **options)])[0]


def compile_kernels(requests: list) -> list:
    """compile_kernel for each of `requests`, dictionaries of its arguments, one after the other in one process.

    That saves the imports of all but the first. A request has a `source` in place of a lesson where the kernel is in no
    lesson. Raises RuntimeError as soon as the compiler refuses one.
    """
    try:                                           # elsewhere: kernels decorated for the interpreter cannot be compiled
        made = process.call("helpers.compiled", "compile_all", requests, TRITON_INTERPRET="0")
        return [Made(each) for each in made]
    except process.Failed as failed:
        own = [line for line in failed.stderr.splitlines() if re.search("error:", line, re.IGNORECASE)]
        raise RuntimeError("\n".join([str(failed).removeprefix("RuntimeError: "), *own])[:2000]) from None


class Made(dict):
    """A compiled kernel. Its `sass` is read when somebody asks for it: that takes as long as a small kernel to compile."""

    def __missing__(self, key):
        if key != "sass":
            raise KeyError(key)
        self[key] = _read(base64.b64decode(self["cubin"]), "nvdisasm", "-c")
        return self[key]


def compile_all(requests: list) -> list:
    """The work of `compile_kernels`, in a process where the interpreter is off."""
    made = []
    for request in requests:
        try:
            made.append(_compile(**request))
        except Exception as problem:
            name = f"{request['kernel']} did not compile for sm_{request.get('capability', 90)}"
            raise RuntimeError(f"{name}: {_innermost(problem)}") from problem
    return made


MARKS = {"products": r"wgmma\.mma_async|\bHGMMA", "exponentials": r"ex2\.approx|MUFU\.EX2",
         "wait for all": r"wait_group\.sync\.aligned 0|DEPBAR\.LE gsb0, 0x0",
         "wait for all but one": r"wait_group\.sync\.aligned 1|DEPBAR\.LE gsb0, 0x1", "the engine adds": r"cp\.reduce|UTMAREDG"}


def order(code: str) -> str:
    """What the innermost loop with products and exponentials does, in its order, from PTX or from machine code (sass)."""
    labels, loops, lines = {}, [], code.splitlines()
    for i, line in enumerate(lines):
        if found := re.match(r"(\$L__BB\w+|\.L_x_\d+):", line):
            labels[found[1]] = i
        elif (found := re.search(r"\bbra\b.*?(\$L__BB\w+|\.L_x_\d+)", line, re.IGNORECASE)) and found[1] in labels:
            loops.append(lines[labels[found[1]]:i])
    for loop in sorted(loops, key=len):
        steps = [what for line in loop for what, mark in MARKS.items() if re.search(mark, line)]
        if {"products", "exponentials"} <= set(steps):
            break
    runs = ((what, len(list(same))) for what, same in itertools.groupby(steps))
    return ", ".join(f"{number} {what}" if what in ("products", "exponentials") else what for what, number in runs)


def _innermost(problem) -> str:
    """What the compiler says: the place in the function that was called last, and what is wrong there."""
    said = str(problem)
    while problem.__cause__:
        problem = problem.__cause__
        said = str(problem) if "\n" in str(problem) else f"{said}\n{problem}" if str(problem) not in said else said
    return said


def source_of(kernel) -> str:
    """A Gluon kernel and all that it calls and uses, as the source of a module."""
    parts = {}                                           # in the order in which a module needs them

    def add(kernel):
        parts[id(kernel)] = ""                           # seen
        fn = kernel.fn
        for name in fn.__code__.co_names:
            value = fn.__globals__.get(name)
            if isinstance(getattr(value, "fn", None), types.FunctionType) and id(value) not in parts:
                add(value)
                if value.fn.__name__ != name:
                    parts[name] = f"\n\n{name} = {value.fn.__name__}\n"
            elif isinstance(value, types.ModuleType):
                parts[name] = f"import {value.__name__} as {name}\n"
            elif hasattr(value, "__triton_builtin__"):
                parts[name] = f"from {value.__module__} import {value.__name__} as {name}\n"
            elif hasattr(value, "_fields"):
                parts[name] = f"{name} = collections.namedtuple({name!r}, {list(value._fields)})\n"
            elif type(value).__name__ == "constexpr":
                parts[name] = f"{name} = gl.constexpr({value.value!r})\n"
        parts[id(kernel)] = f"\n\n{textwrap.dedent(inspect.getsource(fn))}"
    add(kernel)
    texts = sorted(parts.values(), key=lambda text: text.startswith("\n"))             # functions last
    return "".join(["import collections\n", "from triton.experimental import gluon\n",
                    "from triton.experimental.gluon import language as gl\n", *texts])


def _module(source):
    module = types.ModuleType("source")
    module.__file__ = "<source>"
    linecache.cache["<source>"] = (len(source), None, source.splitlines(keepends=True), "<source>")
    exec(compile(source, "<source>", "exec"), module.__dict__)
    return module


def _compile(kernel, arguments, lesson=None, source=None, capability=90, num_warps=4, num_stages=3):
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    if source:                                           # without torch: it takes longer to import than a kernel to compile
        module = _module(source)
    else:
        from helpers import lessons
        module = getattr(lessons, lesson)
    fn = getattr(module, kernel)
    types = dict(fp16=tl.float16, bf16=tl.bfloat16, fp32=tl.float32, fp8e5=tl.float8e5, fp8e4nv=tl.float8e4nv)
    constants, attributes = {}, {}

    def describe(value, path, is_constant=False):
        """The type of one argument, as a launch would see it; notes what the compiler may rely on."""
        if isinstance(value, list):
            return tuple(describe(each, (*path, i)) for i, each in enumerate(value))
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if is_constant or value is None or (is_int and value == 1):
            constants[path] = types.get(value) or getattr(module, value, value) if isinstance(value, str) else value
            return "constexpr"
        kind = value if isinstance(value, str) else "i32" if is_int else "fp32"
        if fn.is_gluon() and kind.startswith("tensordesc"):
            kind = f"{kind[:-1]},{_layout(kind, types)!r}>"
        if kind.startswith("*") or (is_int and value % 16 == 0):
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    signature = {p.name: describe(arguments[p.name], (i,), p.is_constexpr) for i, p in enumerate(fn.params)}
    kind = GluonASTSource if fn.is_gluon() else ASTSource
    compiled = triton.compile(kind(fn, signature, constants, attributes), target=GPUTarget("cuda", capability, 32),
                              options=dict(num_warps=num_warps, num_stages=num_stages))
    usage = dict(re.findall(r"(REG|STACK):(\d+)", _read(compiled.asm["cubin"], "cuobjdump", "-res-usage")))
    return dict(registers=int(usage["REG"]), stack=int(usage["STACK"]), shared=compiled.metadata.shared,
                ptx=compiled.asm["ptx"], cubin=base64.b64encode(compiled.asm["cubin"]).decode())


def _layout(description, types):
    """How Gluon lays the tiles of "tensordesc<fp16[64, 128]>" out in shared memory, unless told otherwise."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    dtype, *shape = re.findall(r"\w+", description)[1:]
    return NVMMASharedLayout.get_default_for([int(n) for n in shape], types[dtype])


def _read(cubin: bytes, tool, option):
    """What one of the tools inside the Triton wheel says of a cubin."""
    import triton
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tools / tool, option, file.name], check=True, capture_output=True, text=True).stdout
