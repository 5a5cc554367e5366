"""The page of an evaluation, with a section for each probe that it holds."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glsd.config import LinearConfig
from glsd.evaluation.verdict import COLLAPSE_MEASURES, Verdict, standard_error
from glsd.reporting.numbers import number_text, share_text
from glsd.reporting.page import html
from glsd.reporting.page.html import Bar, Html
from glsd.reporting.pages import common
from glsd.runs.records import (
    CollapseFound,
    CorrespondenceFound,
    Evaluation,
    KnnFound,
    LinearFound,
    Matched,
    QuickLinearFound,
)
from glsd.storage.folder import Folder

_MAIN_K = 20


def evaluation_page(folder: Folder, evaluation: Evaluation) -> str:
    """The page of an evaluation."""
    verdict = None
    if evaluation.collapse is not None:
        verdict = Verdict(evaluation.collapse.verdict, tuple(evaluation.collapse.reasons))
    results = [*_results(evaluation), *common.reasons(verdict)]
    tested = "" if evaluation.test is None else f", tested on {', '.join(evaluation.test)}"
    model, classes = evaluation.model, evaluation.classes
    lead = (
        f"{evaluation.backbone} on {', '.join(evaluation.data)}{tested}: {evaluation.num_images:,} images"
        + ("" if classes is None else f" of {len(classes):,} classes")
        + f", resized to {evaluation.resize} px and cropped to {evaluation.crop} px."
    )
    return html.page(
        html.Head("glsd · evaluation", model, common.verdict_badges(verdict), lead),
        {
            "Results": results or [html.prose("What was measured stands below.")],
            **{
                title: blocks(found)
                for probe, (title, blocks) in _PROBES.items()
                if (found := getattr(evaluation, probe)) is not None
            },
            **common.figure_section(folder),
            "Skipped images": common.skipped_block(evaluation.skipped),
            "Use the backbone": common.loading("from glsd.weights.load import load_model", "load_model", model),
            "Settings": [html.code(_command(folder, evaluation))],
            "Environment": [html.facts(common.texts(evaluation.environment.json_values()))],
        },
        common.footer(folder),
    )


def _results(evaluation: Evaluation) -> list[Html]:
    bars, notes = [], []
    if (knn := evaluation.knn) is not None:
        chosen = next((result for result in knn.results if result.k == _MAIN_K), knn.results[-1])
        untrained = {result.k: result for result in knn.untrained}
        bars.append(common.accuracy(f"k-NN, k = {chosen.k}", chosen.top1, knn.num_queries, emphasised=True))
        if chosen.k in untrained:
            bars.append(common.accuracy("k-NN, untrained backbone", untrained[chosen.k].top1, knn.num_queries))
        bars.append(Bar("always the most frequent class", knn.majority))
        notes.append(f"{knn.num_anchors:,} images vote on {knn.num_queries:,} others.")
    if evaluation.linear is not None:
        bars.append(Bar("linear layer", evaluation.linear.top1, emphasised=True))
    if (quick := evaluation.linear_quick) is not None:
        bars.append(common.accuracy("logistic regression", quick.top1, quick.num_test, emphasised=True))
    if evaluation.correspondence is not None:
        bars.append(Bar("correspondences", evaluation.correspondence.accuracy, emphasised=True))
    if any(bar.error is not None for bar in bars):
        notes.append("Whiskers and ± are one standard error.")
    return [*([html.bars(bars)] if bars else []), *([html.prose(" ".join(notes))] if notes else [])]


def _knn(knn: KnnFound) -> list[Html]:
    untrained = {result.k: result for result in knn.untrained}
    num_top = knn.results[0].num_top
    rows = [
        [
            str(result.k),
            share_text(result.top1, standard_error(result.top1, knn.num_queries)),
            share_text(result.top5),
            *(
                share_text(getattr(untrained[result.k], top)) if result.k in untrained else "–"
                for top in ("top1", "top5")
            ),
        ]
        for result in knn.results
    ]
    header = ["k", "top 1", f"top {num_top}", "untrained, top 1", f"untrained, top {num_top}"]
    weights = f"A neighbour of cosine similarity s votes with weight exp(s / {knn.temperature})."
    return [html.prose(weights), html.table(header, rows)]


def _linear(linear: LinearFound) -> list[Html]:
    tiles = [
        (share_text(linear.top1), "top 1"),
        (share_text(linear.top5), f"top {linear.num_top}"),
        (f"{linear.epochs:,}", "epochs"),
    ]
    return [html.tiles(tiles), html.details("Settings of the probe", [html.facts(common.texts(linear.settings))])]


def _linear_quick(quick: QuickLinearFound) -> list[Html]:
    tiles = [
        (share_text(quick.top1, standard_error(quick.top1, quick.num_test)), "top 1"),
        (share_text(quick.top5), f"top {quick.num_top}"),
        (number_text(quick.strength), "strength of the regularisation, chosen on held-out training images"),
    ]
    rows = [[number_text(strength), share_text(share)] for strength, share in quick.validation]
    tested = html.table(["strength", "accuracy on held-out images"], rows)
    return [html.tiles(tiles), html.details("All strengths", [tested])]


def _correspondence(found: CorrespondenceFound) -> list[Html]:
    kinds = (("all", ""), (f"{found.num_top} most similar", "_top"))
    rows = [[name, _matched(found, top), _matched(found.untrained, top)] for name, top in kinds]
    about = (
        f"Two augmentations of {found.num_images:,} images at {found.size} px: how many locations have the right "
        "one of the other view as their most similar, and how far off the matches lie on average."
    )
    blocks = [html.prose(about), html.table(["locations of an image", "this model", "untrained"], rows)]
    if found.scenes is not None:
        rows = [
            [
                f"{Path(scene.image_a).name} and {Path(scene.image_b).name}",
                str(scene.num_locations),
                *(_matched(model, top) for top in ("", "_top") for model in (scene, scene.untrained)),
            ]
            for scene in found.scenes.pairs
        ]
        header = ["photographs", "locations in both", "all", "untrained", "most similar", "untrained"]
        blocks += [html.prose("Pairs of photographs, held to the homography between them."), html.table(header, rows)]
    return blocks


def _matched(means: Matched, top: str) -> str:
    """Accuracy and mean distance error."""
    return f"{share_text(getattr(means, f'accuracy{top}'))}, {getattr(means, f'error{top}_px'):.1f} px"


def _collapse(collapse: CollapseFound) -> list[Html]:
    rows = [
        [COLLAPSE_MEASURES[key][0], number_text(value), COLLAPSE_MEASURES[key][1]]
        for key, value in collapse.metrics.items()
    ]
    return [html.table(["measure", "value", "how to read it"], rows)]


_PROBES: dict[str, tuple[str, Callable[[Any], list[Html]]]] = {
    "knn": ("k-NN", _knn),
    "linear": ("Linear layer", _linear),
    "linear_quick": ("Logistic regression", _linear_quick),
    "correspondence": ("Correspondence", _correspondence),
    "collapse": ("Collapse", _collapse),
}


def _command(folder: Folder, evaluation: Evaluation) -> str:
    options = ["--data", *evaluation.data]
    if evaluation.test is not None:
        options += ["--test", *evaluation.test]
    options += ["--probes", *(probe for probe in _PROBES if getattr(evaluation, probe) is not None)]
    for key in ("resize", "crop", "anchors"):
        options += [f"--{key}", str(getattr(evaluation, key))]
    if evaluation.knn is not None:
        options += ["--ks", *(str(result.k) for result in evaluation.knn.results)]
    if (matched := evaluation.correspondence) is not None:
        options += ["--pairs", str(matched.num_images)]
        if matched.scenes is not None:
            options += ["--scenes", matched.scenes.file]
    if evaluation.linear is not None:
        linear = LinearConfig.model_validate(evaluation.linear.settings)
        for key, value in linear.model_dump().items():
            if value != getattr(LinearConfig(), key):
                options += [f"--linear.{key}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(["glsd", "evaluate", evaluation.model, *options, "--out", folder.out])
