"""What all figures share: their colours and measures, panels placed in inches, and the file they become.

Colours are Okabe and Ito's, which the colour-blind tell apart, and none is needed to read a figure: it is said by line
style, mark or word as well. Nothing touches pyplot's global state, so figures may be drawn in any process.
"""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
import matplotlib.font_manager as font_manager
import numpy as np
from jaxtyping import UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.text import Text

from glsd.storage.files import write
from glsd.storage.uris import absolute, unquote_key

Image = UInt8[np.ndarray, "_ _ 3"]  # (height, width, RGB), of any size each
LineStyle = Literal["-"] | tuple[float, tuple[float, ...]]

BLUE, ORANGE, INK, GREY = "#0072B2", "#E69F00", "#222222", "#BBBBBB"
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
DASHED: LineStyle = (0.0, (3.0, 2.0))
WIDTH, MARGIN, GAP, TITLE = 8.0, 0.08, 0.07, 0.2
"""Inches: the width of every figure, its border, the space between two pictures, and the height of a line of text."""
FONT_SIZE = 7.5
_FONTS = ["DejaVu Sans"] + [
    name
    for name in (
        *("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo"),
        *("Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    )
    if name in font_manager.get_font_names()
]
"""The font of all text, and what there is of those that have the letters of Chinese, Japanese and Korean classes."""
_DPI = 200
_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG[1:-1])
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
_THEME = {
    **{"#0072b2": "var(--c0)", "#d55e00": "var(--c1)", "#009e73": "var(--c2)", "#cc79a7": "var(--c3)"},
    **{"#222222": "var(--ink)", "#000000": "var(--ink)", "#e4e4e4": "var(--rule)", "#ffffff": "var(--card)"},
}
"""Colours of figures as variables of a page's style sheet, which are other ones in the dark."""


def blank_figure(height: float) -> Figure:
    """A white figure of the common width and this many inches of height."""
    return Figure(figsize=(WIDTH, height), facecolor="white")


def panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def picture_panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """A panel for images: it has no axis to be seen."""
    axes = panel(figure, left, top, width, height)
    axes.set_axis_off()
    axes.set(xticks=[], yticks=[])  # matplotlib would make those that no one sees whenever it walks the figure
    return axes


def show(axes: Axes, image: Image, extent: tuple[float, float, float, float] | None = None) -> None:
    """Draw an image; a small one is enlarged smoothly, where the default would show its pixels as squares."""
    axes.imshow(image, interpolation="bicubic" if image.shape[0] < 200 else "antialiased", extent=extent)


def heading(
    axes: Axes,
    text: str,
    weight: Literal["normal", "bold"] = "normal",
    loc: Literal["center", "left", "right"] = "center",
) -> None:
    """A line above a panel, as it is: a class may be called $a$."""
    axes.set_title(text, loc=loc, fontsize=FONT_SIZE, fontweight=weight, color=INK, pad=3.5, parse_math=False)


def legend(owner: Axes | Figure, artists: Sequence[Artist], names: Sequence[str], width: float, **place: Any) -> None:
    """What the artists stand for, each name as it is in at most this many inches; `place` as matplotlib takes it."""
    drawn = owner.legend(
        artists,
        [shortened(name, width) for name in names],
        fontsize=FONT_SIZE,
        labelcolor=INK,
        frameon=False,
        borderpad=0.2,
        **place,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)


def frame(
    axes: Axes,
    color: str,
    linestyle: LineStyle,
    linewidth: float = 2.0,
    box: Sequence[float] | None = None,
    outline: Sequence[AbstractPathEffect] = (),
) -> None:
    """A line around what the axes show, or around a box (left, top, right, bottom)."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    left, top, right, bottom = box or (left, top, right, bottom)
    axes.add_patch(
        Rectangle(
            (left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=linewidth,
            linestyle=linestyle, joinstyle="miter", clip_on=False, path_effects=outline,
        )
    )  # fmt: skip


def halo(linewidth: float, color: str) -> list[AbstractPathEffect]:
    """A wider line beneath a line or a letter, which keeps it legible on any image."""
    return [withStroke(linewidth=linewidth, foreground=color)]


def shortened(label: str, width: float) -> str:
    """A label that fits into this many inches."""
    length = int(width / 0.068)
    return label if len(label) <= length else label[: length - 1] + "…"


def save_figure(figure: Figure, path: str | Path) -> str:
    """Write a PNG of 200 dpi or an SVG, as the suffix of the path or URI says; an older file is replaced once this one
    is whole.

    Raises:
        ValueError: the path ends neither in .png nor in .svg.
    """
    uri = absolute(path)
    kind = Path(unquote_key(uri)).suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise ValueError(f"{path}: a figure is written as .png or .svg")
    write(uri, figure_bytes(figure, kind))
    return str(path)


def save_png_and_svg(figure: Figure, stem: str | Path) -> tuple[Path, Path]:
    """Write a figure twice: `stem`.png for the screen, `stem`.svg for print."""
    return Path(save_figure(figure, f"{stem}.png")), Path(save_figure(figure, f"{stem}.svg"))


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a PNG file of 200 dpi or an SVG file; the same figure gives the same bytes.

    An SVG keeps text as text, so that it can be searched and edited.
    """
    for text in figure.findobj(Text):
        text.set_fontfamily(_FONTS)
    # Photographs hardly shrink by a higher compression.
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"pil_kwargs": {"compress_level": 1}}
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "glsd", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a PNG shows a box; an SVG keeps the letter
        figure.savefig(stream, format=kind, dpi=_DPI, **options)
    return stream.getvalue()


def inline_svg(figure: Figure, label: str, hints: Sequence[str] = ()) -> str:
    """The figure as an SVG element in the colours of the page around it; nothing in it is clipped.

    `label` is said instead of it, and `hints` are texts for the marks of the lines whose gid is `hints`, in order.
    """
    for artist in figure.findobj():
        artist.set_clip_on(False)
    root = ElementTree.fromstring(figure_bytes(figure, "svg"))
    for name in ("metadata", "defs"):  # where the figure comes from, and a style sheet for the whole page
        root.remove(root.find(f"{_SVG}{name}"))  # type: ignore[arg-type]
    marks = (mark for group in root.iterfind(f".//{_SVG}g[@id='hints']") for mark in group.iter(f"{_SVG}use"))
    for mark, hint in zip(marks, hints, strict=True):
        ElementTree.SubElement(mark, f"{_SVG}title").text = hint
    for element in root.iter():
        if element.tag == f"{_SVG}g":
            element.attrib.pop("id", None)  # other figures of the page have the same
        if style := element.get("style"):
            element.set("style", re.sub("#[0-9a-f]{6}", lambda color: _THEME.get(color[0], color[0]), style))
        for name in {"d", "x", "y", "transform"} & element.attrib.keys():
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[name]))
    root.attrib = {"class": "chart", "viewBox": root.get("viewBox", ""), "role": "img", "aria-label": label}
    return re.sub(r"\n\s*", "", ElementTree.tostring(root, "unicode"))
