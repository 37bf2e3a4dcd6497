"""Drawing: text that can be read on its ground, names at lines' ends that do not touch, twice the pixels."""
import base64
import re
import struct

import matplotlib.pyplot as plt
import pytest

from helpers import plotting

PALETTE = [getattr(plotting, name) for name in ("QUERY", "KEY", "VALUE", "OUTPUT", "HBM", "SRAM", "BAD", "INK")]


def test_contrast():
    assert plotting.contrast("black", "white") == pytest.approx(21)
    assert plotting.contrast("#E69F00", "white") == pytest.approx(2.25, abs=0.01)


@pytest.mark.parametrize("colour", PALETTE)
def test_text_can_be_read(colour):
    assert plotting.contrast(plotting.ink_on(colour), colour) >= 4.5
    assert plotting.contrast(plotting.as_ink(colour), "white") >= 4.5


def test_the_dark_colours_stay_as_they_are():
    assert plotting.as_ink(plotting.QUERY) == plotting.QUERY.lower() and plotting.ink_on(plotting.QUERY) == "white"


@pytest.fixture
def names_of():
    """Draws lines and gives the place of each name, bottom to top."""
    def draw(points, **scales):
        fig, ax = plt.subplots(figsize=(4, 3))
        ax.set(**scales)
        plotting.lines(ax, points, dict(zip(points, PALETTE)))
        fig.draw_without_rendering()
        boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
        colours = {text.get_text(): text.get_color() for text in ax.texts}
        plt.close(fig)
        return dict(sorted(boxes.items(), key=lambda item: item[1].y0)), colours
    yield draw


@pytest.mark.parametrize("scales", [dict(), dict(xscale="log"), dict(xscale="log", yscale="log")])
def test_names_do_not_touch(names_of, scales):
    ends = dict(a=1.0, b=1.01, c=1.02, d=5.0, e=5.0, f=9.0)
    boxes, colours = names_of({name: ([1, 10], [1, end]) for name, end in ends.items()}, **scales)
    found = list(boxes.values())
    assert all(below.y1 <= above.y0 + 0.5 for below, above in zip(found, found[1:]))
    assert list(boxes)[:3] == ["a", "b", "c"] and set(list(boxes)[3:5]) == {"d", "e"}    # in the order of the ends
    assert colours == {name: plotting.as_ink(colour) for name, colour in zip(ends, PALETTE)}


def test_a_name_stands_at_its_end_on_log_axes():
    fig, ax = plt.subplots()
    ax.set(xscale="log", yscale="log")
    plotting.lines(ax, {"a": ([1, 10], [1e3, 1e3]), "b": ([1, 10], [1e3, 1e5])}, dict(a="red", b="blue"))
    at = {text.get_text(): text.xyann[1] for text in ax.texts}
    assert at["a"] == pytest.approx(0.045, abs=0.01) and at["b"] == pytest.approx(0.955, abs=0.01)
    plt.close(fig)


def test_panels_stand_two_in_a_row():
    speed = {name: {512: 100.0, 16384: 100.0 * i} for i, name in enumerate("abc", 1)}
    for number, size in ((4, (7, 5.4)), (2, (7, 2.7)), (3, (7, 5.4))):
        fig = plotting.speed_panels({f"panel {i}": speed for i in range(number)}, dict(zip("abc", PALETTE)))
        assert tuple(fig.get_size_inches()) == pytest.approx(size) and len(fig.axes) == number
        named = [ax.get_title(loc="left") for ax in fig.axes if ax.texts]
        assert named == [f"panel {i}" for i in range(number) if i % 2 or i == number - 1]
        plt.close(fig)


def test_a_picture_has_twice_the_pixels_of_its_width(monkeypatch):
    published = []
    monkeypatch.setattr(plotting, "publish_display_data", published.append)
    fig = plt.figure(figsize=(3, 2))
    plotting.show(fig, 'N < 4, "small"')
    (data,) = published
    alt, shown, pixels = re.fullmatch(r'<img alt="(.*)" width="(\d+)" src="data:image/png;base64,(.*)">',
                                      data["text/html"]).groups()
    width, height = struct.unpack(">II", base64.b64decode(pixels)[16:24])
    assert (width, height, shown) == (600, 400, "300") and alt == "N &lt; 4, &quot;small&quot;"
    assert data["text/plain"] == 'Figure: N < 4, "small"' and set(data) == {"text/html", "text/plain"}
