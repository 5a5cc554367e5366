"""Figures of the method: crops (Fig. 6), training matchings (Fig. 3, 10, 11) and nearest neighbours.

Plain arrays in, a matplotlib `Figure` out; nothing touches pyplot's global state, so figures may be drawn in any
process. Colours are Okabe and Ito's, which the colour-blind tell apart, and none is needed to read a figure: it is said
by line style, mark or word as well. `links` is the data behind the lines of a matching. `preview` draws one image's
crops and geometric matchings from the settings alone, without a model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.patheffects import withStroke

from glsd.augment import Views, multicrop
from glsd.config import Config
from glsd.data.filesystems import replacing
from glsd.geometry import matching_threshold, positions
from glsd.matching import match_by_geometry

Image = UInt8[np.ndarray, "_ _ 3"]  # (height, width, RGB), of any size each

_BLUE, _ORANGE, _INK = "#0072B2", "#E69F00", "#222222"
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_DASHED = (0.0, (3.0, 2.0))
_WIDTH, _MARGIN, _GAP, _TITLE = 8.0, 0.08, 0.07, 0.2
"""Inches: the width of every figure, its border, the space between two pictures, and the height of a line of text."""


class MatchedPair(NamedTuple):
    """A teacher view, a student view, and which teacher location each student location is matched to."""

    teacher: Image
    student: Image
    teacher_grid: tuple[int, int]
    """(H, W) of the teacher's feature map."""
    student_grid: tuple[int, int]
    """(H, W) of the student's feature map."""
    k_star: Int64[np.ndarray, " locations"]
    """Teacher location of each student location, both flattened over (H, W)."""
    keep: Bool[np.ndarray, " locations"]
    """Matches that count: 1{d < s} in Eq. 10."""
    teacher_name: str = "teacher"
    student_name: str = "student"


def links(pair: MatchedPair) -> Float[np.ndarray, "locations 2 2"]:
    """Both ends of the line of every student location: [teacher (x, y), student (x, y)], in pixels of each view."""
    teacher = _cell_centers(pair.teacher, pair.teacher_grid)
    student = _cell_centers(pair.student, pair.student_grid)
    return np.stack([teacher[pair.k_star], student], axis=1)


def geometric_pair(
    views: Views,
    teacher: int,
    student: int,
    teacher_grid: tuple[int, int],
    student_grid: tuple[int, int],
    threshold_scale: float | None = 1.0,
) -> MatchedPair:
    """The geometric matching (Eq. 6) of two views of one image, which training would use; None keeps every match."""
    geo_t, geo_s = torch.from_numpy(views.geo[[teacher, student]])
    matches = match_by_geometry(
        positions(geo_s, student_grid),
        positions(geo_t, teacher_grid),
        (torch.inf if threshold_scale is None else threshold_scale)
        * matching_threshold(geo_s, student_grid, geo_t, teacher_grid),
    )
    crops, names = view_crops(views), view_names(len(views.geo))
    return MatchedPair(
        crops[teacher],
        crops[student],
        teacher_grid,
        student_grid,
        matches.k_star.numpy(),
        matches.keep.numpy(),
        f"teacher: {names[teacher]}",
        f"student: {names[student]}",
    )


def view_crops(views: Views) -> list[Image]:
    """The crops of all views in order: g1, g2, locals."""
    return [*views.global_crops, *(crop for group in views.local_crops for crop in group)]


def view_names(num_views: int) -> list[str]:
    """Names of the views in order.

    >>> view_names(4)
    ['global 1', 'global 2', 'local 1', 'local 2']
    """
    return ["global 1", "global 2", *(f"local {number}" for number in range(1, num_views - 1))]


def draw_crops(
    images: Sequence[Image],
    geos: Sequence[Float[np.ndarray, "views 7"]],
    crops: Sequence[Sequence[Image]] | None = None,
) -> Figure:
    """Images with the boxes of their views, globals thick and full, locals thin and dashed (Fig. 6).

    With `crops` (the views of each image, in order) each image has a row, its crops beside it; without, images stand
    in a grid.
    """
    if crops is not None:
        heights = [_crops_row_height(len(views)) for views in crops]
        figure = _figure(sum(heights))
        for row, (image, geo, views) in enumerate(zip(images, geos, crops, strict=True)):
            _draw_crops_row(figure, sum(heights[:row], start=0.0), image, geo, views)
        return figure
    columns = min(len(images), 3 if len(images) % 3 == 0 else 4)
    width = (_WIDTH - 2 * _MARGIN + _GAP) / columns - _GAP
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [width * max(image.shape[0] / image.shape[1] for image in row) + _GAP for row in rows]
    figure = _figure(2 * _MARGIN - _GAP + sum(heights))
    for index, (image, geo) in enumerate(zip(images, geos, strict=True)):
        row, column = divmod(index, columns)
        left, top = _MARGIN + column * (width + _GAP), _MARGIN + sum(heights[:row])
        _draw_boxes(_panel(figure, left, top, width, heights[row] - _GAP), image, geo)
    return figure


def draw_matchings(pairs: Sequence[MatchedPair]) -> Figure:
    """Pairs of views, each location of the student's grid (right) linked to its teacher location (Fig. 3, 10, 11).

    A location whose match does not count has a hollow mark and no line. Colours only tell matchings apart.
    """
    columns = min(len(pairs), 2)
    height = _matching_height(columns)
    figure = _figure(height * -(-len(pairs) // columns))
    for index, pair in enumerate(pairs):
        row, column = divmod(index, columns)
        _draw_matching(figure, column * _WIDTH / columns, row * height, _WIDTH / columns, pair)
    return figure


def draw_neighbours(
    queries: Sequence[Image],
    query_labels: Sequence[str],
    neighbours: Sequence[Sequence[Image]],
    neighbour_labels: Sequence[Sequence[str]],
    similarities: Float[np.ndarray, "queries k"],
) -> Figure:
    """Each query (left) with its nearest neighbours, nearest first, their labels and cosine similarities.

    A neighbour of the query's class has a tick and a full frame, another a cross and a dashed one. Images are cut to
    their central square.
    """
    num_neighbours = len(neighbours[0])
    apart = 3 * _GAP  # between the queries and their neighbours
    side = (_WIDTH - 2 * _MARGIN - apart) / (num_neighbours + 1) - _GAP
    figure = _figure(len(queries) * (side + _TITLE + _GAP) + _MARGIN - _GAP)
    for row, (query, query_label) in enumerate(zip(queries, query_labels, strict=True)):
        top = row * (side + _TITLE + _GAP) + _TITLE
        axes = _panel(figure, _MARGIN, top, side, side)
        _show(axes, _central_square(query))
        _title(axes, _shortened(query_label, side), weight="bold")
        for rank, (neighbour, label) in enumerate(zip(neighbours[row], neighbour_labels[row], strict=True)):
            axes = _panel(figure, _MARGIN + apart + (rank + 1) * (side + _GAP), top, side, side)
            _show(axes, _central_square(neighbour))
            same = label == query_label
            _frame(axes, _BLUE if same else _ORANGE, "-" if same else _DASHED)
            _title(axes, f"{'✓' if same else '✗'} {_shortened(label, side - 0.5)}  {similarities[row, rank]:.2f}")
    return figure


def preview(
    image: Image,
    config: Config,
    seed: int = 0,
    epoch: int = 0,
    image_id: int = 0,
    stride: int = 32,
) -> Figure:
    """Crops of one image and the geometric matchings of (g1, g2) and of (g1, a local crop), as training draws them.

    Feature maps are taken to be `stride` times smaller than their crops, as those of Swin and ResNet are, so no model
    is built. The local crop shown is the one with the largest share of matches that count.
    """
    views = multicrop(image, config.augment, seed, epoch, image_id)
    crops = view_crops(views)
    grids = [(-(-crop.shape[0] // stride), -(-crop.shape[1] // stride)) for crop in crops]
    scale = config.objective.threshold_scale
    pairs = [geometric_pair(views, 0, view, grids[0], grids[view], scale) for view in range(1, len(crops))]
    shown = [pairs[0], *sorted(pairs[1:], key=lambda pair: -pair.keep.mean())[:1]]
    top, bottom = _crops_row_height(len(crops)), _matching_height(len(shown))
    figure = _figure(top + bottom)
    _draw_crops_row(figure, 0.0, image, views.geo, crops)
    for column, pair in enumerate(shown):
        _draw_matching(figure, column * _WIDTH / len(shown), top, _WIDTH / len(shown), pair)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a PNG of 200 dpi, under its name only once it is whole; an older one is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        figure.savefig(stream, format="png", dpi=200)
    return path


def _figure(height: float) -> Figure:
    return Figure(figsize=(_WIDTH, height), facecolor="white")


def _panel(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Empty axes at a place in inches from the figure's upper left corner."""
    total = figure.get_figheight()
    axes = figure.add_axes((left / _WIDTH, 1 - (top + height) / total, width / _WIDTH, height / total))
    axes.set_axis_off()
    return axes


def _show(axes: Axes, image: Image, extent: tuple[float, float, float, float] | None = None) -> None:
    # A small crop is enlarged smoothly; the default would show its pixels as squares.
    axes.imshow(image, interpolation="bicubic" if image.shape[0] < 200 else "antialiased", extent=extent)


def _title(
    axes: Axes, text: str, weight: Literal["normal", "bold"] = "normal", loc: Literal["center", "left"] = "center"
) -> None:
    axes.set_title(text, loc=loc, fontsize=7.5, fontweight=weight, color=_INK, pad=3.5)


def _frame(axes: Axes, color: str, linestyle: str | tuple[float, tuple[float, ...]], linewidth: float = 2.0) -> None:
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    axes.add_patch(
        Rectangle(
            (left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=linewidth,
            linestyle=linestyle, joinstyle="miter", clip_on=False,
        )
    )  # fmt: skip


def _shortened(label: str, width: float) -> str:
    """A label that fits into this many inches."""
    length = int(width / 0.068)
    return label if len(label) <= length else label[: length - 1] + "…"


def _central_square(image: Image) -> Image:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _draw_boxes(axes: Axes, image: Image, geo: Float[np.ndarray, "views 7"], numbered: bool = False) -> None:
    _show(axes, image)
    for view in reversed(range(len(geo))):
        left, top, right, bottom = (geo[view, :4] - 0.5).tolist()  # a box's edges lie between pixels
        is_global = view < 2
        width = 2.2 if is_global else 0.9
        axes.add_patch(
            Rectangle(
                (left, top), right - left, bottom - top, fill=False, linewidth=width, joinstyle="miter",
                edgecolor=(_BLUE, _ORANGE)[view] if is_global else "white", linestyle="-" if is_global else _DASHED,
                path_effects=[withStroke(linewidth=width + 0.8, foreground="#00000080")], clip_on=False,
            )
        )  # fmt: skip
        if numbered and not is_global:
            _number(axes, (left, top), view - 1)


def _number(axes: Axes, corner: tuple[float, float], number: int) -> None:
    axes.annotate(
        str(number), corner, xytext=(2.5, -2), textcoords="offset points", ha="left", va="top", fontsize=6,
        color="white", path_effects=[withStroke(linewidth=1.4, foreground="#000000B0")],
    )  # fmt: skip


def _crops_row_side(num_views: int) -> float:
    """Inches of a global crop's side, so that the row fills the figure's width; local crops stand in two rows."""
    columns = -(-(num_views - 2) // 2)
    gaps = 2 + columns / 2 if columns else 2
    return (_WIDTH - 2 * _MARGIN - gaps * _GAP) / (_IMAGE_ASPECT + 2 + columns / 2)


_IMAGE_ASPECT = 4 / 3  # width over height of the space for the original image


def _crops_row_height(num_views: int) -> float:
    return _TITLE + _crops_row_side(num_views) + _MARGIN


def _draw_crops_row(
    figure: Figure, top: float, image: Image, geo: Float[np.ndarray, "views 7"], crops: Sequence[Image]
) -> None:
    """The image with its boxes, both global crops, and the local crops, numbered as their boxes are."""
    side, top = _crops_row_side(len(crops)), top + _TITLE
    axes = _panel(figure, _MARGIN, top, _IMAGE_ASPECT * side, side)
    _draw_boxes(axes, image, geo, numbered=True)
    left = _MARGIN + _IMAGE_ASPECT * side + _GAP
    for view in (0, 1):
        axes = _panel(figure, left, top, side, side)
        _show(axes, crops[view])
        _frame(axes, (_BLUE, _ORANGE)[view], "-", 2.2)
        _title(axes, view_names(2)[view])
        left += side + _GAP
    small = (side - _GAP) / 2
    columns = -(-(len(crops) - 2) // 2)
    for index, crop in enumerate(crops[2:]):
        row, column = divmod(index, columns)
        axes = _panel(figure, left + column * (small + _GAP), top + row * (small + _GAP), small, small)
        _show(axes, crop)
        _number(axes, (-0.5, -0.5), index + 1)
        if index == 0:
            _title(axes, "local crops", loc="left")


def _cell_centers(view: Image, grid: tuple[int, int]) -> Float[np.ndarray, "locations 2"]:
    """Centres (x, y) of a view's locations in its own pixels: the positions of a crop that is the whole image."""
    height, width = view.shape[:2]
    whole = torch.tensor([0, 0, width, height, height, width, 0], dtype=torch.float32)
    return positions(whole, grid).flatten(0, 1).numpy()


_BETWEEN = 0.3  # space between the two views of a pair, in heights of the teacher's


def _matching_height(columns: int) -> float:
    return _TITLE + (_WIDTH / columns - 2 * _MARGIN) / (2 + _BETWEEN) + _MARGIN


def _draw_matching(figure: Figure, left: float, top: float, width: float, pair: MatchedPair) -> None:
    """Both views in coordinates whose unit is the teacher view's height; a smaller student view is drawn smaller."""
    views, grids = (pair.teacher, pair.student), (pair.teacher_grid, pair.student_grid)
    heights = (1.0, max(0.6, min(1.0, pair.student.shape[0] / pair.teacher.shape[0])))
    widths = [height * view.shape[1] / view.shape[0] for height, view in zip(heights, views, strict=True)]
    total = sum(widths) + _BETWEEN
    corners = np.array([[0.0, 0.0], [widths[0] + _BETWEEN, (1 - heights[1]) / 2]])
    scales = np.array([height / view.shape[0] for height, view in zip(heights, views, strict=True)])

    axes = _panel(figure, left + _MARGIN, top + _TITLE, width - 2 * _MARGIN, (width - 2 * _MARGIN) / (2 + _BETWEEN))
    for view, grid, name, corner, view_width, height in zip(
        views, grids, (pair.teacher_name, pair.student_name), corners, widths, heights, strict=True
    ):
        x, y = corner
        _show(axes, view, extent=(x, x + view_width, y + height, y))
        for row in range(1, grid[0]):
            axes.plot([x, x + view_width], [y + row * height / grid[0]] * 2, color="white", linewidth=0.4, alpha=0.5)
        for column in range(1, grid[1]):
            axes.plot([x + column * view_width / grid[1]] * 2, [y, y + height], color="white", linewidth=0.4, alpha=0.5)
        axes.text(x + view_width / 2, y - 0.03, name, ha="center", va="bottom", fontsize=7.5, color=_INK)
    axes.set(xlim=(0, total), ylim=(1, 0), aspect="equal")

    ends = corners + (links(pair) + 0.5) * scales[:, None]  # (K_s, 2, 2) in units of the axes
    for location, (teacher, student) in enumerate(ends):
        if not pair.keep[location]:
            halo = [withStroke(linewidth=1.5, foreground="#000000B0")]
            axes.plot(*student, "o", markersize=2.8, mfc="none", mec="white", mew=0.7, zorder=3, path_effects=halo)
            continue
        row, column = divmod(location, pair.student_grid[1])
        color = _PALETTE[(column + 3 * row) % len(_PALETTE)]
        # Lines of one row would lie on each other where both views show it level; they bow by their column instead.
        bow = (0.5 - (column + 0.5) / pair.student_grid[1]) * 0.9 / pair.student_grid[0]
        middle = (teacher + student) / 2 + (0, bow)
        axes.add_patch(
            PathPatch(
                Curve([teacher, middle, student], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3]), fill=False,
                edgecolor=color, linewidth=1.0, path_effects=[withStroke(linewidth=1.6, foreground="#00000070")],
                zorder=2, clip_on=False,
            )
        )  # fmt: skip
        for x, y in (teacher, student):
            axes.plot(x, y, "o", markersize=3.2, color=color, markeredgecolor=_INK, markeredgewidth=0.4, zorder=3)
