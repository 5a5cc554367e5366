"""Sweep folders as a sweep leaves them, written by hand: a metrics history and an evaluation for each trial."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glsd.experiments import load_config
from glsd.runs.directory import RunDirectory
from glsd.runs.log import RunLog
from glsd.runs.records import RunData
from ray_jobs.sweeps.grids import trial_name

EPOCHS, STEPS_PER_EPOCH, BATCH = 4, 10, 32
BASE = load_config("demo", {"optim.epochs": EPOCHS, "optim.batch_size": BATCH, "evaluation.k": 20})


@dataclass(frozen=True)
class ATrial:
    """How a trial of a hand-written sweep stands."""

    overrides: Mapping[str, Any]
    status: str = "finished"
    knn: float | None = 0.5
    """Of the evaluation; None has none."""
    accuracy: float = 0.4
    error_px: float = 20.0
    collapsed: bool = False
    epochs_done: int = EPOCHS
    message: str = ""
    gpus: float = 1.0
    data: str = "photos"
    num_images: int = 320
    online: float = 0.25
    """k-NN at the end of the first epoch; it rises by 0.05 an epoch."""
    signs: Mapping[str, float] = field(default_factory=lambda: {"feature_std": 0.9, "information_dense": 0.3})


def name_of(trial: ATrial) -> str:
    return trial_name(trial.data, trial.overrides)


def a_sweep(folder: Path, trials: list[ATrial], **facts: Any) -> Path:
    """320 images a second, an epoch of 10 steps of 32 images in a second."""
    named = {
        name_of(trial): {
            "data": trial.data,
            "overrides": dict(trial.overrides),
            "num_images": trial.num_images,
            "steps": EPOCHS * STEPS_PER_EPOCH,
            "gpus": trial.gpus,
        }
        for trial in trials
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"grid": "matching_by_regime", "trials": named} | facts))
    for trial in trials:
        if trial.status != "waiting":
            _write(folder / "trials" / name_of(trial), trial)
    return folder


def _write(place: Path, trial: ATrial) -> None:
    run = RunDirectory(place)
    data = RunData(sources=["/data/photos"], images=320, digest="0123abcd")
    run.claim(BASE.with_overrides(trial.overrides), data)
    with RunLog(run) as log:
        log.log(0, {"knn": 0.125, "knn_anchors": 256, "knn_queries": 64})
        for epoch in range(1, trial.epochs_done + 1):
            metrics = {"epoch": float(epoch), "loss": 7 - 0.5 * epoch, "images_per_s": 320.0} | trial.signs
            metrics |= {"collapsed": float(trial.collapsed and epoch > 1)}
            metrics |= {"knn": trial.online + 0.05 * (epoch - 1), "knn_anchors": 256.0, "knn_queries": 64.0}
            log.log(epoch * STEPS_PER_EPOCH, metrics)
    if trial.status == "started":
        return
    run.write(
        "outcome.json",
        json.dumps({"status": trial.status, "message": trial.message, "gpus": trial.gpus}).encode(),
    )
    if trial.knn is not None:
        run.write("evaluation/evaluation.json", json.dumps(an_evaluation(trial)).encode())


def an_evaluation(trial: ATrial) -> dict[str, Any]:
    return {
        "model": "runs/mine", "backbone": "test_resnet", "data": ["/data/photos"], "test": None, "num_images": 320,
        "classes": ["cat", "dog"], "resize": 256, "crop": 224, "model_digest": "89ef", "data_digest": "0123abcd",
        "test_digest": None, "anchors": "full", "skipped": [], "environment": {"python": "3.11", "packages": {}},
        "knn": {
            "temperature": 0.07, "num_anchors": 256, "num_queries": 64, "majority": 0.0625,
            "results": [
                {"k": 10, "top1": 0.9375, "top5": 1.0, "num_top": 5},
                {"k": 20, "top1": trial.knn, "top5": 1.0, "num_top": 5},
            ],
            "untrained": [{"k": 20, "top1": 0.1875, "top5": 1.0, "num_top": 5}],
        },
        "correspondence": {
            "accuracy": trial.accuracy, "error_px": trial.error_px, "accuracy_top": 0.75, "error_top_px": 4.0,
            "num_top": 10, "num_images": 400, "size": 224,
            "untrained": {
                "accuracy": 0.25, "error_px": 30.0, "accuracy_top": 0.5, "error_top_px": 8.0, "num_top": 10,
                "num_images": 400,
            },
        },
        "collapse": {
            "verdict": "collapsed" if trial.collapsed else "healthy",
            "reasons": ["information_dense 0.0005 is below 0.005"] if trial.collapsed else [],
            "metrics": {"feature_std": 0.9},
        },
    }  # fmt: skip
