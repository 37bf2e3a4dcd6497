"""Right and wrong versions for the checks of tensor descriptors and of programs side by side."""
from helpers import check


def can_describe(x, last=True, axes=(0, 1, 2), beginning=True, unit=None, zero=False, taken=False, contiguous=False):
    steps = [x.stride(axis) * (unit or x.element_size()) for axis in axes if not taken or x.shape[axis] > 1]
    return ((x.stride(3) == 1 or not last) and (x.data_ptr() % 16 == 0 or not beginning)
            and (x.is_contiguous() or not contiguous) and all(step % 16 == 0 and (step > 0 or zero) for step in steps))


def mistaken(**mistake):
    return lambda x: can_describe(x, **mistake)


def side_by_side(registers, shared, threads, eights=8, more=1024, most=2048, programs=32, warp=None):
    lent = -(-registers // eights) * eights
    return min(65536 // (lent * (warp or threads)), 228 * 1024 // (shared + more), most // threads, programs)


def wrongly(**mistake):
    return lambda registers, shared, threads: side_by_side(registers, shared, threads, **mistake)


CASES = {
    check.can_describe: dict(
        right=[can_describe, lambda x: int(can_describe(x))],
        wrong={"a tensor that lies in one piece": lambda x: False,
               "features side by side": mistaken(last=False),
               "rows multiples of 16 bytes apart": mistaken(axes=(0, 1)),
               "heads and batches, too": [mistaken(axes=(0, 2)), mistaken(axes=(1, 2)), mistaken(axes=(2,))],
               "any layout with such steps": mistaken(contiguous=True),
               "the beginning of the tensor": mistaken(beginning=False),
               "bytes, not elements": [mistaken(unit=2), mistaken(unit=1), mistaken(unit=4)],
               "a step of 0": mistaken(zero=True),
               "a step that is never taken": mistaken(taken=True)},
        also=[lambda x: True, mistaken(axes=()), lambda x: x.is_contiguous()]),
    check.side_by_side: dict(
        right=[side_by_side],
        wrong={"registers are the limit": lambda registers, shared, threads: side_by_side(8, shared, threads),
               "registers come in eights": [wrongly(eights=1), wrongly(eights=16),
                                            lambda registers, *rest: side_by_side(registers + 8, *rest)],
               "shared memory is the limit": lambda registers, shared, threads: side_by_side(registers, 0, threads),
               "1 KB more for each program": [wrongly(more=0), wrongly(more=1000)],
               "other numbers of threads": [wrongly(warp=128), wrongly(warp=32)],
               "at most 2,048 threads": wrongly(most=10**6),
               "at most 32 programs": wrongly(programs=10**6),
               "not even one fits": lambda *tile: max(1, side_by_side(*tile))},
        also=[lambda registers, shared, threads: 1])}
