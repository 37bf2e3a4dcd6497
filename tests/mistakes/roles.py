"""Right and wrong versions for the checks of turns in a ring, of its readers, and of p @ v one tile late."""
import numpy as np

from helpers import check


def turn(i, STAGES):
    return i % STAGES, i // STAGES & 1, (i // STAGES + 1) & 1


def reader(ring, begin, end, got, skipping="wait", first=0, count=1, parity=lambda i, STAGES: i // STAGES & 1,
           STAGES=None, early=False):
    STAGES = STAGES or len(ring.cells)
    for i in range(first, end):
        stage = i % STAGES
        if i >= begin or skipping == "wait":
            yield ring.full[stage], parity(i, STAGES)
        if early:
            ring.empty[stage].arrive()
        if i >= begin:
            got.append(ring.cells[stage])
        for _ in range(0 if early or i < begin and skipping == "silent" else count):
            ring.empty[stage].arrive()


def reads(**mistake):
    return lambda ring, begin, end, got: reader(ring, begin, end, got, **mistake)


def impatient(ring, begin, end, got):
    """Takes what is there, whether it has arrived or not."""
    for i in range(begin, end):
        stage = i % len(ring.cells)
        if i % 2:
            yield ring.full[stage], i // len(ring.cells) & 1
        got.append(ring.cells[stage])
        ring.empty[stage].arrive()


def late_values(q, k, v, scale, alpha=lambda alpha: alpha, last=True, divide=True, order="late", maximum=True,
                scale_acc=lambda alpha, acc, product: alpha[:, None] * (acc + product), in_place=False, single=True):
    if in_place:
        q *= scale
        scale = 1
    m, l, p, acc, waiting = np.full(len(q), -np.inf), 0, None, 0, []
    for j in range(len(k)):
        s = scale * q @ k[j].T
        m_new = np.maximum(m, s.max(axis=1)) if maximum else np.zeros(len(q))
        a = alpha(np.exp((m if maximum or j == 0 else m_new) - m_new))
        p_new = np.exp(s - m_new[:, None])
        l = a * l + p_new.sum(axis=1)
        if order == "now":
            acc = a[:, None] * acc + p_new @ v[j]
        elif order == "two":
            waiting.append(p_new)
            acc = a[:, None] * (acc + (waiting.pop(0) @ v[j - 2] if j > 1 else 0))
            waiting = [a[:, None] * x for x in waiting[:-1]] + waiting[-1:]
        elif j:
            acc = scale_acc(a, acc, p @ v[j - 1])
        m, p = m_new, p_new
    if order == "late" and last and (single or len(k) > 1):
        acc = acc + p @ v[len(v) - 1]
    for j, p in enumerate(waiting, len(v) - len(waiting)):
        acc = acc + p @ v[j]
    return (acc if isinstance(acc, np.ndarray) else np.zeros((len(q), v[0].shape[1]))) / (l[:, None] if divide else 1)


def late(**mistake):
    return lambda q, k, v, scale: late_values(q, k, v, scale, **mistake)


CASES = {
    check.ring_turn: dict(
        right=[turn, lambda i, STAGES: (i % STAGES, (i // STAGES) % 2, 1 - (i // STAGES) % 2)],
        wrong={"the places of a ring, one after the other": [lambda i, S: (i // S % S, *turn(i, S)[1:]),
                                                             lambda i, S: ((i + 1) % S, *turn(i, S)[1:])],
               "with which parity readers wait": [lambda i, S: (i % S, i & 1, turn(i, S)[2]),
                                                  lambda i, S: (i % S, i // S, turn(i, S)[2]),
                                                  lambda i, S: (i % S, i // S + 1 & 1, turn(i, S)[2])],
               "with which parity the writer waits": [lambda i, S: (*turn(i, S)[:2], turn(i, S)[1]),
                                                      lambda i, S: (*turn(i, S)[:2], i // S + 1)],
               "a single place": lambda i, S: turn(i, S) if S > 1 else (0, 0, 1),
               "three places, and five": [lambda i, S: (i % S, i >> S // 2 & 1, ~i >> S // 2 & 1),
                                          lambda i, S: (i & S - 1, *turn(i, S)[1:])]},
        also=[lambda i, S: turn(i, S)[::-1], lambda i, S: (i % S, 0, 1), lambda i, S: turn(i + S, S)]),
    check.ring_reader: dict(
        right=[reader],
        wrong={"one reader, two places": [reads(parity=lambda i, S: i // S + 1 & 1), reads(early=True), impatient,
                                          reads(parity=lambda i, S: i & 1), reads(parity=lambda i, S: 0)],
               "two readers": [reads(count=2), impatient],
               "any number of places": [reads(STAGES=2), reads(parity=lambda i, S: i // 2 & 1)],
               "some are skipped": [reads(skipping="now"), reads(skipping="silent")],
               "all are skipped": [reads(skipping="now"), reads(skipping="silent")]},
        also=[lambda ring, begin, end, got: reader(ring, begin, end, got, first=begin),
              lambda ring, begin, end, got: reader(ring, begin, end - 1, got), reads(count=0)]),
    check.late_values: dict(
        right=[late_values],
        wrong={"the result is attention": [late(divide=False), late(last=False)],
               "maxima that rise from tile to tile, in each row by another step":
                   [late(scale_acc=lambda alpha, acc, product: alpha[:, None] * acc + product),
                    late(scale_acc=lambda alpha, acc, product: acc + product),
                    late(scale_acc=lambda alpha, acc, product: acc + alpha[:, None] * product),
                    late(alpha=lambda alpha: alpha**2), late(alpha=lambda alpha: alpha**0.5),
                    late(alpha=lambda alpha: np.full_like(alpha, alpha.mean()))],
               "maxima that fall": [late(last=False), late(alpha=lambda alpha: alpha / 2)],
               "a single tile": late(single=False),
               "logits of 1e4": late(maximum=False),
               "p @ v comes one tile late": [late(order="now"), late(order="two")],
               "the inputs are left as they were": late(in_place=True)},
        also=[late(alpha=np.ones_like), late(alpha=np.zeros_like), late(alpha=lambda alpha: (alpha == 1) * 1.0)])}
