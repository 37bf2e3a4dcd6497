"""Right and wrong versions for the checks of a backward pass in one walk."""
import numpy as np

import rings
from helpers import check
from mistakes.ways import INSTEAD, mistaken

# ---------------------------------------------------------------- five products, in NumPy


def walk(q, k, v, do, lse, delta, scale, BLOCK, add=True, products=5, whole=False, in_place=False, stop=0, scaled=(1, 1),
         heads_off=0, last_block=True, begin=0, sign=-1):
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    if in_place:
        q *= scale
        scale = 1
    STEP = len(q) if whole else BLOCK
    for j in range(begin, len(k) - stop, BLOCK):
        keys = slice(j, j + BLOCK)
        for i in range(0, STEP if not last_block else len(q) - stop, STEP):
            rows = slice(i, i + STEP)
            p = np.exp(scale * q[rows] @ k[keys].T - lse[rows, None])
            for _ in range(products - 5):
                q[rows] @ k[keys].T
            ds = p * (do[rows] @ v[keys].T + sign * delta[rows, None])
            dv[keys] += p.T @ do[rows]
            dk[keys] += ds.T @ q[rows]
            dq[rows] = ds @ k[keys] + (dq[rows] if add else 0)
    return scale * scaled[0] * dq, (1 if in_place else scale) * scaled[1] * dk, dv


walks = mistaken(walk)


def own_block(*arguments):
    """Right for blocks of 16, and lost for others."""
    return walk(*arguments, add=arguments[-1] == 16)


def own_scale(q, k, v, do, lse, delta, scale, BLOCK):
    return walk(q, k, v, do, lse, delta, 0.4, BLOCK)


def whole_blocks(*arguments):
    BLOCK = arguments[-1]
    return walk(*arguments, stop=BLOCK - 1)


# ---------------------------------------------------------------- in Triton and in Gluon

HEAD = f"import torch\nimport triton\nimport triton.language as tl\n{rings.HEAD}"

TRITON = """
@triton.jit
def kernel(q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, dk_ptr, dv_ptr, N_q, N_k, scale,
           D: tl.constexpr, BLOCK: tl.constexpr):
    keys, d = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    mine, inside = keys[:, None] * D + d[None, :], keys[:, None] < N_k
    k = tl.load(k_ptr + mine, mask=inside, other=0.0)
    v = tl.load(v_ptr + mine, mask=inside, other=0.0)
    dk, dv = tl.zeros([BLOCK, D], tl.float32), tl.zeros([BLOCK, D], tl.float32)
    for i in range(0, N_q, BLOCK):
        rows = i + tl.arange(0, BLOCK)
        offsets, there = rows[:, None] * D + d[None, :], rows[:, None] < N_q
        q_i = tl.load(q_ptr + offsets, mask=there, other=0.0)
        do_i = tl.load(do_ptr + offsets, mask=there, other=0.0)
        lse_i = tl.load(lse_ptr + rows, mask=rows < N_q, other=float("inf"))
        delta_i = tl.load(delta_ptr + rows, mask=rows < N_q, other=0.0)
        p = tl.exp(scale * tl.dot(k, q_i.T, input_precision="ieee") - lse_i[None, :])
        p = tl.where(keys[:, None] < N_k, p, 0.0)
        dv = tl.dot(p, do_i, dv, input_precision="ieee")
        dp = tl.dot(v, do_i.T, input_precision="ieee")
        ds = p * (dp - delta_i[None, :])
        dk = tl.dot(ds, q_i, dk, input_precision="ieee")
        tl.atomic_add(dq_ptr + offsets, scale * tl.dot(ds.T, k, input_precision="ieee"), mask=there)
    tl.store(dk_ptr + mine, scale * dk, mask=inside)
    tl.store(dv_ptr + mine, dv, mask=inside)


def gradients(q, k, v, do, lse, delta, scale):
    (N_q, D), N_k, dq, dk, dv = q.shape, len(k), torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
    kernel[triton.cdiv(N_k, 32),](q, k, v, do, lse, delta, dq, dk, dv, N_q, N_k, scale, D, BLOCK=32)
    return dq, dk, dv
"""


triton_version = rings.versions(HEAD + TRITON, "gradients")
MASK = "        p = tl.where(keys[:, None] < N_k, p, 0.0)\n"
ADD = "tl.atomic_add(dq_ptr + offsets, scale * tl.dot(ds.T, k, input_precision=\"ieee\"), mask=there)"
STORE_DV = "    tl.store(dv_ptr + mine, dv, mask=inside)\n"

GLUON = """
@gluon.jit
def give(ds, k, ds_tile, dq_tile, dq_desc, i, layout: gl.constexpr):
    ds_tile.store(ds)
    fence_async_shared()
    zeros = gl.zeros([64, 64], gl.float32, layout)
    dq = warpgroup_mma(ds_tile.permute((1, 0)), k, zeros, use_acc=False, is_async=True)
    dq = warpgroup_mma_wait(0, deps=[dq])
    store_wait(0)
    dq_tile.store(dq)
    fence_async_shared(False)
    async_add(dq_desc, [i * 64, 0], dq_tile)


@gluon.jit
def kernel(ds_ptr, k_desc, dq_desc, N):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    ds_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 64], gl.float16)
    k = gl.allocate_shared_memory(gl.float16, [64, 64], k_desc.layout)
    ds_tile = gl.allocate_shared_memory(gl.float16, [64, 64], ds_layout)
    dq_tile = gl.allocate_shared_memory(gl.float32, [64, 64], dq_desc.layout)
    arrived = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(arrived, count=1)
    mbarrier.expect(arrived, k_desc.block_type.nbytes)
    async_load(k_desc, [gl.program_id(0) * 64, 0], arrived, k)
    mbarrier.wait(arrived, 0)
    keys = gl.program_id(0) * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, layout))
    rows = gl.arange(0, 64, layout=gl.SliceLayout(0, layout))
    for i in range(N):
        ds = gl.load(ds_ptr + keys[:, None] * (64 * N) + (64 * i + rows)[None, :])
        give(ds, k, ds_tile, dq_tile, dq_desc, i, layout)
    store_wait(0)
"""


gluon_version = rings.versions(HEAD + GLUON, "kernel")
WAIT, FENCE = "    store_wait(0)\n    dq_tile.store(dq)\n", "    fence_async_shared()\n"
GIVE = "    async_add(dq_desc, [i * 64, 0], dq_tile)\n"
TO = "    dq = warpgroup_mma(ds_tile.permute((1, 0)), k"


def needs(M, N, D, places=2, dq=4, stats=16, ds=1, owned=2, scores=2, threads=256):
    return (4 * N * D + 2 * places * 2 * M * D + 2 * ds * N * M + dq * M * D + stats * M,
            (owned * N * D + scores * N * M) // threads)


fit = mistaken(needs)
CASES = {
    check.one_walk: dict(
        right=[walk],
        wrong={"one tile": [walks(sign=1), walks(scaled=(1, 2))],
               "several tiles of keys": walks(add=False),
               "several tiles of queries": walks(last_block=False),
               "lengths that are no multiple of the block": whole_blocks,
               "any block": own_block,
               "the scale that it is given": own_scale,
               "five products for each pair of tiles": [walks(products=6), walks(products=7), walks(whole=True)],
               "the inputs are left as they were": walks(in_place=True)}),
    check.fused_gradients: dict(
        right=[triton_version()],
        wrong={"one tile": triton_version(("ds = p * (dp - delta_i[None, :])", "ds = p * (dp + delta_i[None, :])")),
               "several tiles of keys add to dq": [
                   triton_version(("tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)", "tl.arange(0, BLOCK)")),
                   triton_version((ADD, ADD.replace("atomic_add", "store")))],
               "several tiles of queries": triton_version(("range(0, N_q, BLOCK)", "range(0, BLOCK, BLOCK)")),
               "lengths that are no multiple of the block": triton_version(('other=float("inf")', "other=0.0"),
                                                                           (MASK, MASK.replace("< N_k", "< N_k - 1"))),
               "keys beyond the end add nothing, however low the scores": triton_version((MASK, "")),
               "the scale that it is given": triton_version(("N_k, scale, D, BLOCK", "N_k, 0.25, D, BLOCK")),
               "every output element is written": triton_version((STORE_DV, STORE_DV.replace("inside", "inside & (mine > 0)"))),
               "nothing is written outside of the tensors": triton_version((STORE_DV, STORE_DV.replace(", mask=inside", ""))),
               "the inputs are left as they were": triton_version(("    return dq, dk, dv", "    q *= 2\n    return dq, dk, dv"))}),
    check.backward_needs: dict(
        right=[fit()],
        wrong={"shared memory, with 128 keys": [fit(places=1), fit(ds=2), fit(dq=2), fit(stats=8), fit(stats=0)],
               "shared memory, with other tiles": [lambda M, N, D: (needs(M, 128, D)[0], needs(M, N, D)[1]), lambda *s: needs(*s)[0]],
               "registers, with 128 keys": [fit(owned=1), fit(scores=1), fit(threads=128)],
               "registers, with other tiles": lambda M, N, D: (needs(M, N, D)[0], 192)}),
    check.added_up: dict(
        right=[gluon_version()], **INSTEAD,
        wrong={"one tile": [gluon_version((FENCE, "")), gluon_version(("    fence_async_shared(False)\n", "")),
                            gluon_version((GIVE, ""))],
               "several tiles": [gluon_version((WAIT, WAIT.split("\n", 1)[1])), gluon_version(("[i * 64, 0]", "[0, 0]"))],
               "several programs add to one dq": gluon_version(
                   (GIVE, GIVE.replace("async_add", "async_store"))),
               "no fault, in ten orders of events": gluon_version((WAIT, WAIT.replace("(0)", "(1)"))),
               "the next product does not wait for the engine": gluon_version((GIVE, GIVE + "    store_wait(0)\n")),
               "it compiles for a Hopper GPU": gluon_version((TO, "    x = 0\n    for n in range(3):\n        x = x + 0.5\n" + TO))}),
}
