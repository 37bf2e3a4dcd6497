"""The palette, and the drawings that more than one lesson uses."""
import base64
import io

import matplotlib.pyplot as plt
from IPython.display import publish_display_data

# Okabe and Ito's colours, which colour-blind readers can tell apart; one meaning each, in every figure
QUERY, KEY, VALUE, OUTPUT = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
HBM, SRAM = "#777777", "#F0E442"
BAD, INK = "#D55E00", "#222222"

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "figure.dpi": 100,
                     "axes.titlesize": 11, "axes.titlelocation": "left", "figure.constrained_layout.use": True})


def show(fig, alt: str):
    """Show a matplotlib figure under the cell, with a text for readers who cannot see it, and close it."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    plt.close(fig)
    publish_display_data({"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": f"Figure: {alt}"},
                         metadata={"image/png": {"alt": alt}})


def vector_programs(n: int, block: int, unit: str = "program"):
    """Draw which of ceil(n / block) programs owns which element of a vector of n, masked lanes hatched. Returns the figure."""
    programs = -(-n // block)
    fig, ax = plt.subplots(figsize=(8, 1.6))
    for i in range(programs * block):
        program = i // block
        inside = i < n
        ax.add_patch(plt.Rectangle((i, 0), 0.92, 1, facecolor=[QUERY, KEY, VALUE, OUTPUT][program % 4] if inside else "white",
                                   edgecolor=INK if not inside else "white", hatch=None if inside else "///"))
        ax.text(i + 0.46, 0.5, str(i), ha="center", va="center", color="white" if inside else INK,
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
            ax.add_patch(plt.Rectangle((left, top), width, height, facecolor=colour(i, j), edgecolor="white", linewidth=2))
            ax.text(left + width / 2, top + height / 2, label(i, j), ha="center", va="center", color="white", fontsize=8)
    ax.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xticks=range(0, columns + 1, block_columns),
           yticks=range(0, rows + 1, block_rows))
    for spine in ax.spines.values():
        spine.set_visible(False)


def provenance(fig, record: dict):
    """Write a record's device, versions and date in small print under a figure."""
    fig.supxlabel(f"{record['device']}, torch {record['torch']}, triton {record['triton']}, {record['date']}",
                  x=0.01, ha="left", fontsize=7, color=INK)


def speeds(record: dict, colours: dict):
    """TFLOP/s against sequence length from a record's rows, a panel for each head dimension and mask. Returns the figure.

    `colours` is {name: colour} of the kernels to draw; rows without a time are left out.
    """
    panels = {}
    for r in sorted(record["rows"], key=lambda r: (r["D"], r["is_causal"], r["N"])):
        if r["name"] in colours and "tflops" in r:
            title = f"D = {r['D']}, {'causal' if r['is_causal'] else 'no mask'}"
            panels.setdefault(title, {}).setdefault(r["name"], {})[r["N"]] = r["tflops"]
    fig = speed_panels(panels, colours)
    provenance(fig, record)
    return fig


def speed_panels(panels: dict, colours: dict):
    """Draw {title: {name: {sequence length: TFLOP/s}}} side by side, the names at the right. Returns the figure."""
    fig, axes = plt.subplots(1, len(panels), figsize=(2.75 * len(panels), 3.4), sharey=True)
    for ax, (title, lines) in zip(axes, panels.items()):
        for name in (name for name in colours if name in lines):
            ax.plot(lines[name].keys(), lines[name].values(), "o-", color=colours[name], markersize=4)
        ax.set(xscale="log", xlabel="sequence length N", title=title)
        ax.set_xticks([512, 2048, 8192], [512, 2048, 8192])
        ax.minorticks_off()
    axes[0].set_ylabel("TFLOP/s")
    label_ends(axes[-1], {name: (max(line), line[max(line)]) for name, line in lines.items()}, colours)
    return fig


def label_ends(ax, ends: dict, colours: dict, least: float = 0.06):
    """Write each line's name at its end, {name: (x, y)}, in its colour; labels that would touch move apart.

    `least` is the distance of two labels as a share of the axis' height. Call it when all lines are drawn.
    """
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0)
    to_axis = lambda point: ax.transAxes.inverted().transform(ax.transData.transform(point))
    heights, places = {name: to_axis(end)[1] for name, end in ends.items()}, {}
    for name in sorted(heights, key=heights.get):
        places[name] = max([heights[name], *(place + least for place in places.values())])
    for name, place in places.items():
        x, y = to_axis(ends[name])
        ax.annotate(name, (x, y), (x + 0.04, place), xycoords="axes fraction", textcoords="axes fraction",
                    color=colours[name], va="center", annotation_clip=False)


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
