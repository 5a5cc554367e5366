"""What jobs print at their end, and what a sweep prints while it runs."""

from collections.abc import Sequence
from pathlib import Path

from glsd.evaluation.verdict import COLLAPSE_MEASURES, standard_error
from glsd.runs.directory import BACKBONE, CONFIG
from glsd.runs.log import FIGURES, METRICS, TENSORBOARD
from glsd.runs.records import Evaluation, Matched, Summary
from glsd.runs.sweep import TrialState
from glsd.storage.uris import joined


def score_table(found: Evaluation) -> str:
    """An evaluation for a terminal, next to the untrained backbone: convolutions tell many images apart untrained."""
    lines = [f"{found.model} ({found.backbone}, {found.resize} px resized, {found.crop} px cropped)"]
    if (knn := found.knn) is not None:
        lines += ["", f"k-NN accuracy: {knn.num_anchors:,} images vote on {knn.num_queries:,}"]
        beside = {score.k: score for score in knn.untrained}
        for score in knn.results:
            error = 100 * standard_error(score.top1, knn.num_queries)
            lines.append(
                f"  k = {score.k:<4} {100 * score.top1:5.1f} % +- {error:.1f}   "
                f"top {score.num_top}: {100 * score.top5:5.1f} %   "
                f"untrained {100 * beside[score.k].top1:5.1f} %"
            )
        lines.append(f"  always the most frequent class  {100 * knn.majority:5.1f} %")
    for layer, name in ((found.linear, "linear, SGD"), (found.linear_quick, "linear, L-BFGS")):
        if layer is not None:
            top5 = f"top {layer.num_top}: {100 * layer.top5:.1f} %"
            lines += ["", f"{name}: {100 * layer.top1:.1f} %   {top5}"]
    if (matched := found.correspondence) is not None:
        lines += [
            "",
            f"correspondence of {matched.num_images:,} images and their mirrored, recoloured views of "
            f"{matched.size} px",
            *_correspondence_lines("all locations", matched, matched.untrained),
        ]
        for scene in matched.scenes.pairs if matched.scenes is not None else []:
            lines += [
                f"correspondence of {Path(scene.image_a).name} and {Path(scene.image_b).name}",
                *_correspondence_lines(f"{scene.num_locations} locations", scene, scene.untrained),
            ]
    if (collapse := found.collapse) is not None:
        lines += ["", f"collapse: {collapse.verdict}", *(f"  {reason}" for reason in collapse.reasons)]
        for name, value in collapse.metrics.items():
            title, meaning = COLLAPSE_MEASURES[name]
            lines.append(f"  {title:<31} {value:9.3g}   {meaning}")
    if skipped := found.skipped:
        lines += ["", f"could not be decoded: {len(skipped):,}, such as {skipped[0].uri}: {skipped[0].reason}"]
    return "\n".join(lines)


def _correspondence_lines(locations: str, trained: Matched, untrained: Matched) -> list[str]:
    """The table of a correspondence: of all locations, and of the most similar ones."""
    shown = [
        (locations, [(side.accuracy, side.error_px) for side in (trained, untrained)]),
        (f"most similar {trained.num_top}", [(side.accuracy_top, side.error_top_px) for side in (trained, untrained)]),
    ]
    lines = []
    for name, sides in shown:
        texts = (f"{100 * share:5.1f} % right, {error_px:6.1f} px off" for share, error_px in sides)
        lines.append(f"  {name:<15} " + "   untrained ".join(texts))
    return lines


def closing_words(out: str, summary: Summary) -> str:
    """What a run prints when it has ended: its results, where its files are, and how to load the backbone."""
    lines = [f"{summary.steps:,} steps, {summary.images_seen:,} images seen; loss {summary.loss:.3f}"]
    if summary.knn is not None:
        assert summary.num_queries is not None
        assert summary.knn_untrained is not None
        assert summary.knn_majority is not None
        error = 100 * standard_error(summary.knn, summary.num_queries)
        beginning = "the same backbone at random initialisation"
        if summary.init_from is not None:
            beginning = f"before training, as in {summary.init_from}"
        lines += [
            f"k-NN {100 * summary.knn:.1f} %   +- {error:.1f} (k = {summary.knn_k}; "
            f"{summary.num_anchors:,} images vote on {summary.num_queries:,} others)",
            f"     {100 * summary.knn_untrained:.1f} %   {beginning}",
            f"     {100 * summary.knn_majority:.1f} %   always the most frequent class",
        ]
    lines += [
        "",
        f"backbone  {joined(out, BACKBONE)}",
        f"config    {joined(out, CONFIG)}",
        f"metrics   {joined(out, METRICS)}, and tensorboard --logdir {joined(out, TENSORBOARD)}",
        *([f"pictures  {joined(out, FIGURES)}"] if summary.figures else []),
        "",
        summary.timm,
    ]
    return "\n".join(lines)


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
