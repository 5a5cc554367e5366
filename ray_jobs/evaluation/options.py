"""The options of `glsd evaluate` and `glsd embed`, for Python and for the command line."""

from dataclasses import dataclass
from typing import Literal, get_args

from glsd.config import LinearConfig

Probe = Literal["knn", "linear", "linear_quick", "correspondence", "collapse"]
PROBES: tuple[Probe, ...] = get_args(Probe)
NEEDING_LABELS = {"knn", "linear", "linear_quick"}


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
    """Leave z̄ of the images in the cache for later probes; representations of several blocks always stay."""

    def check(self) -> None:
        """Refuse what is out of range or would have no effect, as far as it shows without model and images."""
        if unknown := [probe for probe in self.probes if probe not in PROBES]:
            raise ValueError(f"there is no probe {unknown[0]!r}; choose from {', '.join(PROBES)}")
        if min(self.ks, default=0) < 1:
            given = " ".join(map(str, self.ks)) or "none"
            raise ValueError(f"--ks must be numbers of neighbours, 1 or more each, not {given}")
        if self.pairs < 1:
            raise ValueError(
                f"--pairs must be 1 or more, not {self.pairs}; without correspondence in --probes none is matched"
            )
        if self.scenes is not None and "correspondence" not in self.probes:
            raise ValueError("--scenes is for the probe correspondence; add it to --probes")
        if self.beside and not ("correspondence" in self.probes and self.out is not None and self.figures):
            raise ValueError("--beside draws correspondences; it needs correspondence in --probes and a folder --out")


@dataclass(frozen=True)
class EmbedOptions:
    """What is written of each image."""

    dense: bool = False
    """Also write z, the dense representation."""
