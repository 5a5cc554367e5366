"""The end of a run: its backbone for timm, its pictures, and the summary that marks it as finished.

All of it is made from the newest checkpoint, so a run that is killed here does this part again.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from glsd.augment import multicrop
from glsd.config import Config
from glsd.data import Index, UndecodableImage, decode
from glsd.data.filesystems import joined
from glsd.evaluation import Encoder, embed, export_backbone, load_encoder, nearest
from glsd.reporting import draw_crops, draw_matchings, draw_neighbours, geometric_pair, save_figure
from glsd.training import manifest, newest_checkpoint
from ray_jobs.labelled import LabelledImages, LabelledSplit
from ray_jobs.monitor import ProgressLine
from ray_jobs.online_knn import preprocessed, standard_error
from ray_jobs.run_directory import CONFIG, METRICS, TENSORBOARD, RunDirectory, read_metrics

BACKBONE, FIGURES = "backbone", "figures"
_NUM_PICTURED, _NUM_QUERIES, _NUM_NEIGHBOURS, _MAX_ANCHORS = 3, 6, 5, 1000


def finish(
    run: RunDirectory,
    config: Config,
    index: Index,
    image_ids: np.ndarray,
    split: LabelledSplit | None,
    line: ProgressLine,
) -> None:
    """Export the teacher's backbone, draw the figures, and write the summary, last."""
    checkpoint = newest_checkpoint(run.location)
    assert checkpoint is not None
    encoder = load_encoder(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="glsd-") as folder:
        line.phase("exporting the backbone")
        export = export_backbone(encoder, Path(folder) / BACKBONE)
        line.phase("drawing the figures")
        figures = Path(folder) / FIGURES
        pictured = _decodable(index, image_ids, config, _NUM_PICTURED)
        views = [multicrop(image, config.augment, config.seed, 0, image_id) for image_id, image in pictured]
        save_figure(draw_crops([image for _, image in pictured], [view.geo for view in views]), figures / "crops.png")
        grids = [encoder.backbone.grid(size) for size, num_views in config.augment.groups for _ in range(num_views)]
        pairs = [
            geometric_pair(view, 0, student, grids[0], grids[student], config.objective.threshold_scale)
            for view in views
            for student in ((1, 2) if config.augment.num_views > 2 else (1,))
        ]
        save_figure(draw_matchings(pairs), figures / "matchings.png")
        if split is not None:
            save_figure(_neighbours(encoder, split), figures / "neighbours.png")
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            run.write(path.relative_to(folder).as_posix(), path.read_bytes())
        lines = export.lines.replace(str(export.path), run.uri(BACKBONE))
    run.finish(_summary(run, checkpoint, config, split) | {"timm": lines, "timm_difference": export.largest_difference})


def closing_words(out: str, summary: dict[str, Any]) -> str:
    """What a run says when it has ended: what was reached, where things lie, and how to go on."""
    lines = [f"{summary['steps']:,} steps, {summary['images_seen']:,} images seen; loss {summary['loss']:.3f}"]
    if "knn" in summary:
        error = 100 * standard_error(summary["knn"], summary["num_queries"])
        lines += [
            f"k-NN {100 * summary['knn']:.1f} %   +- {error:.1f} (k = {summary['knn_k']}; "
            f"{summary['num_anchors']:,} images vote on {summary['num_queries']:,} others)",
            f"     {100 * summary['knn_untrained']:.1f} %   the same backbone at random initialisation",
            f"     {100 * summary['knn_majority']:.1f} %   always the most frequent class",
        ]
    lines += [
        "",
        f"backbone  {joined(out, BACKBONE)}",
        f"config    {joined(out, CONFIG)}",
        f"metrics   {joined(out, METRICS)}, and tensorboard --logdir {joined(out, TENSORBOARD)}",
        f"pictures  {joined(out, FIGURES)}",
        "",
        summary["timm"],
    ]
    return "\n".join(lines)


def _summary(run: RunDirectory, checkpoint: str, config: Config, split: LabelledSplit | None) -> dict[str, Any]:
    facts = manifest(checkpoint)
    steps, last = facts["step"], facts["metrics"]
    summary = {
        "config_digest": config.digest,
        "steps": steps,
        "images_seen": steps * config.optim.batch_size,
        "loss": last["loss"],
    }
    if split is not None:
        first = next(line for line in read_metrics(run) if line["step"] == 0)
        summary |= {
            "knn": last["knn"],
            "knn_untrained": first["knn"],
            "knn_majority": split.majority,
            "knn_k": min(config.evaluation.k, last["knn_anchors"]),
            "num_anchors": last["knn_anchors"],
            "num_queries": last["knn_queries"],
        }
    return summary


def _decodable(index: Index, image_ids: np.ndarray, config: Config, count: int) -> list[tuple[int, np.ndarray]]:
    found: list[tuple[int, np.ndarray]] = []
    for image_id in np.random.default_rng(config.seed).permutation(image_ids).tolist():
        try:
            found.append((image_id, decode(index.read(image_id), config.data.max_pixels, config.data.value_range)))
        except UndecodableImage:
            continue
        if len(found) == count:
            break
    return found


def _neighbours(encoder: Encoder, split: LabelledSplit) -> Figure:
    """Queries of as many classes as there are, each beside the nearest of the images that vote."""
    anchors = preprocessed(encoder, _thinned(split.anchors, _MAX_ANCHORS))
    queries = preprocessed(encoder, _one_each(split.queries, _NUM_QUERIES))
    features = [embed(encoder, torch.from_numpy(side.crops).split(64)) for side in (anchors, queries)]
    found = nearest(features[0], features[1], _NUM_NEIGHBOURS)
    names = split.classes
    return draw_neighbours(
        list(queries.crops),
        [names[label] for label in queries.labels.tolist()],
        [[anchors.crops[i] for i in row] for row in found.anchor_index.tolist()],
        [[names[anchors.labels[i]] for i in row] for row in found.anchor_index.tolist()],
        found.similarity.float().cpu().numpy(),
    )


def _thinned(images: LabelledImages, at_most: int) -> LabelledImages:
    step = -(-len(images.image_ids) // at_most)
    return LabelledImages(images.index, images.image_ids[::step], images.labels[::step])


def _one_each(images: LabelledImages, count: int) -> LabelledImages:
    """The first image of each class in turn, then the second, and so on."""
    turn = np.zeros(len(images.labels), np.int64)
    for label in np.unique(images.labels):
        of_class = images.labels == label
        turn[of_class] = np.arange(of_class.sum())
    chosen = np.argsort(turn, kind="stable")[:count]
    return LabelledImages(images.index, images.image_ids[chosen], images.labels[chosen])
