"""Drawings about where numbers live and when they move: the memory hierarchy, and attention's two loop orders."""
import matplotlib.pyplot as plt

from helpers.records.gpus import GPUS
from helpers.plotting import HBM, INK, KEY, OUTPUT, QUERY, SRAM, VALUE, ink_on

REGISTERS_KB, SHARED_BYTES_PER_CLOCK = 256, 128          # of one SM, on all four architectures of the table
A100_L2_BYTES_PER_CLOCK = 5120
PCIE = {"A100 SXM 80GB": 32, "H200 SXM": 64}             # GB/s each way: generation 4 and 5, 16 lanes


def _hierarchy(name):
    """(size, speed) of each level, from the fastest to the slowest."""
    gpu = GPUS[name]
    l2 = f"{A100_L2_BYTES_PER_CLOCK * gpu.clock_ghz / 1e3:.1f} TB/s" if name.startswith("A100") else "not published"
    return [(f"{REGISTERS_KB} KB x {gpu.sms} = {REGISTERS_KB * gpu.sms / 1024:.0f} MB", "operands, every clock"),
            (f"{gpu.shared_kb} KB x {gpu.sms} = {gpu.shared_kb * gpu.sms / 1024:.0f} MB",
             f"{SHARED_BYTES_PER_CLOCK * gpu.sms * gpu.clock_ghz / 1e3:.0f} TB/s"),
            (f"{gpu.l2_mb} MB", l2),
            (f"{gpu.memory_gb} GB", f"{gpu.gb_per_s / 1e3:.1f} TB/s"),
            ("the machine's", f"{PCIE[name] / 1e3:.3f} TB/s each way")]


def memory_hierarchy():
    """A pyramid of five memories, smallest and fastest on top, with sizes and speeds of an A100 and an H200."""
    levels = {"registers": SRAM, "shared memory": SRAM, "L2 cache": "#C9C9C9", "HBM": HBM, "host memory": "white"}
    fig, ax = plt.subplots(figsize=(7.4, 4.1))
    for y, (level, colour) in enumerate(levels.items()):
        low, high = 0.75 + 0.45 * (y + 1), 0.75 + 0.45 * y
        ax.add_patch(plt.Polygon([(3.1 - high, -y), (3.1 + high, -y), (3.1 + low, -y - 0.94), (3.1 - low, -y - 0.94)],
                                 facecolor=colour, edgecolor=INK, linewidth=0.8))
        ax.text(3.1, -y - 0.47, level, ha="center", va="center", fontsize=10, fontweight="bold",
                color=ink_on(colour))
    for x, name in ((6.3, "A100 SXM 80GB"), (10.0, "H200 SXM")):
        ax.text(x, 0.35, name, fontsize=10.5, fontweight="bold", color=INK)
        for y, (size, speed) in enumerate(_hierarchy(name)):
            ax.text(x, -y - 0.3, size, fontsize=9.5, color=INK, va="center")
            ax.text(x, -y - 0.68, speed, fontsize=9.5, color=INK, va="center")
    for top, bottom, label in ((0, -1.94, "on each SM:\nSRAM"), (-2, -2.94, "shared by\nall SMs"),
                               (-3, -3.94, "on the card"), (-4, -4.94, "over PCIe")):
        ax.plot([0.02, -0.1, -0.1, 0.02], [top, top, bottom, bottom], color=INK, linewidth=0.8)
        ax.text(-0.2, (top + bottom) / 2, label, ha="right", va="center", fontsize=9, color=INK)
    ax.text(-1.9, -5.3, "Sizes and HBM speeds: data sheets and white papers; L2 of the H200: as its driver says.\n"
            "Shared memory: 128 bytes a clock and SM at boost clock. L2 of the A100: 5120 bytes a clock (white "
            "paper).\nPCIe: generation 4 and 5, 16 lanes.", fontsize=8.5, color=INK, va="top")
    ax.set(xlim=(-2, 13.4), ylim=(-6.6, 0.8))
    ax.axis("off")
    return fig


BLOCKS = 4


def _events(outer_keys: bool):
    """(step, matrix, "load" or "store") for each block that crosses HBM when the loops visit BLOCKS x BLOCKS tiles."""
    for step in range(BLOCKS**2):
        first, last = step % BLOCKS == 0, step % BLOCKS == BLOCKS - 1       # of a turn of the outer loop
        loaded = ("q", "o") + ("k", "v") * first if outer_keys else ("k", "v") + ("q",) * first
        yield from ((step, name, "load") for name in loaded)
        if outer_keys or last:
            yield step, "o", "store"


def _loops(ax, outer_keys):
    """The score matrix with the order of its tiles, its operands along the edges."""
    for n in range(BLOCKS):
        for x, y, colour, label in ((-1, n, QUERY, f"$q_{n}$"), (n, -1.7, KEY, f"$k_{n}$"), (n, -1, VALUE, f"$v_{n}$"),
                                    (BLOCKS + 0.15, n, OUTPUT, f"$o_{n}$")):
            wide, tall = (0.7, 0.9) if colour in (QUERY, OUTPUT) else (0.9, 0.6)
            ax.add_patch(plt.Rectangle((x + 0.05, y + 0.05), wide, tall, facecolor=colour, edgecolor="none"))
            ax.text(x + 0.05 + wide / 2, y + 0.05 + tall / 2, label, ha="center", va="center", fontsize=10,
                    color=ink_on(colour))
    for i in range(BLOCKS):
        for j in range(BLOCKS):
            outer, inner = (j, i) if outer_keys else (i, j)
            ax.add_patch(plt.Rectangle((j + 0.05, i + 0.05), 0.9, 0.9, facecolor=SRAM if outer % 2 == 0 else "white",
                                       edgecolor=INK, linewidth=0.8))
            ax.text(j + 0.5, i + 0.5, str(BLOCKS * outer + inner + 1), ha="center", va="center", fontsize=10, color=INK)
    ax.set(xlim=(-1.1, BLOCKS + 1.1), ylim=(BLOCKS + 0.1, -1.9), aspect="equal")
    ax.axis("off")


def _timeline(ax, outer_keys):
    """Which blocks cross between HBM and chip at which step: filled for a load, a white ring for a store."""
    events, colours = list(_events(outer_keys)), dict(q=QUERY, k=KEY, v=VALUE, o=OUTPUT)
    for row, (label, colour) in enumerate(colours.items()):
        ax.text(0.1, row, f"${label}$", ha="right", va="center", fontsize=10, color=INK)
        ax.axhline(row, 0.06, 1, color="#DDDDDD", linewidth=0.8, zorder=0)
        both = {"load", "store"} <= {kind for _, name, kind in events if name == label}
        for kind, shift in (("load", -0.22 * both), ("store", 0.22 * both)):
            x = [step + 1 for step, name, k in events if (name, k) == (label, kind)]
            ax.plot(x, [row + shift] * len(x), "o" if kind == "store" else "s", color=colour, markersize=6,
                    markerfacecolor="white" if kind == "store" else colour, markeredgewidth=1.6)
    loads = {name: sum((n, kind) == (name, "load") for _, n, kind in events) for name in colours}
    stores = len(events) - sum(loads.values())
    o = f"o {loads['o']} in, {stores} out" if loads["o"] else f"o {stores} out"
    ax.set_title(f"q {loads['q']}, k and v {loads['k']} each, {o}: {len(events)} blocks moved", fontsize=9.5,
                 loc="center", color=INK)
    ax.set(xlim=(-0.6, BLOCKS**2 + 0.6), ylim=(3.6, -0.6), yticks=[], xticks=range(1, BLOCKS**2 + 1))
    ax.tick_params(labelsize=8, length=2)
    ax.set_xlabel("step", fontsize=9)
    ax.spines["left"].set_visible(False)


def attention_tiling():
    """Tile orders of FlashAttention-1 and -2 over 4 x 4 tiles, and what each loads and stores at every step."""
    fig, axes = plt.subplots(2, 2, figsize=(7.4, 6), height_ratios=[3, 1.5])
    for column, (name, outer_keys) in enumerate((("FlashAttention-1: outer loop over keys", True),
                                                 ("FlashAttention-2: outer loop over queries", False))):
        _loops(axes[0, column], outer_keys)
        axes[0, column].set_title(name, fontsize=10, loc="center", fontweight="bold", color=INK)
        _timeline(axes[1, column], outer_keys)
    fig.supxlabel("squares are loaded, rings are stored; a turn of the outer loop has one shade; $m$ and $l$ "
                  "travel with $o$", fontsize=9, color=INK)
    return fig
