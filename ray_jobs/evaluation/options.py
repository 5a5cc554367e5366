"""The options of `glsd evaluate`, for Python and for the command line."""

from dataclasses import dataclass
from typing import Literal

from glsd.config import LinearConfig

Probe = Literal["knn", "linear", "linear_quick", "correspondence", "collapse"]


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, how, and where it is written."""

    test: tuple[str, ...] = ()
    """Images that are tested; without them a share `evaluation.holdout` of the data is."""
    probes: tuple[Probe, ...] = ("knn",)
    """What to measure; linear_quick is a logistic regression on the representations, linear trains on crops."""
    out: str | None = None
    """Folder for evaluation.json and figures; further probes of the same model and images are added to it."""
    beside: tuple[str, ...] = ()
    """Further models, whose correspondences are drawn beside (Fig. 5), for the probe correspondence with --out."""
    anchors: Literal["full", "regime"] = "full"
    """Train and vote with all images (Sec. 4.5.1), or with the regime that the run was trained on."""
    ks: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours that vote."""
    resize: int | None = None
    """Shorter side after the resize in pixels; by default the model's."""
    crop: int | None = None
    """Side of the centre crop in pixels, for small images; by default the model's."""
    pairs: int = 1000
    """Most images whose two views are matched for the correspondence."""
    scenes: str | None = None
    """CSV file of photographs of a flat scene, matched as well: image_a, image_b, homography (nine numbers)."""
    linear: LinearConfig = LinearConfig()
    """Settings of the probe linear."""
    figures: bool = True
    """Draw figures into --out."""
    keep: bool = True
    """Leave the representations of the images in the cache, for later probes."""
