"""The suite of several GPUs: a sequence spread over all of this machine's, beside one GPU and PyTorch's own way."""
import contextlib
import functools

from helpers import device, lessons, reference
from helpers.bench import clock, kernels
from helpers.bench.run import suite
from helpers.process import Failed
from helpers.process.ranks import Ranks

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.attention import sdpa_kernel

HEADS, D, LENGTHS = 16, 128, (16384, 65536, 131072, 262144)         # tokens in all
BACKENDS = {f"PyTorch, {name.split()[1]}": kernels.BACKENDS[name] for name in ("SDPA flash", "SDPA cudnn")}
NAMES = ("one GPU", "ours", *BACKENDS)
BOUNDS = 2e-3, 5e-3                                      # of the relative error of o, and of dq, dk and dv
MS, MOST = 300, 50                                       # of timed calls of a row, and how many
ALL_UP_TO = 131072                                       # tokens: beyond, only ours and only forward, for it takes long
LINK_BYTES, LAST = 2**28, 256


@suite(seconds=90, gpus=2)
def ring():
    """One sequence on all GPUs of this machine, 16 heads of 128, float16, without a mask and causal (zigzag), forward, and
    forward with backward: ms of the slowest rank; beside it one GPU with the whole, and PyTorch's context parallelism."""
    size, running = torch.cuda.device_count(), []        # ranks, and new ones after a failure

    def ask(*call):
        if not running:
            running.append(Ranks(size, "helpers.bench.ring", backend="nccl", timeout=60))
        try:
            return running[0](*call)
        except Failed:
            running.pop()
            raise
    try:
        yield dict(name="link", gpus=size), lambda: ask(link)[0]
        for N in LENGTHS:
            for is_causal in (False, True):
                for backward in (False, True)[:1 + (N <= ALL_UP_TO)]:
                    for name in NAMES if N <= ALL_UP_TO else NAMES[:2]:
                        facts = dict(name=name, dtype="float16", batch=1, heads=HEADS, N=N, D=D, is_causal=is_causal,
                                     backward=backward, gpus=1 if name == "one GPU" else size)
                        yield facts, functools.partial(kernels.tolerant, name.replace("PyTorch,", "SDPA"), _slowest, ask, name,
                                                       N, is_causal, backward)
    finally:
        for ranks in running:
            ranks.close()


def _slowest(ask, *arguments):
    """One rank's row: the times are the slowest rank's in all rows, the memory the largest."""
    rows = ask(measure, *arguments)
    return rows[0] | dict(peak_bytes=max(row["peak_bytes"] for row in rows)) if "error" not in rows[0] else rows[0]


# ---------------------------------------------------------------- on each rank

def link():
    """GB/s that each rank sends to the next, while it receives as much from the one before, with nothing else to do."""
    ring, x = lessons.many_gpus.ring_of(), torch.zeros(LINK_BYTES, dtype=torch.int8, device=device.DEVICE)
    times = timed(lambda: lessons.many_gpus.hand_on(ring, x).arrived())
    return dict(bytes=LINK_BYTES, gb_per_s=LINK_BYTES / times["median_ms"] / 1e6, **times)


def measure(name, N, is_causal, backward):
    """What one rank found for a sequence of N tokens: the error against one GPU, then the times."""
    torch.cuda.empty_cache()
    if name == "one GPU":
        return alone(tensors(N), is_causal, backward)
    want = by_one_gpu(N, is_causal)[:4 if backward else 1]
    if name in BACKENDS:
        try:
            return peer(BACKENDS[name], tensors(N), want, is_causal, backward)
        except Exception as problem:                     # the same on all ranks, we hope
            return dict(error=" ".join(str(problem).split())[:200] or type(problem).__name__)
    many = lessons.many_gpus
    parts = [many.shard(x, zigzag=is_causal) for x in tensors(N)]
    return checked(functools.partial(many.ring_attention, is_causal=is_causal, zigzag=is_causal), parts, want, backward)


def tensors(N):
    """q, k, v and do of N tokens, the same on every rank."""
    generator = torch.Generator(device.DEVICE).manual_seed(N)
    return [torch.randn(1, HEADS, N, D, device=device.DEVICE, generator=generator).half() for _ in range(4)]


@functools.lru_cache(maxsize=1)                          # the rows of one length and mask follow each other
def by_one_gpu(N, is_causal):
    """This rank's part of o, and of dq, dk, dv, computed by one GPU."""
    found = results(one_gpu(is_causal), tensors(N), N <= ALL_UP_TO)
    return [lessons.many_gpus.shard(x, zigzag=is_causal) for x in found]


def one_gpu(is_causal):
    return functools.partial(lessons.warp_specialization.flash_attention_v4, is_causal=is_causal)


def alone(whole, is_causal, backward):
    """One GPU's row: the last queries of the last head are compared with float64."""
    fn, last = one_gpu(is_causal), LAST
    error = clock.verified("one GPU", results(fn, whole, False)[0][-1, -1, -last:],
                           reference.last_head(*whole[:3], is_causal=is_causal, last=last), BOUNDS[0], "the end")
    return dict(relative_error=error) | timed(lambda: results(fn, whole, backward))


def peer(backend, whole, want, is_causal, backward):
    """PyTorch's context parallelism. It cuts as we do, takes whole tensors, and puts shards in their place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import _attention
    mesh = init_device_mesh("cuda", (dist.get_world_size(),))
    _attention._cp_options.enable_load_balance = is_causal         # without a mask it accepts no other
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(backend))
        stack.enter_context(_attention.context_parallel(mesh, buffers=whole, buffer_seq_dims=[2] * 4,
                                                        no_restore_buffers=set(whole)))
        return checked(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal), whole, want, backward)


def results(fn, given, backward):
    """[o], or with backward [o, dq, dk, dv]."""
    q, k, v, do = given
    if not backward:
        with torch.no_grad():
            return [fn(q, k, v)]
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        o = fn(*leaves)
        return [o.detach(), *torch.autograd.grad(o, leaves, do)]


def checked(fn, given, want, backward):
    """The largest error of the results, then the times."""
    error = max(clock.verified(x, got, exact.double(), BOUNDS[x != "o"], f"rank {dist.get_rank()}")
                for x, got, exact in zip(("o", "dq", "dk", "dv"), results(fn, given, backward), want))
    return dict(relative_error=error) | timed(lambda: results(fn, given, backward))


def timed(fn) -> dict:
    """Median and quartiles in ms of the slowest rank, call by call, and the most bytes that a call held on this rank."""
    scratch = clock.new_scratch()
    slowest([0.0])                                       # none begins before the others
    times, peak = clock.held(lambda: slowest(clock.call_times(fn, 2, scratch)))
    if times[1] < MS / 2:                                # or these two are all
        times = slowest(clock.call_times(fn, min(MOST, int(MS / times[1])), scratch))
    return clock.quartiles(times) | dict(calls=len(times), peak_bytes=peak)


def slowest(times: list) -> list:
    """Each the largest of all ranks'."""
    times = torch.tensor(times, device=device.DEVICE)
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return times.tolist()
