"""Arguments that are no tensors: switches, the scale, tiles, dropout."""
import numbers


def flag(**named):
    """Raise TypeError unless each argument is True or False."""
    for name, x in named.items():
        if not isinstance(x, bool):
            raise TypeError(f"{name} is {said(x)}: expected True or False")


def score_scale(scale, D: int) -> float:
    """The scale as a float, 1 / sqrt(D) if it is None.

    Raises TypeError unless it is a number (a tensor is none: its gradient would be lost), and ValueError for NaN and
    for one so large that the kernel, which multiplies it by log2(e) in float32, would turn it into infinity.
    """
    if scale is None:
        return D**-0.5
    if not isinstance(scale, numbers.Real) or isinstance(scale, bool):
        raise TypeError(f"scale is {said(scale)}: expected a number, or None for 1 / sqrt(D)")
    if not abs(scale) < 2**127:                          # not: also for NaN
        raise ValueError(f"scale is {scale}: expected a number between -2^127 and 2^127")
    return float(scale)


def tiles(chosen: dict | None, usual: dict, D: int = 1) -> dict:
    """The usual tiles and launch options, with those that are `chosen` instead of some of them.

    Raises TypeError or ValueError, naming the option, for a name that is not among the usual ones, and unless each
    BLOCK_ is a power of two from 16, the least that tl.dot takes, to 256, BLOCK_D at least D, and the others positive.
    """
    if chosen is None:
        return usual
    if not isinstance(chosen, dict):
        raise TypeError(f"tiles is {said(chosen)}: expected a dictionary with some of {', '.join(usual)}")
    for name, size in chosen.items():
        if name not in usual:
            raise ValueError(f"tiles has {name!r}, which is none of {', '.join(usual)}")
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"tiles has {name} = {size!r}: expected an int")
        if size < 1 or size & size - 1 and name != "GROUP" and name != "num_stages":
            raise ValueError(f"tiles has {name} = {size}: expected a power of two")
        least = max(16, D if name == "BLOCK_D" else 0)
        if name.startswith("BLOCK_") and not least <= size <= 256:
            raise ValueError(f"tiles has {name} = {size}: expected a power of two from {least} to 256")
    return usual | chosen


def dropout(dropout_p, seed):
    """Raise TypeError or ValueError unless dropout_p is in [0, 1) and seed None or an int from 0 to 2^31 - 1."""
    if not isinstance(dropout_p, numbers.Real):
        raise TypeError(f"dropout_p is {said(dropout_p)}: expected a number")
    if not (seed is None or isinstance(seed, numbers.Integral)):
        raise TypeError(f"seed is {said(seed)}: expected an int or None")
    if not 0 <= dropout_p <= 1 - 2**-24:                 # more is 1 in float32
        raise ValueError(f"dropout_p is {dropout_p}: expected a probability from 0 to below 1")
    if seed is not None and not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed}: expected an int from 0 to 2^31 - 1, or None")


def said(x) -> str:
    """x in a sentence: what it is, and what kind of thing if that would be too long."""
    return repr(x) if isinstance(x, (str, numbers.Number)) or x is None else f"a {type(x).__name__}"
