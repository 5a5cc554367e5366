"""The end of a run: its backbone for timm, its pictures, and the summary that marks it as finished.

All of it is made from the newest checkpoint, so a run that is killed here does this part again.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glsd.config import Config
from glsd.data.index import Index
from glsd.data.samples import some_decodable
from glsd.data.splits import LabelledSplit
from glsd.encoder.encoder import load_encoder
from glsd.reporting.pictures import NUM_PICTURED, picture_learning, picture_method, picture_neighbours
from glsd.reporting.report import report as report
from glsd.runs.checkpoints import manifest, newest_checkpoint
from glsd.runs.directory import BACKBONE, RunDirectory
from glsd.runs.log import FIGURES, read_metrics
from glsd.runs.records import RunData, Summary, read_record
from glsd.weights.timm import export_backbone
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import num_cores


@dataclass(frozen=True)
class Prepared:
    """A run and the images that it sees."""

    run: RunDirectory
    config: Config
    index: Index
    image_ids: np.ndarray
    """Images of its regime."""
    split: LabelledSplit | None
    """Images of the k-NN; None where there are no labels."""


def finish(prepared: Prepared, figures: bool, device: str, line: ProgressLine) -> None:
    """Export the teacher's backbone, draw the figures where asked to, and write the summary, last."""
    run, config, split = prepared.run, prepared.config, prepared.split
    checkpoint = newest_checkpoint(run.location)
    assert checkpoint is not None
    encoder = load_encoder(checkpoint).to(device)
    with tempfile.TemporaryDirectory(prefix="glsd-") as folder:
        line.phase("exporting the backbone")
        export = export_backbone(encoder, Path(folder) / BACKBONE)
        if figures:
            line.phase("drawing the figures")
            drawn = Path(folder) / FIGURES
            images = some_decodable(prepared.index, prepared.image_ids, config.data, config.seed, NUM_PICTURED)
            picture_method(encoder, images, drawn)
            picture_learning(read_metrics(run), drawn)
            if split is not None:
                picture_neighbours(encoder, split, drawn, num_cores())
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            run.write(path.relative_to(folder).as_posix(), path.read_bytes())
        # Both as Python has them in quotes: names may hold an apostrophe.
        at, there = (
            repr(f"local-dir:{path}") for path in (export.path, run.uri(BACKBONE) if run.is_local else BACKBONE)
        )
        lines = export.lines.replace(at, there)
        if not run.is_local:
            lines = f"# where {run.uri(BACKBONE)} was copied to a folder {BACKBONE}\n{lines}"
    facts = {"figures": figures, "timm": lines, "timm_difference": export.largest_difference}
    run.finish(Summary.model_validate(_reached(prepared, checkpoint) | facts))


def _reached(prepared: Prepared, checkpoint: str) -> dict[str, object]:
    """The part of the summary that was measured; what was not is left out."""
    run, config, saved = prepared.run, prepared.config, manifest(checkpoint)
    last, data = saved.metrics, read_record(run, RunData)
    reached = {
        "config_digest": config.digest,
        "steps": saved.step,
        "images_seen": saved.step * config.optim.batch_size,
        "loss": last["loss"],
    }
    if data is not None and data.init_from is not None:
        reached["init_from"] = data.init_from
    if prepared.split is not None:
        first = next(metrics for metrics in read_metrics(run) if metrics["step"] == 0)
        reached |= {
            "knn": last["knn"],
            "knn_untrained": first["knn"],
            "knn_majority": last["knn_majority"],
            "knn_k": min(config.evaluation.k, last["knn_anchors"]),
            "num_anchors": last["knn_anchors"],
            "num_queries": last["knn_queries"],
        }
    return reached
