"""A map of the features in the plane, by principal components or by UMAP (not in the paper)."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from matplotlib.figure import Figure

from glsd.reporting.figures.canvas import FONT_SIZE, GREY, INK, MARGIN, PALETTE, WIDTH, blank_figure, legend, panel

_MARKS = "osD^vPX<>*hp"
"""One for each class that has a colour; with seven colours no two of them are alike."""
_SIDE, _AXIS = 5.6, 0.3  # inches of the map, and of the words at its left and below it
_MOST_POINTS = 4000


class Components(NamedTuple):
    """Rows in the coordinates of their first principal components."""

    scores: Float[np.ndarray, "rows num"]
    explained: Float[np.ndarray, " num"]
    """Share of the variance along each."""


def principal_components(features: Float[np.ndarray, "rows dim"], num: int) -> Components:
    """The first principal components: eigenvectors of the covariance, those of the largest eigenvalues first.

    A component's sign is arbitrary; here its loading of largest magnitude is positive.
    """
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    variance, axes = np.linalg.eigh(centred.T @ centred)
    variance, axes = variance[::-1], axes[:, ::-1][:, :num]
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0))
    return Components(centred @ axes, variance[:num] / max(variance.sum(), np.finfo(np.float64).tiny))


def umap_available() -> bool:
    """Whether umap-learn is installed (the extra `umap`)."""
    return find_spec("umap") is not None


def draw_feature_map(
    features: Float[np.ndarray, "rows dim"],
    labels: Integer[np.ndarray, " rows"] | None = None,
    class_names: Sequence[str] | None = None,
    method: Literal["pca", "umap"] = "pca",
) -> Figure:
    """L2-normalised features in the plane, classes told apart by mark and colour.

    The twelve most frequent classes have their own; others are small grey dots. At most 4,000 rows are drawn, evenly
    spread over all. `features` are z̄ of three or more images. Classes without names are called by their numbers.
    "umap" needs umap-learn (see `umap_available`); its axes have no meaning.
    """
    shown = np.linspace(0, len(features) - 1, min(len(features), _MOST_POINTS)).round().astype(np.int64)
    unit = features[shown].astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    if method == "pca":
        xy, explained = principal_components(unit, 2)
        axis_names = [f"component {i + 1}: {100 * share:.1f} % of the variance" for i, share in enumerate(explained)]
    else:
        xy, axis_names = _umap(unit), ["UMAP 1", "UMAP 2"]

    figure = blank_figure(_SIDE + _AXIS + MARGIN)
    axes = panel(figure, _AXIS, MARGIN, _SIDE if labels is not None else WIDTH - _AXIS - MARGIN, _SIDE)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.set_xlabel(axis_names[0], fontsize=FONT_SIZE, color=INK)
    axes.set_ylabel(axis_names[1], fontsize=FONT_SIZE, color=INK)
    size = float(np.clip(20000 / len(xy), 10, 30))
    if labels is None:
        axes.scatter(xy[:, 0], xy[:, 1], s=size / 2, color=PALETTE[4], linewidth=0, alpha=0.7)
        return figure
    classes, counts = np.unique(labels[shown], return_counts=True)
    frequent = classes[np.argsort(-counts, kind="stable")][: len(_MARKS)].tolist()
    handles, names = [], [str(label) if class_names is None else class_names[label] for label in frequent]
    for rank, label in enumerate(frequent):
        of_class = xy[labels[shown] == label]
        drawn = axes.scatter(
            of_class[:, 0], of_class[:, 1], s=size, marker=_MARKS[rank], color=PALETTE[rank % len(PALETTE)],
            edgecolor=INK, linewidth=0.3, alpha=0.85,
        )  # fmt: skip
        handles.append(drawn)
    if len(classes) > len(frequent):
        others = xy[~np.isin(labels[shown], frequent)]
        handles.append(axes.scatter(others[:, 0], others[:, 1], s=size / 3, color=GREY, linewidth=0, zorder=0.9))
        names.append(f"{len(classes) - len(frequent)} other classes")
    room = WIDTH - _AXIS - _SIDE - 0.5
    legend(axes, handles, names, room, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.3)
    return figure


def _umap(features: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows 2"]:
    """The plane of UMAP (McInnes et al. 2018); neighbours by cosine, as in k-NN. The same rows give the same map."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # it would like TensorFlow, for a part that is not used
        from umap import UMAP

    mapping = UMAP(n_neighbors=min(15, len(features) - 1), metric="cosine", random_state=0, n_jobs=1)
    xy: Float[np.ndarray, "rows 2"] = mapping.fit_transform(features.astype(np.float32))
    return xy
