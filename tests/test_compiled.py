"""What the lessons' kernels compile to, without a GPU: no spills, memory that fits, the instructions that matter."""
import inspect
import re
from dataclasses import dataclass, field

import pytest
import torch

from helpers import compiled, lessons
from helpers.lessons import (backward_triton, causal_and_multihead, flash_attention_triton, fp8, matmul_triton,
                             prefetch, warp_specialization)

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
SMALL, LARGE = 99 * 1024, 227 * 1024               # bytes of shared memory that a program gets: sm_86; sm_90 and sm_100
# matrix instructions by compute capability, for 16 bits and for 8
MATRIX = {80: ("HMMA", "QMMA"), 86: ("HMMA", "QMMA"), 89: ("HMMA", "QMMA"), 90: ("HGMMA", "QGMMA"),
          100: ("UTCHMMA", "UTCQMMA"), 120: ("HMMA", "QMMA")}
ANY_MATRIX = {name for names in MATRIX.values() for name in names}


@dataclass
class Case:
    """A kernel with what a launch would pass: the parameters that `arguments` leaves out get a usual value."""
    lesson: str
    kernel: str
    capability: int
    dtype: str
    D: int
    arguments: dict = field(default_factory=dict)
    launch: dict = field(default_factory=dict)           # num_warps and num_stages
    uses: tuple = ()                                     # instructions
    stack: int = 0                                       # bytes of spilled registers that are known and borne
    shared: int = LARGE

    @property
    def id(self):
        changed = [f"{name}={value}" for name, value in self.arguments.items()
                   if name in ("BLOCK", "BLOCK_M", "BLOCK_N", "IS_CAUSAL", "DROPOUT", "EVEN", "group", "FP8")]
        return "-".join([self.kernel, f"sm_{self.capability}", self.dtype, f"D={self.D}", *changed])

    @property
    def request(self):
        fn = getattr(getattr(lessons, self.lesson), self.kernel)
        given = {name: self.usual(name) for name in inspect.signature(fn.fn).parameters} | self.arguments
        return dict(lesson=self.lesson, kernel=self.kernel, arguments=given, capability=self.capability, **self.launch)

    def usual(self, name):
        N = self.arguments.get("N_q", 4096)
        if name.endswith("_ptr"):
            return "*fp32" if name in ("lse_ptr", "delta_ptr", "dlse_ptr") else f"*{self.dtype}"
        if name.endswith("_strides"):
            return [16 * N * self.D, N * self.D, self.D, 1]
        if name.startswith("stride_"):
            return self.D if name[-1] in "nr" else 1
        return dict(heads=16, group=1, N=N, N_q=N, N_k=N, M=N, K=N, scale=0.1, dropout=[0.0, 16], D=self.D,
                    DOT=self.dtype, IS_CAUSAL=True, DROPOUT=False, EVEN=False, FP8=False).get(name)


def options(sizes):
    """Tiles, and num_warps and num_stages apart."""
    sizes = dict(sizes)
    return sizes, {name: sizes.pop(name) for name in ("num_warps", "num_stages") if name in sizes}


def matrix(capability, eight_bits=False):
    return MATRIX[capability][eight_bits]


# ---------------------------------------------------------------- the cases, by lesson

def softmax_and_matmul():
    for kernel, BLOCK, capability in (("softmax_kernel", 16384, 80), ("softmax_kernel", 16384, 90),
                                      ("softmax_kernel", 4096, 90), ("long_softmax_kernel", 16384, 90)):
        N = BLOCK if kernel == "softmax_kernel" else 4 * BLOCK
        yield Case("softmax_triton", kernel, capability, "fp32", N, dict(N=N, BLOCK=BLOCK),
                   dict(num_warps=min(max(BLOCK // 512, 1), 16)))
    usual, n = (128, 128, 64, 8, 3), 4096
    strides = dict.fromkeys(("stride_am", "stride_bk", "stride_cm"), n)
    for dtype, capability, sizes in [("fp16", 80, usual), ("fp16", 100, usual), ("bf16", 90, usual),
                                     *(("fp16", 90, choice) for choice in MATMUL_CHOICES)]:
        BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages = sizes
        yield Case("matmul_triton", "matmul_kernel", capability, dtype, n,
                   strides | dict(BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, GROUP=8),
                   dict(num_warps=num_warps, num_stages=num_stages), (matrix(capability), "LDGSTS"),
                   shared=SMALL if sizes == usual else LARGE)
    for capability in (80, 90):
        yield Case("matmul_triton", "matmul_kernel", capability, "fp32", n, strides | matmul_triton.FLOAT32_TILES)


# read from the source, because the interpreter is offered one of them only
MATMUL_CHOICES = [tuple(map(int, choice)) for choice in
                  re.findall(r"tile\((\d+), (\d+), (\d+), (\d), (\d)\)", lessons.source("matmul_triton"))]


def one_head():
    for capability, dtype, D in ((80, "fp16", 64), (80, "fp16", 256), (80, "fp32", 256), (90, "fp16", 64),
                                 (90, "fp16", 128), (90, "fp16", 256), (90, "bf16", 64), (90, "fp32", 64),
                                 (100, "fp16", 128)):
        yield Case("flash_attention_triton", "flash_attention_v1_kernel", capability, dtype, D,
                   flash_attention_triton.tile_sizes(D, TYPES[dtype]), dict(num_warps=4, num_stages=2),
                   (matrix(capability),) if dtype != "fp32" else (), stack=32 if capability == 100 else 0, shared=SMALL)


def many_heads():
    for capability, dtype, D, group in (
            (80, "fp16", 64, 1), (80, "fp16", 128, 1), (80, "fp16", 256, 1), (80, "fp32", 64, 1), (80, "fp32", 256, 1),
            (86, "fp16", 64, 1), (89, "fp16", 128, 1), (90, "fp16", 64, 1), (90, "fp16", 128, 4), (90, "fp16", 256, 1),
            (90, "bf16", 80, 1), (90, "fp32", 64, 1), (90, "fp32", 256, 1), (100, "fp16", 64, 1), (100, "fp16", 128, 4),
            (120, "fp16", 128, 1)):
        sizes, launch = options(causal_and_multihead.tile_sizes(D, TYPES[dtype]))
        yield Case("causal_and_multihead", "flash_attention_v2_kernel", capability, dtype, D,
                   dict(sizes, group=group), launch, (matrix(capability),) if dtype != "fp32" else (), shared=SMALL)


def backward():
    for capability, dtype, D, changes in (
            (80, "fp16", 64, {}), (80, "fp16", 128, {}), (80, "fp16", 256, {}), (80, "fp32", 64, {}),
            (80, "fp32", 256, {}), (90, "fp16", 64, {}), (90, "fp16", 64, dict(DROPOUT=True)), (90, "fp16", 128, {}),
            (90, "fp16", 128, dict(group=4)), (90, "fp16", 256, {}), (90, "bf16", 80, {}), (90, "fp32", 64, {}),
            (90, "fp32", 256, {}), (100, "fp16", 64, {}), (100, "fp16", 128, dict(group=4)), (100, "fp32", 256, {})):
        for name, tiles in zip(("dkdv", "dq"), backward_triton.backward_tiles(D, TYPES[dtype], capability)):
            sizes, launch = options(tiles)
            yield Case("backward_triton", f"flash_attention_{name}_kernel", capability, dtype, D, sizes | changes,
                       launch, (matrix(capability),) if dtype != "fp32" else (),
                       stack=16 if "DROPOUT" in changes else 0,          # the random numbers cost registers
                       shared=SMALL if capability == 80 else LARGE)
    tiles, launch = options(backward_triton.backward_tiles(64, torch.float16, 90)[0])
    apart = {f"{name}_strides": [16 * 4096 * 64, 4096 * 64, 1, 4096] for name in ("q", "k", "v", "do")}
    yield Case("backward_triton", "flash_attention_dkdv_kernel", 90, "fp16", 64, tiles | apart, launch)
    for D in (64, 256):
        yield Case("backward_triton", "flash_attention_delta_kernel", 90, "fp16", D, dict(BLOCK_M=32, BLOCK_D=D))
    yield Case("backward_triton", "dropout_mask_kernel", 90, "fp16", 64, dict(BLOCK=64, keep_ptr="*i1"))


def descriptors(element, rows, BLOCK_N, BLOCK_D, turned=False):
    shapes = dict(q=(rows, BLOCK_D), k=(BLOCK_N, BLOCK_D), v=(BLOCK_D, BLOCK_N) if turned else (BLOCK_N, BLOCK_D))
    return {f"{x}_desc": f"tensordesc<{element}{[1, 1, *shape]}>" for x, shape in shapes.items()}


def by_descriptors():
    """The kernels that the table of tiles leads to, each once. Those with a causal mask need the most registers."""
    found = {}
    lengths = [(4096, True), (16384, True), (4096, False), (4000, False), (10_000, False)]
    for capability, dtype, D, group, calls in ((90, "fp16", 64, 1, lengths), (90, "fp16", 128, 1, lengths),
                                               (90, "fp16", 256, 1, lengths), (90, "bf16", 128, 1, lengths[1:2]),
                                               (90, "fp16", 128, 4, lengths[:2]), (100, "fp16", 64, 1, lengths[:2]),
                                               (100, "fp16", 128, 1, lengths[:2]), (100, "fp16", 256, 1, lengths[:2])):
        for N, is_causal in calls:
            sizes, launch = options(prefetch.tiles_v3(D, N, is_causal))
            changes = dict(sizes, IS_CAUSAL=is_causal, EVEN=not is_causal and N % 128 == 0, group=group)
            made = descriptors(dtype, sizes["BLOCK_M"], sizes["BLOCK_N"], prefetch.width(D))
            key = (capability, dtype, D, *changes.values(), *launch.values())
            found.setdefault(key, Case("prefetch", "flash_attention_v3_kernel", capability, dtype, D,
                                       made | changes | dict(BLOCK_D=prefetch.width(D), N_q=N), launch,
                                       (matrix(capability), "UTMALDG")))
    yield from found.values()
    tiles = descriptors("fp16", 64, 64, 64) | dict(BLOCK_M=64, BLOCK_N=64, BLOCK_D=64)
    yield Case("prefetch", "flash_attention_v3_kernel", 80, "fp16", 64, tiles, dict(num_warps=4, num_stages=2),
               (matrix(80),), shared=163 * 1024)


SCALES = {f"{x}_scales": "*fp32" for x in "qkv"}


def eight_bits():
    for capability, D, is_causal, group in ((90, 64, True, 1), (90, 64, False, 1), (90, 128, True, 1),
                                            (90, 128, False, 1), (90, 128, True, 4), (90, 256, True, 1),
                                            (100, 64, True, 1), (100, 128, True, 1), (100, 256, True, 1)):
        sizes, launch = options(fp8.tiles_fp8(D, capability))
        BLOCK_D = prefetch.width(D, 32)
        made = descriptors("fp8e4nv", sizes["BLOCK_M"], sizes["BLOCK_N"], BLOCK_D, turned=True) | SCALES | sizes
        yield Case("fp8", "flash_attention_fp8_kernel", capability, "fp16", D,
                   made | dict(BLOCK_D=BLOCK_D, IS_CAUSAL=is_causal, EVEN=not is_causal, group=group), launch,
                   (matrix(capability, True), "UTMALDG"))
    for kernel in ("quantize_rows_kernel", "largest_features_kernel", "quantize_features_kernel"):
        pointers = dict(y_ptr="*fp8e4nv", scales_ptr="*fp32", largest_ptr="*fp32", BLOCK=64, BLOCK_D=128)
        yield Case("fp8", kernel, 90, "fp16", 128, pointers)


def specialized():
    for dtype, D, is_causal, group in (("fp16", 64, True, 1), ("fp16", 64, False, 1), ("fp16", 128, True, 1),
                                       ("fp16", 128, False, 1), ("fp16", 128, True, 4), ("fp16", 256, True, 1),
                                       ("fp16", 256, False, 1), ("bf16", 128, True, 1), ("fp8", 128, True, 1),
                                       ("fp8", 128, False, 1)):
        eight = dtype == "fp8"
        tiles = warp_specialization.tiles_ws(D, 16384, 16384, is_causal, eight)
        made = descriptors("fp8e4nv" if eight else dtype, 64, tiles["BLOCK_N"], D, turned=eight)
        made |= SCALES if eight else dict.fromkeys(SCALES)
        yield Case("warp_specialization", "flash_attention_ws_kernel", 90, "fp16" if eight else dtype, D,
                   made | dict(N_q=16384, counter="*i32", items=2048, PARTS=tiles["PARTS"], STAGES=tiles["STAGES"],
                               IS_CAUSAL=is_causal, FP8=eight, group=group), {},
                   (matrix(90, eight), "UTMALDG", "USETMAXREG"))


GROUPS = {"forward": [*softmax_and_matmul(), *one_head(), *many_heads()], "backward": [*backward()],
          "descriptors": [*by_descriptors(), *eight_bits(), *specialized()]}


# ---------------------------------------------------------------- the tests

@pytest.fixture(scope="session")
def made():
    """made(group, case): what its kernel compiled to. One process compiles a group when its first is asked for."""
    known = {}

    def compiled_in_its_group(group, case):
        if group not in known:
            known[group] = compiled.compile_kernels([each.request for each in GROUPS[group]])
        return known[group][GROUPS[group].index(case)]
    return compiled_in_its_group


def first(group, **facts):
    """The first case of a group with these facts."""
    return next(case for case in GROUPS[group] if facts.items() <= (vars(case) | case.arguments).items())


# tests/conftest.py gives the cases of one group to one process
@pytest.mark.parametrize("group,case", [pytest.param(group, case, id=f"{group}-{case.id}")
                                        for group, cases in GROUPS.items() for case in cases])
def test_compiles_without_spills(made, group, case):
    found = made(group, case)
    assert found["stack"] <= case.stack and found["shared"] <= case.shared
    used = set(re.findall(r"\b[A-Z][A-Z0-9]+\b", found["sass"]))
    assert set(case.uses) <= used
    assert case.uses or not used & ANY_MATRIX            # float32 products in full precision


@pytest.mark.parametrize("group", ["forward"])
def test_softmax_compiles_to_one_reading_of_its_row(made, group):
    ptx = made(group, first(group, kernel="softmax_kernel", BLOCK=4096))["ptx"]
    assert ptx.count("ld.global") == ptx.count("ld.global.v4") == 4096 // (4 * 8 * 32)


@pytest.mark.parametrize("group", ["descriptors"])
def test_a_descriptor_compiles_to_a_parameter_of_128_bytes(made, group):
    ptx = made(group, first(group, kernel="flash_attention_ws_kernel"))["ptx"]         # with None for the scales
    assert ptx[ptx.index(".entry"):].split(")")[0].count(".align 64 .b8") == 3


def test_tuning_has_choices():
    assert len(MATMUL_CHOICES) == len(set(MATMUL_CHOICES)) == 5


def test_a_kernel_that_does_not_compile_says_so():
    wrong = dict(x_ptr="*fp32", y_ptr="*fp32", z_ptr="*fp32", n=5, BLOCK=1000)
    with pytest.raises(RuntimeError, match="add_kernel did not compile for sm_80"):
        compiled.compile_kernel("vector_add_triton", "add_kernel", wrong, capability=80)


def test_none_where_a_pointer_is_needed_is_refused():
    request = first("descriptors", kernel="flash_attention_v3_kernel").request
    request["arguments"] |= dict(o_ptr=None)
    with pytest.raises(RuntimeError, match="flash_attention_v3_kernel did not compile for sm_90"):
        compiled.compile_kernels([request])
