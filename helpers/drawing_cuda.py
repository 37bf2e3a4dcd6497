"""A drawing that both CUDA lessons use: which sectors of memory a warp touches."""
import matplotlib.pyplot as plt

from helpers.plotting import HBM, INK, QUERY

SECTOR = 8                                               # floats in 32 bytes


def sectors(ax, elements, rows: int, columns: int, title: str):
    """Draw memory as `rows` rows of `columns` floats and the elements that the 32 threads of a warp ask for at once.

    elements: their 32 places, counted row by row. The sectors they lie in are shaded whole: that is what is fetched.
    """
    touched = sorted({e // SECTOR for e in elements})
    for s in range(rows * columns // SECTOR):
        row, left = divmod(s * SECTOR, columns)
        ax.add_patch(plt.Rectangle((left + 0.08, row + 0.12), SECTOR - 0.16, 0.76, linewidth=0.5, edgecolor=HBM,
                                   facecolor="#D5D5D5" if s in touched else "white"))
    for e in elements:
        row, left = divmod(e, columns)
        ax.add_patch(plt.Rectangle((left + 0.14, row + 0.12), 0.72, 0.76, facecolor=QUERY, edgecolor="none"))
    ax.set(xlim=(-0.2, columns + 0.2), ylim=(rows + 0.2, -0.2), xticks=[], yticks=[])
    ax.set_title(f"{title}\n{len(touched)} sectors: {SECTOR * len(touched)} floats move, {len(elements)} were asked for",
                 fontsize=9, color=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
