"""The page of an evaluation, with a section for each probe that it holds."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glsd.config import LinearConfig
from glsd.evaluation.verdict import COLLAPSE_MEASURES, Verdict, standard_error
from glsd.reporting.numbers import number_text, share_text
from glsd.reporting.page import html
from glsd.reporting.page.html import Bar, Html
from glsd.reporting.pages.common import (
    accuracy,
    figure_section,
    footer,
    loading,
    reasons,
    skipped_block,
    texts,
    verdict_badges,
)
from glsd.storage.folder import Folder

_MAIN_K = 20


def evaluation_page(folder: Folder, evaluation: Mapping[str, Any]) -> str:
    """The page of an evaluation."""
    verdict = None
    if "collapse" in evaluation:
        verdict = Verdict(evaluation["collapse"]["verdict"], tuple(evaluation["collapse"]["reasons"]))
    tested = "" if evaluation["test"] is None else f", tested on {', '.join(evaluation['test'])}"
    model, classes = evaluation["model"], evaluation["classes"]
    lead = (
        f"{evaluation['backbone']} on {', '.join(evaluation['data'])}{tested}: {evaluation['num_images']:,} images"
        + ("" if classes is None else f" of {len(classes):,} classes")
        + f", resized to {evaluation['resize']} px and cropped to {evaluation['crop']} px."
    )
    return html.page(
        html.Head("glsd · evaluation", model, verdict_badges(verdict), lead),
        {
            "Results": [*_results(evaluation), *reasons(verdict)] or [html.prose("What was measured stands below.")],
            **{title: blocks(evaluation[key]) for key, (title, blocks) in _PROBES.items() if key in evaluation},
            **figure_section(folder),
            "Skipped images": skipped_block(evaluation["skipped"]),
            "Use the backbone": loading("from glsd.evaluation import load_model", "load_model", model),
            "Settings": [html.code(_command(folder, evaluation))],
            "Environment": [html.facts(texts(evaluation["environment"]))],
        },
        footer(folder),
    )


def _results(evaluation: Mapping[str, Any]) -> list[Html]:
    bars, notes = [], []
    if "knn" in evaluation:
        knn = evaluation["knn"]
        chosen = next((result for result in knn["results"] if result["k"] == _MAIN_K), knn["results"][-1])
        untrained = {result["k"]: result for result in knn["untrained"]}
        bars.append(accuracy(f"k-NN, k = {chosen['k']}", chosen["top1"], knn["num_queries"], emphasised=True))
        if chosen["k"] in untrained:
            bars.append(accuracy("k-NN, untrained backbone", untrained[chosen["k"]]["top1"], knn["num_queries"]))
        bars.append(Bar("always the most frequent class", knn["majority"]))
        notes.append(f"{knn['num_anchors']:,} images vote on {knn['num_queries']:,} others.")
    if "linear" in evaluation:
        bars.append(Bar("linear layer", evaluation["linear"]["top1"], emphasised=True))
    if "linear_quick" in evaluation:
        quick = evaluation["linear_quick"]
        bars.append(accuracy("logistic regression", quick["top1"], quick["num_test"], emphasised=True))
    if "correspondence" in evaluation:
        bars.append(Bar("correspondences", evaluation["correspondence"]["accuracy"], emphasised=True))
    if any(bar.error is not None for bar in bars):
        notes.append("Whiskers and ± are one standard error.")
    return [*([html.bars(bars)] if bars else []), *([html.prose(" ".join(notes))] if notes else [])]


def _knn(knn: Mapping[str, Any]) -> list[Html]:
    untrained = {result["k"]: result for result in knn["untrained"]}
    num_top = knn["results"][0]["num_top"]
    rows = [
        [
            str(result["k"]),
            share_text(result["top1"], standard_error(result["top1"], knn["num_queries"])),
            share_text(result["top5"]),
            *(share_text(untrained[result["k"]][top]) if result["k"] in untrained else "–" for top in ("top1", "top5")),
        ]
        for result in knn["results"]
    ]
    header = ["k", "top 1", f"top {num_top}", "untrained, top 1", f"untrained, top {num_top}"]
    weights = f"A neighbour of cosine similarity s votes with weight exp(s / {knn['temperature']})."
    return [html.prose(weights), html.table(header, rows)]


def _linear(linear: Mapping[str, Any]) -> list[Html]:
    tiles = [
        (share_text(linear["top1"]), "top 1"),
        (share_text(linear["top5"]), f"top {linear['num_top']}"),
        (f"{linear['epochs']:,}", "epochs"),
    ]
    return [html.tiles(tiles), html.details("Settings of the probe", [html.facts(texts(linear["settings"]))])]


def _linear_quick(quick: Mapping[str, Any]) -> list[Html]:
    tiles = [
        (share_text(quick["top1"], standard_error(quick["top1"], quick["num_test"])), "top 1"),
        (share_text(quick["top5"]), f"top {quick['num_top']}"),
        (number_text(quick["strength"]), "strength of the regularisation, chosen on held-out training images"),
    ]
    rows = [[number_text(strength), share_text(share)] for strength, share in quick["validation"]]
    tested = html.table(["strength", "accuracy on held-out images"], rows)
    return [html.tiles(tiles), html.details("All strengths", [tested])]


def _correspondence(found: Mapping[str, Any]) -> list[Html]:
    kinds = (("all", ""), (f"{found['num_top']} most similar", "_top"))
    rows = [[name, _matched(found, top), _matched(found["untrained"], top)] for name, top in kinds]
    about = (
        f"Two augmentations of {found['num_images']:,} images at {found['size']} px: how many locations have the right "
        "one of the other view as their most similar, and how far off the matches lie on average."
    )
    blocks = [html.prose(about), html.table(["locations of an image", "this model", "untrained"], rows)]
    if "scenes" in found:
        rows = [
            [
                f"{Path(scene['image_a']).name} and {Path(scene['image_b']).name}",
                str(scene["num_locations"]),
                *(_matched(model, top) for top in ("", "_top") for model in (scene, scene["untrained"])),
            ]
            for scene in found["scenes"]["pairs"]
        ]
        header = ["photographs", "locations in both", "all", "untrained", "most similar", "untrained"]
        blocks += [html.prose("Pairs of photographs, held to the homography between them."), html.table(header, rows)]
    return blocks


def _matched(means: Mapping[str, Any], top: str) -> str:
    """Accuracy and mean distance error."""
    return f"{share_text(means[f'accuracy{top}'])}, {means[f'error{top}_px']:.1f} px"


def _collapse(collapse: Mapping[str, Any]) -> list[Html]:
    rows = [
        [COLLAPSE_MEASURES[key][0], number_text(value), COLLAPSE_MEASURES[key][1]]
        for key, value in collapse["metrics"].items()
    ]
    return [html.table(["measure", "value", "how to read it"], rows)]


_PROBES = {
    "knn": ("k-NN", _knn),
    "linear": ("Linear layer", _linear),
    "linear_quick": ("Logistic regression", _linear_quick),
    "correspondence": ("Correspondence", _correspondence),
    "collapse": ("Collapse", _collapse),
}


def _command(folder: Folder, evaluation: Mapping[str, Any]) -> str:
    options = ["--data", *evaluation["data"]]
    if evaluation["test"] is not None:
        options += ["--test", *evaluation["test"]]
    options += ["--probes", *(key for key in _PROBES if key in evaluation)]
    for key in ("resize", "crop", "anchors"):
        options += [f"--{key}", str(evaluation[key])]
    if "knn" in evaluation:
        options += ["--ks", *(str(result["k"]) for result in evaluation["knn"]["results"])]
    if "correspondence" in evaluation:
        options += ["--pairs", str(evaluation["correspondence"]["num_images"])]
        if "scenes" in evaluation["correspondence"]:
            options += ["--scenes", evaluation["correspondence"]["scenes"]["file"]]
    if "linear" in evaluation:
        linear = LinearConfig.model_validate(evaluation["linear"]["settings"])
        for key, value in linear.model_dump().items():
            if value != getattr(LinearConfig(), key):
                options += [f"--linear.{key}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(["glsd", "evaluate", evaluation["model"], *options, "--out", folder.out])
