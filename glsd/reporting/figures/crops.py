"""Crop boxes (Fig. 6): where the views of an image lie in it, and the views themselves."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glsd.augment.multicrop import Views
from glsd.reporting.figures import canvas
from glsd.reporting.figures.canvas import BLUE, DASHED, GAP, MARGIN, ORANGE, TITLE, WIDTH, Image

_IMAGE_ASPECT = 4 / 3  # width over height of the space for the original image


def view_crops(views: Views) -> list[Image]:
    """The crops of all views in order: g1, g2, locals."""
    return [*views.global_crops, *(crop for group in views.local_crops for crop in group)]


def view_names(num_views: int) -> list[str]:
    """Names of the views in order.

    >>> view_names(4)
    ['global 1', 'global 2', 'local 1', 'local 2']
    """
    return ["global 1", "global 2", *(f"local {number}" for number in range(1, num_views - 1))]


def draw_crops(images: Sequence[Image], geos: Sequence[Float[np.ndarray, "views 7"]]) -> Figure:
    """Images in a grid with the boxes of their views, globals thick and full, locals thin and dashed (Fig. 6)."""
    columns = min(len(images), 3 if len(images) % 3 == 0 else 4)
    width = (WIDTH - 2 * MARGIN + GAP) / columns - GAP
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [width * max(image.shape[0] / image.shape[1] for image in row) + GAP for row in rows]
    figure = canvas.blank_figure(2 * MARGIN - GAP + sum(heights))
    for index, (image, geo) in enumerate(zip(images, geos, strict=True)):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * (width + GAP), MARGIN + sum(heights[:row])
        _draw_boxes(canvas.picture_panel(figure, left, top, width, heights[row] - GAP), image, geo)
    return figure


def crops_row_height(num_views: int) -> float:
    """Inches that `draw_crops_row` takes."""
    return TITLE + _side(num_views) + MARGIN


def draw_crops_row(
    figure: Figure, top: float, image: Image, geo: Float[np.ndarray, "views 7"], crops: Sequence[Image]
) -> None:
    """The image with its boxes, both global crops, and the local crops, numbered as their boxes are."""
    side, top = _side(len(crops)), top + TITLE
    axes = canvas.picture_panel(figure, MARGIN, top, _IMAGE_ASPECT * side, side)
    _draw_boxes(axes, image, geo, numbered=True)
    left = MARGIN + _IMAGE_ASPECT * side + GAP
    for view in (0, 1):
        axes = canvas.picture_panel(figure, left, top, side, side)
        canvas.show(axes, crops[view])
        canvas.frame(axes, (BLUE, ORANGE)[view], "-", 2.2)
        canvas.heading(axes, view_names(2)[view])
        left += side + GAP
    small = (side - GAP) / 2
    columns = -(-(len(crops) - 2) // 2)
    for index, crop in enumerate(crops[2:]):
        row, column = divmod(index, columns)
        axes = canvas.picture_panel(figure, left + column * (small + GAP), top + row * (small + GAP), small, small)
        canvas.show(axes, crop)
        _number(axes, (-0.5, -0.5), index + 1)
        if index == 0:
            canvas.heading(axes, "local crops", loc="left")


def _side(num_views: int) -> float:
    """Inches of a global crop's side, so that the row fills the figure's width; local crops stand in two rows."""
    columns = -(-(num_views - 2) // 2)
    gaps = 2 + columns / 2 if columns else 2
    return (WIDTH - 2 * MARGIN - gaps * GAP) / (_IMAGE_ASPECT + 2 + columns / 2)


def _draw_boxes(axes: Axes, image: Image, geo: Float[np.ndarray, "views 7"], numbered: bool = False) -> None:
    canvas.show(axes, image)
    for view in reversed(range(len(geo))):
        box = (geo[view, :4] - 0.5).tolist()  # a box's edges lie between pixels
        color, linestyle, width = ((BLUE, ORANGE)[view], "-", 2.2) if view < 2 else ("white", DASHED, 0.9)
        canvas.frame(axes, color, linestyle, width, box, canvas.halo(width + 0.8, "#00000080"))
        if numbered and view >= 2:
            _number(axes, (box[0], box[1]), view - 1)


def _number(axes: Axes, corner: tuple[float, float], number: int) -> None:
    axes.annotate(
        str(number), corner, xytext=(2.5, -2), textcoords="offset points", ha="left", va="top", fontsize=6,
        color="white", path_effects=canvas.halo(1.4, "#000000B0"),
    )  # fmt: skip
