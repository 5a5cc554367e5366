"""What jobs print when they end, and while a sweep runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glsd.evaluation.verdict import COLLAPSE_MEASURES, standard_error
from glsd.runs.directory import BACKBONE, CONFIG
from glsd.runs.log import FIGURES, METRICS, TENSORBOARD
from glsd.runs.sweep import TrialState
from glsd.storage.uris import joined


def score_table(found: Mapping[str, Any]) -> str:
    """An evaluation for people.

    The random initialisation is the honest zero of an encoder: convolutions alone tell many images apart.
    """
    lines = [f"{found['model']} ({found['backbone']}, {found['resize']} px resized, {found['crop']} px cropped)"]
    if "knn" in found:
        knn = found["knn"]
        lines += ["", f"k-NN accuracy: {knn['num_anchors']:,} images vote on {knn['num_queries']:,}"]
        beside = {result["k"]: result for result in knn["untrained"]}
        for result in knn["results"]:
            error = 100 * standard_error(result["top1"], knn["num_queries"])
            lines.append(
                f"  k = {result['k']:<4} {100 * result['top1']:5.1f} % +- {error:.1f}   "
                f"top {result['num_top']}: {100 * result['top5']:5.1f} %   "
                f"untrained {100 * beside[result['k']]['top1']:5.1f} %"
            )
        lines.append(f"  always the most frequent class  {100 * knn['majority']:5.1f} %")
    for probe, name in (("linear", "linear, SGD"), ("linear_quick", "linear, L-BFGS")):
        if probe in found:
            result = found[probe]
            top5 = f"top {result['num_top']}: {100 * result['top5']:.1f} %"
            lines += ["", f"{name}: {100 * result['top1']:.1f} %   {top5}"]
    if "correspondence" in found:
        result = found["correspondence"]
        lines += [
            "",
            f"correspondence of {result['num_images']:,} images and their mirrored, recoloured views of "
            f"{result['size']} px",
            *_correspondence_lines("all locations", result),
        ]
        for scene in result.get("scenes", {}).get("pairs", []):
            lines += [
                f"correspondence of {Path(scene['image_a']).name} and {Path(scene['image_b']).name}",
                *_correspondence_lines(f"{scene['num_locations']} locations", scene),
            ]
    if "collapse" in found:
        result = found["collapse"]
        lines += ["", f"collapse: {result['verdict']}", *(f"  {reason}" for reason in result["reasons"])]
        for name, value in result["metrics"].items():
            title, meaning = COLLAPSE_MEASURES[name]
            lines.append(f"  {title:<31} {value:9.3g}   {meaning}")
    if skipped := found["skipped"]:
        lines += ["", f"could not be decoded: {len(skipped):,}, such as {skipped[0]['uri']}: {skipped[0]['reason']}"]
    return "\n".join(lines)


def _correspondence_lines(locations: str, result: Mapping[str, Any]) -> list[str]:
    """The table of a correspondence: of all locations, and of the most similar ones."""
    rows = ((locations, "accuracy", "error_px"), (f"most similar {result['num_top']}", "accuracy_top", "error_top_px"))
    lines = []
    for name, accuracy, error_px in rows:
        sides = (
            f"{100 * side[accuracy]:5.1f} % right, {side[error_px]:6.1f} px off"
            for side in (result, result["untrained"])
        )
        lines.append(f"  {name:<15} " + "   untrained ".join(sides))
    return lines


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


def states_table(states: Sequence[TrialState]) -> str:
    """The trials for a terminal: trial, images, epoch, loss, k-NN, images/s, verdict, status."""
    width = max([5, *(len(state.name) for state in states)])
    lines = [
        f"{'trial':<{width}}  {'images':>9}  {'epoch':>9}  {'loss':>7}  {'k-NN':>6}  {'images/s':>8}  "
        f"{'verdict':<9}  status"
    ]
    for state in states:
        epoch = state.last("epoch")
        epochs = state.config["optim"]["epochs"] if state.config else None
        lines.append(
            f"{state.name:<{width}}  {state.num_images:>9,}  "
            f"{'' if epoch is None else f'{epoch:.0f}/{epochs}':>9}  {_number(state.last('loss'), '.3f'):>7}  "
            f"{_number(state.last('knn'), '.1%'):>6}  {_number(state.last('images_per_s'), '.0f'):>8}  "
            f"{state.verdict:<9}  {state.status}"
        )
    return "\n".join(lines)


def _number(value: int | float | None, form: str) -> str:
    return "" if value is None else format(value, form)
