#!/usr/bin/env python3
"""Turn a CUDA program into C++ that the emulator can run.

    rewrite.py program.cu program.cpp

Only what a C++ compiler cannot read is changed, on the line where it stands, so that line numbers stay true:
  kernel<<<grid, block>>>(a, n)      emu::launch("kernel", {"a", "n"}, line, call, grid, block)(a, n)
  const float* a   (in a kernel)     emu::ptr<const float> a
  __shared__ float t[16][16];        emu::Shared<float [16][16]> t("t", line);
"""
import re
import sys
from pathlib import Path

SCALAR = (r"(?:float[24]?|double|bool|char|int|unsigned(?:\s+(?:int|char|long\s+long))?|long\s+long|size_t|"
          r"u?int(?:8|16|32|64)_t)")
SHARED = re.compile(r"(?P<extern>extern\s+)?__shared__\s+(?:(?:alignas|__align__)\s*\(\s*\d+\s*\)\s*)?"
                    r"(?P<type>[A-Za-z_][\w:]*(?:\s+[A-Za-z_]\w*)*?)\s+(?P<name>\w+)\s*(?P<dims>(?:\[[^\]]*\]\s*)*);")
LAUNCH = re.compile(r"\b(?P<name>[A-Za-z_]\w*)\s*(?P<targs><[^<>;]*>)?\s*<<<(?P<config>.*?)>>>\s*(?=\()", re.S)
FUNCTION = re.compile(r"\b__(?P<kind>global|device)__\b[^;{(]*?(?:\b__launch_bounds__\s*\([^)]*\)[^;{(]*?)?"
                      r"\b(?!__launch_bounds__)(?P<name>\w+)\s*\(")
UNKNOWN = re.compile(r"\b(__constant__|__managed__|cudaMallocManaged|cudaMemcpyAsync|cooperative_groups|nvcuda|__half|"
                     r"__nv_bfloat16|__shfl\w*|__syncwarp|__ballot_sync|__syncthreads_\w+|asm)\b")


def hide(source):
    """The source with comments and strings blanked out, every character where it was."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\''
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), source, flags=re.S)


def close(code, start):
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(code)):
        depth += code[i] in "([{"
        depth -= code[i] in ")]}"
        if depth == 0:
            return i + 1
    raise ValueError(f"the bracket at line {code.count(chr(10), 0, start) + 1} is never closed")


def functions(code):
    """(kind, name, start of its parameters, end of its body) of every __global__ and __device__ function."""
    for m in FUNCTION.finditer(code):
        params = m.end() - 1
        end = close(code, params)
        brace = re.compile(r"\s*(?:const\s*)?\{").match(code, end)
        yield m["kind"], m["name"], params, end, close(code, brace.end() - 1) if brace else end


def spans(source):
    """{name: (start, end)} of every kernel and device function, each with the comment lines right above it."""
    found = {}
    for _, name, params, _, end in functions(hide(source)):
        lines = source[:params].split("\n")
        first = len(lines) - 1
        while first and re.match(r"//(?! --)|template\b", lines[first - 1]):
            first -= 1
        found[name] = (len("\n".join(lines[:first])) + (first > 0), end)
    return found


def parameter_names(params):
    """The names in "(const float* a, int n)"."""
    return [p.split("=")[0].split()[-1].lstrip("*") for p in params[1:-1].split(",") if p.strip()]


def device_edits(code, start, end):
    """The changes inside one kernel or device function, as (start, end, new text)."""
    template_types = re.findall(r"\b(?:typename|class)\s+(\w+)", code)
    pointee = rf"(?P<before>\bconst\s+)?\b(?P<type>{'|'.join([SCALAR, *template_types])})(?P<after>\s+const)?\s*\*"
    for m in re.compile(rf"{pointee}\s*(?:const\s+)?(?:__restrict__\s+)?(?=[A-Za-z_])").finditer(code, start, end):
        yield m.start(), m.end(), f"emu::ptr<{'const ' if m['before'] or m['after'] else ''}{m['type']}> "
    for m in re.compile(rf"\breinterpret_cast<\s*{pointee}\s*>").finditer(code, start, end):
        yield m.start(), m.end(), f"emu::cast<{'const ' if m['before'] or m['after'] else ''}{m['type']}>"
    for m in SHARED.finditer(code, start, end):
        name, kind, dims = m["name"], m["type"], m["dims"]
        if m["extern"]:
            new = f'emu::ptr<{kind}> {name} = emu::dynamic<{kind}>("{name}", __LINE__);'
        elif dims:
            new = f'emu::Shared<{kind} {dims}> {name}("{name}", __LINE__);'
        else:
            new = f'emu::SharedScalar<{kind}> {name}("{name}", __LINE__);'
        yield m.start(), m.end(), new
    plain = SHARED.sub(lambda m: " " * len(m.group()), code[start:end])
    if "__shared__" in plain:
        line = code.count("\n", 0, start + plain.index("__shared__")) + 1
        raise ValueError(f"line {line}: the emulator wants one name in each __shared__ declaration, without a value")


def rewrite(source, name):
    """The C++ program for CUDA source text; `name` is what faults call the file. ValueError on what it does not know."""
    code = hide(source)
    if m := UNKNOWN.search(code):
        line = code.count("\n", 0, m.start()) + 1
        raise ValueError(f"{name}:{line}: the emulator does not know {m.group()}; build with nvcc and run on a GPU")
    names, edits = {}, []
    for kind, function, params, end, stop in functions(code):
        if kind == "global":
            names[function] = parameter_names(code[params:end])
        edits += device_edits(code, params, stop)
    for m in LAUNCH.finditer(code):
        if m["name"] not in names:
            raise ValueError(f"{name}: {m['name']} is launched, but no __global__ function of that name is in the file")
        listed = ", ".join(f'"{p}"' for p in names[m["name"]])
        call = f"[](auto... x) {{ {m['name']}{m['targs'] or ''}(x...); }}"
        edits.append((m.start(), m.end(), f'emu::launch("{m["name"]}", {{{listed}}}, __LINE__, {call}, {m["config"]})'))
    for start, end, new in sorted(edits, reverse=True):
        new += "\n" * (source.count("\n", start, end) - new.count("\n"))
        source = source[:start] + new + source[end:]
    return (f'#include "cuda_runtime.h"\n[[maybe_unused]] static const bool emu_named = (emu::source_file = "{name}", true);\n'
            f'#line 1 "{name}"\n{source}')


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: rewrite.py program.cu program.cpp")
    path = Path(sys.argv[1])
    try:
        Path(sys.argv[2]).write_text(rewrite(path.read_text(), path.name))
    except ValueError as problem:
        raise SystemExit(str(problem)) from None
