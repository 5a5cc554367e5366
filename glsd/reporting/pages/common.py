"""What the pages of runs and evaluations share."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from glsd.evaluation.verdict import Verdict, standard_error
from glsd.reporting.page.html import (
    Badge,
    Bar,
    Block,
    Code,
    FigureBlock,
    Points,
    Prose,
    Section,
    Table,
)
from glsd.runs.log import FIGURES
from glsd.storage.folder import Folder

_MAX_SKIPPED = 50


def verdict_badges(verdict: Verdict | None) -> list[Badge]:
    """Healthy or collapsed, at the top of a page."""
    return [] if verdict is None else [Badge("good" if verdict.label == "healthy" else "bad", verdict.label)]


def reasons(verdict: Verdict | None) -> list[Block]:
    """Why it is judged so."""
    return [Points(verdict.reasons)] if verdict is not None and verdict.reasons else []


def bar(name: str, share: float, num_tested: int, emphasised: bool = False) -> Bar:
    """An accuracy with the standard error of so many tested images."""
    return Bar(name, share, standard_error(share, num_tested), emphasised)


def figure_blocks(folder: Folder) -> list[Section]:
    """A section with the folder's figures in the order of `_CAPTIONS`, if it has any."""
    figures = Folder(folder.uri(FIGURES))
    there = {name.removesuffix(".png") for name in figures.sizes() if name.endswith(".png")} - _SHOWN_AS_CHARTS
    stems = [stem for stem in _CAPTIONS if stem in there] + sorted(there - _CAPTIONS.keys())
    blocks = []
    for stem in stems:
        title, caption = _CAPTIONS.get(stem, (stem.replace("_", " "), ""))
        blocks.append(FigureBlock(figures.read(f"{stem}.png") or b"", title, caption))
    return [Section("Figures", blocks)] if blocks else []


def skipped_block(skipped: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The images that could not be decoded, and why."""
    if not skipped:
        return [Prose("None: every image that was needed could be decoded.")]
    sentence = f"{len(skipped):,} could not be decoded."
    if len(skipped) > _MAX_SKIPPED:
        sentence += f" The first {_MAX_SKIPPED}:"
    rows = [[str(line["image_id"]), line["uri"], line["reason"]] for line in skipped[:_MAX_SKIPPED]]
    return [Prose(sentence), Table(["image", "file", "reason"], rows)]


def loading(imported: str, function: str, model: str) -> list[Block]:
    """The lines of Python that load a model."""
    about = "With glsd; z̄ (B, d) represents an image and z (B, H, W, d) its locations:"
    return [Prose(about), Code(f"{imported}\nencoder = {function}({model!r})\nz_bar, z = encoder(images)")]


def footer(folder: Folder) -> str:
    """When and from what a page was written."""
    return f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {folder.out}."


def texts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of a JSON file for people; those of an inner object stand after its outer ones."""
    flat = [(name.replace("_", " "), _text(value)) for name, value in facts.items() if not isinstance(value, Mapping)]
    inner = [pair for value in facts.values() if isinstance(value, Mapping) for pair in texts(value)]
    return flat + inner


def _text(value: Any) -> str:
    if isinstance(value, list):
        return listed(value)
    return "–" if value is None else str(value)


def listed(values: Sequence[Any]) -> str:
    """Values in a sentence."""
    return ", ".join(str(value) for value in values)


def value_text(value: Any) -> str:
    """A setting as YAML spells it."""
    return json.dumps(value)


_CAPTIONS = {
    "crops": ("Crops", "Where crops lie in their images: global ones thick, local ones thin and dashed."),
    "matchings": (
        "Geometric matchings",
        "Patches of two crops that belong together by where they lay in the image. A white ring is a patch without a "
        "partner.",
    ),
    "matchings_similarity": (
        "Similarity matchings",
        "Patches of the same crops that belong together by the teacher's features.",
    ),
    "correspondences": (
        "Correspondences",
        "Patches of an image and of its mirrored and recoloured view, joined by the similarity of their features.",
    ),
    "different_images": ("Two different images", "The 15 most similar patches of two images."),
    "scenes": (
        "Two photographs of a scene",
        "The 15 most similar patches of two photographs, held to their homography.",
    ),
    "neighbours": (
        "Nearest neighbours",
        "Tested images, each beside the most similar of those that vote, with their cosine similarity. The figure of a "
        "run has the most similar of a thousand of them.",
    ),
    "feature_map": ("Map of the features", "Principal components of z̄: near points are similar images."),
    "feature_map_umap": ("Map of the features by UMAP", "Near points are similar images; far distances mean little."),
    "collapse": ("Collapse over training", "What the teacher still tells apart, step by step."),
}
"""Title and caption of a figure by its file's name, in the order in which they are shown."""


_SHOWN_AS_CHARTS = {"curves"}
