"""Right and wrong versions for the checks of tensor descriptors and of programs side by side."""
from helpers import check
from mistakes.ways import mistaken


def can_describe(x, last=True, axes=(0, 1, 2), beginning=True, unit=None, zero=False, taken=False, contiguous=False):
    steps = [x.stride(axis) * (unit or x.element_size()) for axis in axes if not taken or x.shape[axis] > 1]
    return ((x.stride(3) == 1 or not last) and (x.data_ptr() % 16 == 0 or not beginning)
            and (x.is_contiguous() or not contiguous) and all(step % 16 == 0 and (step > 0 or zero) for step in steps))


describing = mistaken(can_describe)


def side_by_side(registers, shared, threads, eights=8, more=1024, most=2048, programs=32, warp=None):
    lent = -(-registers // eights) * eights
    return min(65536 // (lent * (warp or threads)), 228 * 1024 // (shared + more), most // threads, programs)


fitting = mistaken(side_by_side)
CASES = {
    check.can_describe: dict(
        right=[can_describe, lambda x: int(can_describe(x))],
        wrong={"a tensor that lies in one piece": lambda x: False,
               "features side by side": describing(last=False),
               "rows multiples of 16 bytes apart": describing(axes=(0, 1)),
               "heads and batches, too": [describing(axes=(0, 2)), describing(axes=(1, 2)), describing(axes=(2,))],
               "any layout with such steps": describing(contiguous=True),
               "the beginning of the tensor": describing(beginning=False),
               "bytes, not elements": [describing(unit=2), describing(unit=1), describing(unit=4)],
               "a step of 0": describing(zero=True),
               "a step that is never taken": describing(taken=True)},
        also=[lambda x: True, describing(axes=()), lambda x: x.is_contiguous()]),
    check.side_by_side: dict(
        right=[side_by_side],
        wrong={"registers are the limit": lambda registers, shared, threads: side_by_side(8, shared, threads),
               "registers come in eights": [fitting(eights=1), fitting(eights=16),
                                            lambda registers, *rest: side_by_side(registers + 8, *rest)],
               "shared memory is the limit": lambda registers, shared, threads: side_by_side(registers, 0, threads),
               "1 KB more for each program": [fitting(more=0), fitting(more=1000)],
               "other numbers of threads": [fitting(warp=128), fitting(warp=32)],
               "at most 2,048 threads": fitting(most=10**6),
               "at most 32 programs": fitting(programs=10**6),
               "not even one fits": lambda *tile: max(1, side_by_side(*tile))},
        also=[lambda registers, shared, threads: 1])}
