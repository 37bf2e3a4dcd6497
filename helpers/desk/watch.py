"""How far a long cell is: a line below it for the reader, which begins with [gpu], so that the tests do not compare it."""
from IPython.display import display


def steps(items, total: int, what: str):
    """Pass on `total` items, and keep a line below the cell, `what` and the number of the last one that was taken."""
    def line(number):
        return {"text/plain": f"[gpu] {what} {number} of {total}"}
    shown = display(line(0), raw=True, display_id=True)  # None outside of a notebook
    for number, item in enumerate(items, 1):
        yield item
        if shown:
            shown.update(line(number), raw=True)
