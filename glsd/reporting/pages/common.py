"""What the pages of runs, evaluations and sweeps share."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from glsd.evaluation.verdict import Verdict, standard_error
from glsd.reporting.page import html
from glsd.reporting.page.html import Bar, Html
from glsd.runs.lease import TIMES, read_holder
from glsd.runs.log import FIGURES
from glsd.runs.records import SkippedImage
from glsd.storage.folder import Folder

_MAX_SKIPPED = 50


def verdict_badges(verdict: Verdict | None) -> list[Html]:
    """Healthy or collapsed, at the top of a page."""
    return [] if verdict is None else [html.badge("good" if verdict.label == "healthy" else "bad", verdict.label)]


def unfinished_badge(folder: Folder, so_far: str) -> Html:
    """Running or interrupted, by the lease of the folder, and how far."""
    holder = read_holder(folder)
    if holder is not None and holder.silent_s < TIMES.lapse_s:
        return html.badge("open", f"running, {so_far}")
    return html.badge("bad", f"interrupted, {so_far}")


def reasons(verdict: Verdict | None) -> list[Html]:
    """The reasons of a verdict."""
    return [html.points(verdict.reasons)] if verdict is not None and verdict.reasons else []


def accuracy(name: str, share: float, num_tested: int, emphasised: bool = False) -> Bar:
    """An accuracy with the standard error of so many tested images."""
    return Bar(name, share, standard_error(share, num_tested), emphasised)


def figure_section(folder: Folder) -> dict[str, list[Html]]:
    """A section with the folder's figures in the order of `_CAPTIONS`, if it has any."""
    figures = Folder(folder.uri(FIGURES))
    there = {name.removesuffix(".png") for name in figures.sizes() if name.endswith(".png")} - _SHOWN_AS_CHARTS
    blocks = []
    for stem in [*(stem for stem in _CAPTIONS if stem in there), *sorted(there - _CAPTIONS.keys())]:
        title, caption = _CAPTIONS.get(stem, (stem.replace("_", " "), ""))
        blocks.append(html.picture(figures.read(f"{stem}.png") or b"", title, caption))
    return {"Figures": blocks} if blocks else {}


def skipped_block(skipped: Sequence[SkippedImage]) -> list[Html]:
    """The images that could not be decoded, and why."""
    if not skipped:
        return [html.prose("None: every image that was needed could be decoded.")]
    sentence = f"{len(skipped):,} could not be decoded."
    if len(skipped) > _MAX_SKIPPED:
        sentence += f" The first {_MAX_SKIPPED}:"
    rows = [[str(image.image_id), image.uri, image.reason] for image in skipped[:_MAX_SKIPPED]]
    return [html.prose(sentence), html.table(["image", "file", "reason"], rows)]


def loading(imported: str, function: str, model: str) -> list[Html]:
    """The lines of Python that load a model."""
    about = "With glsd; z̄ (B, d) represents an image and z (B, H, W, d) its locations:"
    return [html.prose(about), html.code(f"{imported}\nencoder = {function}({model!r})\nz_bar, z = encoder(images)")]


def footer(folder: Folder) -> str:
    """When and from what a page was written."""
    return f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {folder.out}."


def texts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of a JSON file for people; those of an inner object stand after its outer ones."""
    flat, inner = [], []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            inner += texts(value)
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
            flat.append((name.replace("_", " "), text))
    return flat + inner


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
}
"""Title and caption of a figure by its file's name, in the order in which they are shown."""
_SHOWN_AS_CHARTS = {"curves", "collapse"}
