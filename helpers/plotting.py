"""The palette, and the drawings that more than one lesson uses."""
import base64
import html
import io

import matplotlib.pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from IPython.display import publish_display_data

# Okabe and Ito's colours, which colour-blind readers can tell apart; one meaning each, in every figure
QUERY, KEY, VALUE, OUTPUT = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
HBM, SRAM = "#757575", "#F0E442"
BAD, INK = "#D55E00", "#222222"

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 100,
                     "axes.titlesize": 11, "axes.titlelocation": "left", "figure.constrained_layout.use": True})


def show(fig, alt: str):
    """Show a matplotlib figure under the cell, with a text for readers who cannot see it, and close it.

    The picture has twice the pixels of the width that it is shown at, for screens that have them.
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=2 * fig.dpi)
    plt.close(fig)
    image = '<img alt="{}" width="{}" src="data:image/png;base64,{}">'.format(
        html.escape(alt), round(fig.get_figwidth() * fig.dpi), base64.b64encode(buffer.getvalue()).decode())
    publish_display_data({"text/html": image, "text/plain": f"Figure: {alt}"})     # of image/png, no page shows the alt


def contrast(one, other) -> float:
    """The contrast of two colours by WCAG 2: from 1, the same, to 21, black on white. Text needs 4.5."""
    lights = []
    for colour in (one, other):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055)**2.4 for c in to_rgb(colour)]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(lights) / min(lights)


def ink_on(colour) -> str:
    """The colour of text on a fill, with a contrast of at least 4.5."""
    return next(ink for ink in ("white", INK, "black") if contrast(ink, colour) >= 4.5)


def as_ink(colour) -> str:
    """A line's colour for text on white: the same, or darkened until its contrast is 4.5."""
    shades = ([c * share / 100 for c in to_rgb(colour)] for share in range(100, 0, -1))
    return to_hex(next(shade for shade in shades if contrast(shade, "white") >= 4.5))


def vector_programs(n: int, block: int, unit: str = "program"):
    """Draw which of ceil(n / block) programs owns which element of a vector of n, masked lanes hatched.

    Returns the figure.
    """
    programs = -(-n // block)
    fig, ax = plt.subplots(figsize=(8, 1.6))
    for i in range(programs * block):
        inside = i < n
        colour = [QUERY, KEY, VALUE, OUTPUT][i // block % 4] if inside else "white"
        ax.add_patch(plt.Rectangle((i, 0), 0.92, 1, facecolor=colour, edgecolor=INK if not inside else "white",
                                   hatch=None if inside else "///"))
        ax.text(i + 0.46, 0.5, str(i), ha="center", va="center", color=ink_on(colour),
                bbox=None if inside else dict(facecolor="white", edgecolor="none", pad=1))
    for program in range(programs):
        ax.text((program + 0.5) * block, 1.25, f"{unit} {program}", ha="center", va="bottom")
    ax.set(xlim=(-0.1, programs * block), ylim=(-0.1, 1.9))
    ax.axis("off")
    return fig


def tiles(ax, rows: int, columns: int, block_rows: int, block_columns: int, colour, label):
    """Draw a rows x columns matrix cut into tiles. colour(i, j) and label(i, j) say what tile (i, j) looks like."""
    for i in range(-(-rows // block_rows)):
        for j in range(-(-columns // block_columns)):
            top, left = i * block_rows, j * block_columns
            height, width = min(block_rows, rows - top), min(block_columns, columns - left)
            fill = colour(i, j)
            ax.add_patch(plt.Rectangle((left, top), width, height, facecolor=fill, edgecolor="white", linewidth=2))
            ax.text(left + width / 2, top + height / 2, label(i, j), ha="center", va="center", color=ink_on(fill),
                    fontsize=9)
    ax.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=range(0, columns + 1, block_columns),
           yticks=range(0, rows + 1, block_rows))
    for spine in ax.spines.values():
        spine.set_visible(False)


def provenance(fig, record: dict):
    """Write a record's device, versions and date in small print under a figure."""
    versions = f"torch {record['torch'].split('+')[0]}, triton {record['triton']}"
    fig.supxlabel(f"{record['device']}, {versions}, {record['date']}", x=0.01, ha="left", fontsize=8.5, color=INK)


def speeds(record: dict, colours: dict):
    """TFLOP/s against sequence length from a record's rows, a panel for each mask and D up to 128. Returns the figure.

    `colours` is {name: colour} of the kernels to draw; rows without a time are left out.
    """
    panels = {}
    for r in sorted(record["rows"], key=lambda r: (r["D"], r["is_causal"], r["N"])):
        if r["name"] in colours and "tflops" in r and r["D"] <= 128:
            title = f"D = {r['D']}, {'causal' if r['is_causal'] else 'no mask'}"
            panels.setdefault(title, {}).setdefault(r["name"], {})[r["N"]] = r["tflops"]
    fig = speed_panels(panels, colours)
    provenance(fig, record)
    return fig


def speed_panels(panels: dict, colours: dict):
    """Draw {title: {name: {sequence length: TFLOP/s}}}, two panels a row, names at the right. Returns the figure."""
    rows = -(-len(panels) // 2)
    fig, axes = plt.subplots(rows, 2, figsize=(7, 2.7 * rows), sharex=True, sharey=True, squeeze=False)
    ends = []
    for ax, (title, speed) in zip(axes.flat, panels.items()):
        points = {name: (list(speed[name]), list(speed[name].values())) for name in colours if name in speed}
        ax.set(xscale="log", title=title)
        ends.append(lines(ax, points, colours, labels=False))
        ax.set_xticks([512, 2048, 8192], [512, 2048, 8192])
        ax.minorticks_off()
    for place, (ax, named) in enumerate(zip(axes.flat, ends)):
        if place % 2 or place == len(panels) - 1:        # now that all panels share their scale
            label_ends(ax, named, colours)
    for ax in axes.flat[len(panels):]:
        ax.remove()
    for ax in axes[-1]:
        ax.set_xlabel("sequence length N")
    for ax in axes[:, 0]:
        ax.set_ylabel("TFLOP/s")
    return fig


def lines(ax, points: dict, colours: dict, labels=True):
    """Draw {name: (x, y)} as lines in their colours, each with its name at its end, unless labels is False.

    Scales and the other lines of the panel come first: the places of the names depend on them. Returns {name: end}.
    """
    ends = {}
    for name, (x, y) in points.items():
        x, y = list(x), list(y)
        ax.plot(x, y, "o-", color=colours[name], markersize=4)
        ends[name] = x[-1], y[-1]
    if labels:
        label_ends(ax, ends, colours)
    return ends


def label_ends(ax, ends: dict, colours: dict, least: float = None):
    """Write each line's name at its end, {name: (x, y)}, in its colour; labels that would touch move apart.

    `least` is the distance of two labels as a share of the axis' height, by default what the text needs. Call it when
    all lines are drawn.
    """
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)
    ax.autoscale_view()                                  # or the limits may be those from before the last line
    if least is None:
        least = 1.25 * plt.rcParams["font.size"] / 72 / (ax.get_position().height * ax.figure.get_figheight())
    at = {name: ax.transAxes.inverted().transform(ax.transData.transform(end)) for name, end in ends.items()}
    names = sorted(at, key=lambda name: at[name][1])
    groups = []                                          # [middle, names] of labels that stand close together
    for name in names:
        groups.append([at[name][1], [name]])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < least * (len(groups[-1][1]) + len(groups[-2][1])) / 2:
            (low, below), (high, above) = groups[-2:]
            middle = (low * len(below) + high * len(above)) / (len(below) + len(above))
            groups[-2:] = [[middle, below + above]]
    for middle, group in groups:
        for place, name in enumerate(group):
            x, y = at[name]
            label = middle + (place - (len(group) - 1) / 2) * least
            ax.annotate(name, (x, y), (x + 0.04, label), xycoords="axes fraction", textcoords="axes fraction",
                        color=as_ink(colours[name]), va="center", annotation_clip=False)


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
    moved = f"{len(touched)} sectors: {SECTOR * len(touched)} floats move, {len(elements)} were asked for"
    ax.set_title(f"{title}\n{moved}", fontsize=9, color=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
