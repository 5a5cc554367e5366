"""Two views side by side, the grids of their locations, and curved links between these.

The unit of a pair's axes is the first view's height; a smaller second view is drawn smaller, down to 0.6.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

from glsd.geometry import positions
from glsd.reporting.figures.canvas import FONT_SIZE, INK, MARGIN, TITLE, Image, LineStyle, halo, picture_panel, show

_BETWEEN = 0.3  # space between the two views
_SMALLEST = 0.6  # height of a small second view


class Links(NamedTuple):
    """Two views, and pairs of a location of each that belong together."""

    views: tuple[Image, Image]
    grids: tuple[tuple[int, int], tuple[int, int]]
    """(H, W) of each view's feature map."""
    locations: Int64[np.ndarray, "links 2"]
    """The location of each view, flattened over (H, W)."""
    source: Literal[0, 1]
    """The view whose locations have one link at most."""

    def ends(self) -> Float[np.ndarray, "links 2 2"]:
        """[first (x, y), second (x, y)] of every link, in pixels of each view."""
        centers = map(_cell_centers, self.views, self.grids)
        return np.stack([own[index] for own, index in zip(centers, self.locations.T, strict=True)], axis=1)


class Pair(NamedTuple):
    """The drawn views of links, and the ends of these as points of the axes."""

    axes: Axes
    links: Links
    ends: Float[np.ndarray, "links 2 2"]


def pair_height(width: float) -> float:
    """Inches that `draw_pair` takes for two square views."""
    return TITLE + (width - 2 * MARGIN) / (2 + _BETWEEN) + MARGIN


def draw_pair(figure: Figure, left: float, top: float, width: float, links: Links) -> Pair:
    """Two views and the borders of their locations at a place in inches; a line of text fits above them."""
    first, second = views = links.views
    heights = (1.0, max(_SMALLEST, min(1.0, second.shape[0] / first.shape[0])))
    widths = [height * view.shape[1] / view.shape[0] for height, view in zip(heights, views, strict=True)]
    corners = np.array([[0.0, 0.0], [widths[0] + _BETWEEN, (1 - heights[1]) / 2]])
    axes = picture_panel(figure, left + MARGIN, top + TITLE, width - 2 * MARGIN, pair_height(width) - TITLE - MARGIN)
    shown = zip(views, links.grids, corners, widths, heights, strict=True)
    for view, (rows, columns), (x, y), view_width, height in shown:
        show(axes, view, extent=(x, x + view_width, y + height, y))
        for row in range(1, rows):
            axes.plot([x, x + view_width], [y + row * height / rows] * 2, color="white", linewidth=0.4, alpha=0.5)
        for column in range(1, columns):
            axes.plot([x + column * view_width / columns] * 2, [y, y + height], color="white", linewidth=0.4, alpha=0.5)
    axes.set(xlim=(0, sum(widths) + _BETWEEN), ylim=(1, 0), aspect="equal")
    per_pixel = np.array([[height / view.shape[0]] for height, view in zip(heights, views, strict=True)])
    return Pair(axes, links, corners + (links.ends() + 0.5) * per_pixel)


def name_views(axes: Axes, names: tuple[str, str], between: str) -> None:
    """Words above both views and above the space between them."""
    boxes = [image.get_extent() for image in axes.images]
    middles = [(left + right) / 2 for left, right, _, _ in boxes]
    for x, y, text in (
        (middles[0], boxes[0][3], names[0]),
        (boxes[0][1] + _BETWEEN / 2, 0.0, between),
        (middles[1], boxes[1][3], names[1]),
    ):
        axes.text(x, y - 0.03, text, ha="center", va="bottom", fontsize=FONT_SIZE, color=INK)


class Look(NamedTuple):
    """What a link looks like."""

    color: str
    linestyle: LineStyle = "-"
    mark: str = "o"
    outline: str = "#00000070"


def draw_link(pair: Pair, index: int, look: Look) -> None:
    """A line between the ends of a link, with a mark at each.

    Lines of one row would lie on each other where both views show it level; they bow by the column of their source. Of
    two lines that cross, a dashed one is below.
    """
    color, linestyle, mark, outline = look
    first, second = pair.ends[index]
    rows, columns = pair.links.grids[pair.links.source]
    column = pair.links.locations[index, pair.links.source] % columns
    middle = (first + second) / 2 + (0, (0.5 - (column + 0.5) / columns) * 0.9 / rows)
    order = 2 if linestyle == "-" else 1.8
    pair.axes.add_patch(
        PathPatch(
            Curve([first, middle, second], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3]), fill=False, edgecolor=color,
            linewidth=1.0, linestyle=linestyle, path_effects=halo(1.7, outline), zorder=order, clip_on=False,
        )
    )  # fmt: skip
    for x, y in (first, second):
        pair.axes.plot(
            x, y, mark, markersize=3.4, color=color, markeredgecolor=INK, markeredgewidth=0.4, zorder=order + 1
        )


def _cell_centers(view: Image, grid: tuple[int, int]) -> Float[np.ndarray, "locations 2"]:
    """Centres (x, y) of a view's locations in its own pixels: the positions of a crop that is the whole image."""
    height, width = view.shape[:2]
    whole = torch.tensor([0, 0, width, height, height, width, 0], dtype=torch.float32)
    centers: Float[np.ndarray, "locations 2"] = positions(whole, grid).flatten(0, 1).numpy()
    return centers
