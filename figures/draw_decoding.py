"""Drawings of decoding: the grid with and without split keys, and the block tables of two sequences."""
import matplotlib.pyplot as plt

from helpers.plotting import HBM, INK, KEY, OUTPUT, QUERY, SRAM, VALUE, as_ink, ink_on

HEADS, TILES, SPLITS = 4, 12, 3
COLOURS = QUERY, KEY, VALUE, OUTPUT                      # of programs, so that neighbours differ


def _grid(ax, splits):
    """Tiles of keys, a row a head, coloured by program; a bar for what each program leaves."""
    each = TILES // splits
    for h in range(HEADS):
        for j in range(TILES):
            program = h * splits + j // each
            colour = COLOURS[(program + h * (splits > 1)) % 4]
            ax.add_patch(plt.Rectangle((j, h), 0.94, 0.62, facecolor=colour, edgecolor="none"))
        for split in range(splits):
            program = h * splits + split
            colour = COLOURS[(program + h * (splits > 1)) % 4]
            ax.text((split + 0.5) * each, h + 0.31, f"program {program}", fontsize=8, ha="center", va="center",
                    color=ink_on(colour), bbox=dict(facecolor=colour, edgecolor="none", pad=1))
            ax.annotate("", ((split + 1) * each - 0.1, h + 0.85), (split * each, h + 0.85),
                        arrowprops=dict(arrowstyle="->", color=INK, linewidth=0.8))
        end = "o" if splits == 1 else f"{splits} o, lse\nmerged"
        ax.text(TILES + 0.25, h + 0.35, end, fontsize=8, va="center", color=INK)
        ax.text(-0.25, h + 0.31, f"head {h}", fontsize=8, ha="right", va="center", color=INK)
    ax.set_title(f"{splits} split{'s' * (splits > 1)}: {HEADS * splits} programs of {each} tiles", loc="center", color=INK,
                 fontsize=10)
    ax.set(xlim=(-1.9, TILES + 2.3), ylim=(HEADS + 0.05, -0.15))
    ax.axis("off")


def split_keys():
    """One program a head, and three."""
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 4.2))
    _grid(axes[0], 1)
    _grid(axes[1], SPLITS)
    return fig


PAGE, TABLES, LENGTHS = 4, ((5, 2, 7), (5, 0)), (10, 7)
OWNERS = {5: SRAM, 2: QUERY, 7: QUERY, 0: VALUE}         # shared, of sequence 0, of sequence 1


def _page(ax, x, y, number, used):
    """A page with its tokens, `used` of them filled."""
    colour = OWNERS.get(number, "white")
    for row in range(PAGE):
        filled = row < used
        ax.add_patch(plt.Rectangle((x + 0.42 * row, y), 0.42, 0.45, facecolor=colour if filled else "white",
                                   edgecolor=INK if number in OWNERS else HBM, linewidth=0.8))
    ax.text(x + 0.42 * PAGE + 0.15, y + 0.22, f"page {number}", va="center", fontsize=8, color=INK)


def block_table():
    """Two tables on the left, a heap of eight pages on the right, and an arrow from each entry to its page."""
    fig, ax = plt.subplots(figsize=(7.2, 3.4))
    fill = {5: PAGE, 2: PAGE, 7: 2, 0: 3}
    for number in range(8):
        _page(ax, 5.6, 0.62 * number, number, fill.get(number, 0))
    for b, table in enumerate(TABLES):
        y = 0.85 + 2.45 * b
        ax.text(0, y - 0.3, f"sequence {b}: {LENGTHS[b]} tokens, table", fontsize=9, color=INK, va="center")
        for j, number in enumerate(table):
            colour = OWNERS[number]
            ax.add_patch(plt.Rectangle((1.2, y + 0.5 * j), 0.8, 0.45, facecolor=colour, edgecolor=INK, linewidth=0.8))
            ax.text(1.6, y + 0.5 * j + 0.22, number, ha="center", va="center", fontsize=10, color=ink_on(colour))
            ax.annotate("", (5.55, 0.62 * number + 0.22), (2.02, y + 0.5 * j + 0.22), arrowprops=dict(
                arrowstyle="->", color=as_ink(colour if colour != SRAM else HBM), linewidth=1))
    ax.set(xlim=(-0.1, 8.3), ylim=(5, -0.1))
    ax.axis("off")
    return fig
