"""Two views side by side, the grids of their locations, and curved links between these.

The unit of a pair's axes is the first view's height; a smaller second view is drawn smaller, down to 0.6.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

from glsd.geometry import positions
from glsd.reporting.figures.canvas import FONT_SIZE, INK, MARGIN, TITLE, Image, LineStyle, halo, picture_panel, show

_BETWEEN = 0.3  # space between the two views
_SMALLEST = 0.6  # height of a small second view


class Pair(NamedTuple):
    """Two views in their axes."""

    axes: Axes
    corners: Float[np.ndarray, "2 2"]
    """(x, y) of each view's upper left corner in units of the axes."""
    scales: Float[np.ndarray, " 2"]
    """Units of the axes per pixel of each view."""

    def in_axes(self, ends: Float[np.ndarray, "links 2 2"]) -> Float[np.ndarray, "links 2 2"]:
        """[first (x, y), second (x, y)] in pixels of each view as points of the axes."""
        points: Float[np.ndarray, "links 2 2"] = self.corners + (ends + 0.5) * self.scales[:, None]
        return points


def cell_centers(view: Image, grid: tuple[int, int]) -> Float[np.ndarray, "locations 2"]:
    """Centres (x, y) of a view's locations in its own pixels: the positions of a crop that is the whole image."""
    height, width = view.shape[:2]
    whole = torch.tensor([0, 0, width, height, height, width, 0], dtype=torch.float32)
    centers: Float[np.ndarray, "locations 2"] = positions(whole, grid).flatten(0, 1).numpy()
    return centers


def pair_height(width: float) -> float:
    """Inches that `draw_pair` takes for two square views."""
    return TITLE + (width - 2 * MARGIN) / (2 + _BETWEEN) + MARGIN


def draw_pair(
    figure: Figure,
    left: float,
    top: float,
    width: float,
    views: tuple[Image, Image],
    grids: tuple[tuple[int, int], tuple[int, int]],
) -> Pair:
    """Two views and the borders of their locations at a place in inches; a line of text fits above them."""
    first, second = views
    heights = (1.0, max(_SMALLEST, min(1.0, second.shape[0] / first.shape[0])))
    widths = [height * view.shape[1] / view.shape[0] for height, view in zip(heights, views, strict=True)]
    corners = np.array([[0.0, 0.0], [widths[0] + _BETWEEN, (1 - heights[1]) / 2]])
    axes = picture_panel(figure, left + MARGIN, top + TITLE, width - 2 * MARGIN, pair_height(width) - TITLE - MARGIN)
    for view, (rows, columns), (x, y), view_width, height in zip(views, grids, corners, widths, heights, strict=True):
        show(axes, view, extent=(x, x + view_width, y + height, y))
        for row in range(1, rows):
            axes.plot([x, x + view_width], [y + row * height / rows] * 2, color="white", linewidth=0.4, alpha=0.5)
        for column in range(1, columns):
            axes.plot([x + column * view_width / columns] * 2, [y, y + height], color="white", linewidth=0.4, alpha=0.5)
    axes.set(xlim=(0, sum(widths) + _BETWEEN), ylim=(1, 0), aspect="equal")
    return Pair(axes, corners, np.array([height / view.shape[0] for height, view in zip(heights, views, strict=True)]))


def name_views(pair: Pair, names: tuple[str, str], between: str) -> None:
    """Words above both views and above the space between them."""
    boxes = [image.get_extent() for image in pair.axes.images]
    middles = [(left + right) / 2 for left, right, _, _ in boxes]
    for x, y, text in (
        (middles[0], boxes[0][3], names[0]),
        (boxes[0][1] + _BETWEEN / 2, 0.0, between),
        (middles[1], boxes[1][3], names[1]),
    ):
        pair.axes.text(x, y - 0.03, text, ha="center", va="bottom", fontsize=FONT_SIZE, color=INK)


class Look(NamedTuple):
    """What a link looks like."""

    color: str
    linestyle: LineStyle = "-"
    mark: str = "o"
    outline: str = "#00000070"


def draw_link(pair: Pair, ends: Float[np.ndarray, "2 2"], location: int, grid: tuple[int, int], look: Look) -> None:
    """A line between two points of the axes, with a mark at each.

    Lines of one row would lie on each other where both views show it level; they bow by the column of `location`,
    which is one of `grid`. Of two lines that cross, a dashed one is below.
    """
    color, linestyle, mark, outline = look
    first, second = ends
    bow = (0.5 - (location % grid[1] + 0.5) / grid[1]) * 0.9 / grid[0]
    middle = (first + second) / 2 + (0, bow)
    order = 2 if linestyle == "-" else 1.8
    pair.axes.add_patch(
        PathPatch(
            Curve([first, middle, second], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3]), fill=False, edgecolor=color,
            linewidth=1.0, linestyle=linestyle, path_effects=halo(1.7, outline), zorder=order, clip_on=False,
        )
    )  # fmt: skip
    for x, y in ends:
        pair.axes.plot(
            x, y, mark, markersize=3.4, color=color, markeredgecolor=INK, markeredgewidth=0.4, zorder=order + 1
        )
