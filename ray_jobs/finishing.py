"""The end of a run: its backbone for timm, its pictures, and the summary that marks it as finished.

All of it is made from the newest checkpoint, so a run that is killed here does this part again.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from glsd.config import Config
from glsd.data.index import Index
from glsd.data.samples import some_decodable
from glsd.data.splits import LabelledSplit
from glsd.encoder.encoder import load_encoder
from glsd.evaluation.verdict import standard_error
from glsd.runs.checkpoints import manifest, newest_checkpoint
from glsd.runs.directory import BACKBONE, CONFIG, DATA, RunDirectory
from glsd.runs.log import FIGURES, METRICS, TENSORBOARD, read_metrics
from glsd.storage.uris import joined
from glsd.weights.timm import export_backbone
from ray_jobs.monitor import ProgressLine
from ray_jobs.picturing import NUM_PICTURED, picture_learning, picture_method, picture_neighbours


def finish(
    run: RunDirectory,
    config: Config,
    index: Index,
    image_ids: np.ndarray,
    split: LabelledSplit | None,
    figures: bool,
    device: str,
    line: ProgressLine,
) -> None:
    """Export the teacher's backbone, draw the figures where asked to, and write the summary, last."""
    checkpoint = newest_checkpoint(run.location)
    assert checkpoint is not None
    encoder = load_encoder(checkpoint).to(device)
    with tempfile.TemporaryDirectory(prefix="glsd-") as folder:
        line.phase("exporting the backbone")
        export = export_backbone(encoder, Path(folder) / BACKBONE)
        if figures:
            line.phase("drawing the figures")
            drawn = Path(folder) / FIGURES
            picture_method(encoder, some_decodable(index, image_ids, config.data, config.seed, NUM_PICTURED), drawn)
            picture_learning(read_metrics(run), drawn)
            if split is not None:
                picture_neighbours(encoder, split, drawn)
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
    run.finish(_summary(run, checkpoint, config, split) | facts)


def closing_words(out: str, summary: dict[str, Any]) -> str:
    """What a run says when it has ended: what was reached, where things lie, and how to go on."""
    lines = [f"{summary['steps']:,} steps, {summary['images_seen']:,} images seen; loss {summary['loss']:.3f}"]
    if "knn" in summary:
        error = 100 * standard_error(summary["knn"], summary["num_queries"])
        lines += [
            f"k-NN {100 * summary['knn']:.1f} %   +- {error:.1f} (k = {summary['knn_k']}; "
            f"{summary['num_anchors']:,} images vote on {summary['num_queries']:,} others)",
            f"     {100 * summary['knn_untrained']:.1f} %   {_beginning(summary)}",
            f"     {100 * summary['knn_majority']:.1f} %   always the most frequent class",
        ]
    lines += [
        "",
        f"backbone  {joined(out, BACKBONE)}",
        f"config    {joined(out, CONFIG)}",
        f"metrics   {joined(out, METRICS)}, and tensorboard --logdir {joined(out, TENSORBOARD)}",
        *([f"pictures  {joined(out, FIGURES)}"] if summary.get("figures", True) else []),
        "",
        summary["timm"],
    ]
    return "\n".join(lines)


def _beginning(summary: dict[str, Any]) -> str:
    """What the run started from."""
    if "init_from" in summary:
        return f"before training, as in {summary['init_from']}"
    return "the same backbone at random initialisation"


def _summary(run: RunDirectory, checkpoint: str, config: Config, split: LabelledSplit | None) -> dict[str, Any]:
    facts = manifest(checkpoint)
    steps, last = facts["step"], facts["metrics"]
    summary = {
        "config_digest": config.digest,
        "steps": steps,
        "images_seen": steps * config.optim.batch_size,
        "loss": last["loss"],
    }
    if init_from := json.loads(run.read(DATA) or b"{}").get("init_from"):
        summary["init_from"] = init_from
    if split is not None:
        first = next(line for line in read_metrics(run) if line["step"] == 0)
        summary |= {
            "knn": last["knn"],
            "knn_untrained": first["knn"],
            "knn_majority": last["knn_majority"],
            "knn_k": min(config.evaluation.k, last["knn_anchors"]),
            "num_anchors": last["knn_anchors"],
            "num_queries": last["knn_queries"],
        }
    return summary
