"""The figures of a run and of an evaluation: which images, models and metrics go into each.

Each function writes its figures as PNG and SVG into a folder under the names that the report knows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glsd.augment.multicrop import multicrop
from glsd.data.index import Index
from glsd.data.samples import alike, one_each, some_decodable
from glsd.data.scenes import Scene, photographs
from glsd.data.splits import LabelledImages, LabelledSplit
from glsd.encoder.encoder import Encoder, embed
from glsd.evaluation.correspondence import correspondence, flip_truth, image_pair_correspondence, transformed_view
from glsd.evaluation.knn import nearest
from glsd.evaluation.online_knn import Preprocessed, preprocessed
from glsd.reporting.figures.canvas import save_png_and_svg
from glsd.reporting.figures.charts import draw_charts
from glsd.reporting.figures.correspondences import draw_correspondences, top_correspondences
from glsd.reporting.figures.crops import draw_crops, view_crops
from glsd.reporting.figures.curves import run_charts
from glsd.reporting.figures.feature_map import draw_feature_map, umap_available
from glsd.reporting.figures.matchings import draw_matchings, geometric_pair, similarity_pair
from glsd.reporting.figures.neighbours import draw_neighbours

NUM_PICTURED = 3
_NUM_QUERIES, _NUM_NEIGHBOURS, _MAX_ANCHORS = 6, 5, 1000
_FEWEST_MAPPED = 5
_DIFFERENT_TOP = 15  # Fig. 12


def picture_probes(
    probes: Sequence[str],
    encoder: Encoder,
    models: Mapping[str, Encoder],
    tested: tuple[Index, np.ndarray],
    scenes: Sequence[Scene],
    folder: Path,
) -> None:
    """The figures of an encoder's evaluation that need no labels: collapse, and correspondence beside other models."""
    index, image_ids = tested
    limits = encoder.config.data
    images = some_decodable(index, image_ids, limits, 0, NUM_PICTURED)
    if "collapse" in probes:
        picture_method(encoder, images, folder)
    if "correspondence" in probes:
        picture_correspondences(models, images, folder)
        if pairs := alike(index, image_ids, limits, NUM_PICTURED):
            picture_image_pairs(models, [(*pair, None) for pair in pairs], folder / "different_images")
        if scenes:
            pictured = [(*photographs(scene, limits), scene.homography) for scene in scenes[:NUM_PICTURED]]
            picture_image_pairs(models, pictured, folder / "scenes")


def picture_method(encoder: Encoder, images: Sequence[tuple[int, np.ndarray]], folder: Path) -> None:
    """Crops (Fig. 6) and the matchings of training pairs by geometry and by similarity (Fig. 3, 8-11)."""
    config = encoder.config
    views = [multicrop(image, config.augment, config.seed, 0, image_id) for image_id, image in images]
    save_png_and_svg(draw_crops([image for _, image in images], [view.geo for view in views]), folder / "crops")
    grids = [encoder.backbone.grid(size) for size, num_views in config.augment.groups for _ in range(num_views)]
    students = (1, 2) if config.augment.num_views > 2 else (1,)
    geometric = [
        geometric_pair(view, 0, student, grids[0], grids[student], config.objective.threshold_scale)
        for view in views
        for student in students
    ]
    save_png_and_svg(draw_matchings(geometric), folder / "matchings")
    similar = []
    for view in views:
        z = [_dense(encoder, crop[None])[0] for crop in view_crops(view)[: students[-1] + 1]]
        similar += [similarity_pair(view, 0, student, z[0], z[student]) for student in students]
    save_png_and_svg(draw_matchings(similar), folder / "matchings_similarity")


def picture_learning(metrics: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Curves, and the signs of collapse over training (Fig. 7), of a run's metrics."""
    charts = run_charts(metrics)
    save_png_and_svg(draw_charts([*charts.training, *charts.others]), folder / "curves")
    if charts.collapse:
        save_png_and_svg(draw_charts(charts.collapse), folder / "collapse")


def picture_correspondences(
    encoders: Mapping[str, Encoder], images: Sequence[tuple[int, np.ndarray]], folder: Path
) -> None:
    """Each image against its mirrored and recoloured view (Fig. 5), by several models side by side."""
    rows = []
    for image_id, image in images:
        row = []
        for name, encoder in encoders.items():
            crop = encoder.preprocess(image)
            view = transformed_view(crop, 0, image_id)
            z_a, z_b = _dense(encoder, np.stack([crop, view])).split(1)
            grid, size = (z_a.shape[1], z_a.shape[2]), crop.shape[0]
            found = correspondence(z_a, z_b, flip_truth(grid, size), size)
            row.append(top_correspondences(crop, view, found, 0, grid, name))
        rows.append(row)
    save_png_and_svg(draw_correspondences(rows), folder / "correspondences")


def picture_image_pairs(
    encoders: Mapping[str, Encoder], pairs: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]], path: Path
) -> None:
    """The most similar locations of two images by several models side by side: of different ones (Fig. 12), and of two
    photographs of a scene, which have a homography.
    """
    rows = []
    for image_a, image_b, homography in pairs:
        row = []
        for name, encoder in encoders.items():
            view_a, view_b, found = image_pair_correspondence(encoder, image_a, image_b, homography)
            grid = encoder.backbone.grid(encoder.config.evaluation.crop)
            row.append(top_correspondences(view_a, view_b, found, 0, grid, name, _DIFFERENT_TOP))
        rows.append(row)
    save_png_and_svg(draw_correspondences(rows), path)


def picture_neighbours(encoder: Encoder, split: LabelledSplit, folder: Path, num_threads: int) -> None:
    """Tested images of as many classes as there are, each beside the nearest of a thousand of the images that vote."""
    step = -(-len(split.anchors.image_ids) // _MAX_ANCHORS)
    anchors = preprocessed(encoder, split.anchors.rows(slice(None, None, step)), num_threads)
    queries = preprocessed(encoder, split.queries.rows(one_each(split.queries.labels, _NUM_QUERIES)), num_threads)
    features = [embed(encoder, torch.from_numpy(side.crops).split(64)) for side in (anchors, queries)]
    found = nearest(features[0], features[1], _NUM_NEIGHBOURS)
    _save_neighbours(queries, anchors, found.anchor_index, found.similarity, split.classes, folder)


def picture_nearest(
    encoder: Encoder,
    anchors: tuple[LabelledImages, torch.Tensor],
    queries: tuple[LabelledImages, torch.Tensor],
    classes: list[str],
    folder: Path,
    num_threads: int,
) -> None:
    """The figure of `picture_neighbours` with the nearest of all images that vote, from the z̄ of each."""
    chosen = one_each(queries[0].labels, _NUM_QUERIES)
    found = nearest(anchors[1], queries[1][chosen], _NUM_NEIGHBOURS)
    shown, place = found.anchor_index.unique(return_inverse=True)
    asking = preprocessed(encoder, queries[0].rows(chosen), num_threads)
    voting = preprocessed(encoder, anchors[0].rows(shown.numpy()), num_threads)
    _save_neighbours(asking, voting, place, found.similarity, classes, folder)


def _save_neighbours(
    queries: Preprocessed,
    anchors: Preprocessed,
    anchor_index: torch.Tensor,
    similarity: torch.Tensor,
    classes: list[str],
    folder: Path,
) -> None:
    figure = draw_neighbours(
        list(queries.crops),
        [classes[label] for label in queries.labels.tolist()],
        [[anchors.crops[i] for i in row] for row in anchor_index.tolist()],
        [[classes[anchors.labels[i]] for i in row] for row in anchor_index.tolist()],
        similarity.float().cpu().numpy(),
    )
    save_png_and_svg(figure, folder / "neighbours")


def picture_features(features: np.ndarray, labels: np.ndarray | None, classes: list[str] | None, folder: Path) -> None:
    """The representations in the plane, by PCA, and by UMAP where it is installed; of a few there is nothing to see."""
    if len(features) < _FEWEST_MAPPED:
        return
    save_png_and_svg(draw_feature_map(features, labels, classes), folder / "feature_map")
    if umap_available():
        save_png_and_svg(draw_feature_map(features, labels, classes, "umap"), folder / "feature_map_umap")


@torch.no_grad()
def _dense(encoder: Encoder, crops: np.ndarray) -> torch.Tensor:
    return encoder.represent(torch.from_numpy(crops))[1]
