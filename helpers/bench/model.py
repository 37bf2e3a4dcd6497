"""The suite of the model: a small GPT trained with each kind of attention."""
import functools
import statistics
from pydoc_data import topics

from helpers import lessons
from helpers.bench import kernels
from helpers.bench.run import suite

import torch

LAYERS, HEADS, EMBED_DIM = 6, 8, 512
TOKENS, LENGTHS = 16384, (512, 1024, 2048, 4096, 8192, 16384)       # a step sees TOKENS // N sequences of N
STEPS, WARM_UP = 40, 10


@suite(seconds=50)
def training():
    """A GPT of 6 layers of 8 heads of 64, under bfloat16 autocast, on 16384 characters a step of Python's own language
    reference: ms of a whole step (forward, backward, AdamW), the memory that training needs, and the losses."""
    lesson = lessons.attention_in_a_model
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))        # what help() shows, 450 KB or more
    tokens, alphabet = lesson.encode(text)
    modules = dict(SDPA=lesson.TorchAttention, flash=lesson.TritonFlashAttention, standard=lesson.StandardAttention)
    for N in LENGTHS:
        trained = functools.cache(functools.partial(train, lesson, tokens, len(alphabet), N))
        for name, attention in modules.items():
            yield (dict(name=name, dtype="bfloat16", batch=TOKENS // N, heads=HEADS, N=N, D=EMBED_DIM // HEADS,
                        layers=LAYERS, vocabulary=len(alphabet)),
                   functools.partial(kernels.tolerant, name, _compared, name, N, trained, attention, modules["SDPA"]))


def _compared(name, N, trained, attention, wanted):
    found = trained(attention)                           # each is trained once, unless an interrupted run had it
    return dict(loss_distance=verified(name, found["losses"], trained(wanted)["losses"], N), **found)


def train(lesson, tokens, vocabulary: int, N: int, attention) -> dict:
    """Train a fresh GPT. Times are from step to step, after a warm-up; memory is all that the run added at its peak."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model = lesson.GPT(attention, vocabulary, N, EMBED_DIM, HEADS, LAYERS).cuda()
    losses, marks = [], []
    for loss in lesson.train(model, tokens, STEPS, TOKENS // N, N, lr=1e-3, dtype=torch.bfloat16):
        losses.append(loss)
        marks.append(torch.cuda.Event(enable_timing=True))
        marks[-1].record()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in zip(marks[WARM_UP:], marks[WARM_UP + 1:])]
    q1, median, q3 = statistics.quantiles(times, n=4)
    return dict(median_ms=median, q1_ms=q1, q3_ms=q3, peak_bytes=torch.cuda.max_memory_allocated() - before,
                losses=[round(loss.item(), 4) for loss in losses])


def verified(name: str, losses: list, wanted: list, N: int) -> float:
    """The largest distance of two loss curves. AssertionError unless they begin together and stay together."""
    distances = [abs(a - b) for a, b in zip(losses, wanted)]
    if not (distances[0] < 0.005 and all(distance < 0.05 for distance in distances)):      # NaN as well
        raise AssertionError(f"{name} at N = {N}: its losses are off by {distances}: not timed")
    return max(distances)
