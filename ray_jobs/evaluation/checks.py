"""What an evaluation refuses before it starts anything."""

import math

from glsd.encoder.encoder import Encoder
from ray_jobs.evaluation.options import EvaluateOptions
from ray_jobs.evaluation.probes import PROBES


def check_options(options: EvaluateOptions) -> None:
    """What can be told without model and images.

    Raises:
        ValueError: an option is out of range, or would have no effect.
    """
    probes, ks, pairs = options.probes, options.ks, options.pairs
    if unknown := [probe for probe in probes if probe not in PROBES]:
        raise ValueError(f"there is no probe {unknown[0]!r}; choose from {', '.join(PROBES)}")
    if min(ks, default=0) < 1:
        raise ValueError(f"--ks must be numbers of neighbours, 1 or more each, not {' '.join(map(str, ks)) or 'none'}")
    if pairs < 1:
        raise ValueError(f"--pairs must be 1 or more, not {pairs}; without correspondence in --probes none is matched")
    if options.scenes is not None and "correspondence" not in probes:
        raise ValueError("--scenes is for the probe correspondence; add it to --probes")
    if options.beside and not ("correspondence" in probes and options.out is not None and options.figures):
        raise ValueError("--beside draws correspondences; it needs correspondence in --probes and a folder --out")


def check_map(encoder: Encoder, name: str) -> None:
    """Whether there is a location to mistake another for.

    Raises:
        ValueError: the dense representation of `name` has a single one, so that every correspondence is right.
    """
    crop = encoder.config.evaluation.crop
    if math.prod(encoder.backbone.grid(crop)) == 1:
        raise ValueError(
            f"{name} has a single location in a crop of {crop} px, which can only match itself; for correspondence use "
            "a larger --crop or a backbone of a smaller stride"
        )
