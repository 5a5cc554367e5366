"""The trials of a sweep as a tidy table, and the axes that make a trial."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd

from glsd.record import flatten
from glsd.reporting.tables import SEED, SETTING, tidy_table, varied
from glsd.runs.records import Evaluation
from glsd.runs.sweep import TrialState

Together = Sequence[Sequence[str]]
"""Settings that the grid sets together, list by list, as `sweep.json` has them."""


def sweep_table(states: Sequence[TrialState]) -> pd.DataFrame:
    """One row per trial, as `results.csv` has it.

    Settings that differ between trials are columns by their dotted keys. `steps` and `images_seen` are those that were
    done, of `total_steps`; `knn` is that of the evaluation with the configuration's k, `knn_online` the last during
    training; accuracies are shares. A trial whose loss was not finite has no results of an evaluation (the paper's
    NA), though its last checkpoint was evaluated.
    """
    keys = list(dict.fromkeys(key for state in states for key in state.overrides))
    return tidy_table([_row(state, keys) for state in states])


def sweep_axes(trials: pd.DataFrame, together: Together = ()) -> list[str]:
    """The columns that make a trial: data set, settings and seed, those of them that vary.

    A number that always goes with a name, such as a drop path with a backbone, is not an axis of its own. Neither is a
    name that the grid sets together with `objective.setting`, whose values are compared.
    """
    axes = varied(trials, ["data", *(str(name) for name in trials if "." in str(name) or name == SEED)])
    names = [axis for axis in axes if pd.api.types.is_string_dtype(trials[axis].dtype)]

    def follows(axis: str, name: str) -> bool:
        with_setting = name == SETTING and any(axis in keys and SETTING in keys for keys in together)
        return (axis not in names or with_setting) and goes_with(trials, axis, name)

    return [
        axis
        for axis in axes
        if axis in (SETTING, SEED) or axis.startswith("data.") or not any(follows(axis, name) for name in names)
    ]


def goes_with(trials: pd.DataFrame, axis: str, other: str) -> bool:
    """Whether the other's value tells that of the axis."""
    return bool(trials.groupby(other, dropna=False)[axis].nunique(dropna=False).max() <= 1)


def top1(
    evaluation: Evaluation | None, side: Literal["results", "untrained"], config: Mapping[str, Any]
) -> float | None:
    """The k-NN accuracy at the k of the settings; None where it was not measured."""
    if evaluation is None or evaluation.knn is None:
        return None
    scores = getattr(evaluation.knn, side)
    return next((score.top1 for score in scores if score.k == config["evaluation.k"]), None)


def _row(state: TrialState, keys: Sequence[str]) -> dict[str, Any]:
    """The settings and results of a trial."""
    config = flatten(state.config or {})
    found = state.evaluation
    tested = [line["knn"] for line in state.metrics if line.get("knn") is not None and line["step"]]
    measured = None if state.status == "not finite" else found
    matched = None if measured is None else measured.correspondence
    steps, seconds = int(state.last("step") or 0), state.train_seconds
    images_seen = steps * config.get("optim.batch_size", 0)
    return {
        "trial": state.name,
        "data": state.data,
        **{key: state.overrides.get(key, config.get(key)) for key in keys},
        "num_images": state.num_images,
        "batch_size": config.get("optim.batch_size"),
        "epochs": config.get("optim.epochs"),
        "total_steps": state.steps,
        "steps": steps,
        "images_seen": images_seen,
        "status": state.status,
        "verdict": state.verdict or None,
        "message": state.message or None,
        "loss": state.last("loss"),
        "knn": top1(measured, "results", config),
        "knn_online": tested[-1] if tested else None,
        "knn_untrained": top1(found, "untrained", config),
        "majority": found.knn.majority if found is not None and found.knn is not None else None,
        **{name: getattr(matched, name, None) for name in ("accuracy", "accuracy_top", "error_px", "error_top_px")},
        "images_per_s": images_seen / seconds if seconds else None,
        "train_hours": seconds / 3600,
        "gpu_hours": seconds * state.gpus / 3600,
    }
