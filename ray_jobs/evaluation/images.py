"""Which images an evaluation looks at, and whether the encoder's map of one has locations to match."""

import math
from dataclasses import dataclass

import numpy as np

from glsd.data.index import Index
from glsd.data.regimes import regime
from glsd.data.splits import LabelledSplit, has_classes, labelled_split
from glsd.encoder.encoder import Encoder
from ray_jobs.evaluation.features import Images, Selection
from ray_jobs.evaluation.options import NEEDING_LABELS, EvaluateOptions


@dataclass(frozen=True)
class ProbedImages:
    """The images of an evaluation: a split of labelled ones, or others, for probes that need no labels."""

    split: LabelledSplit | None
    tested: Images
    """Images whose views are matched."""
    trained: Images


def probed_images(encoder: Encoder, index: Index, tested: Index | None, options: EvaluateOptions) -> ProbedImages:
    """The images of `index` that train and vote, and those that are tested or matched; None tests a share of `index`.

    Where the probes need no labels, images of one class or none will do.

    Raises:
        ValueError: labels are missing, or there is no regime.
    """
    evaluation = encoder.config.evaluation
    everything = evaluation.model_copy(update={"max_images": len(index) + (len(tested) if tested else 0)})
    trained = np.arange(len(index))
    if options.anchors == "regime":
        if index.labels is None:
            raise ValueError("--anchors regime needs labelled --data; use --anchors full")
        limits = encoder.config.data
        if limits.images_per_class is None and limits.fraction is None:
            raise ValueError("--anchors regime: the model was trained on all its images; there is no smaller regime")
        trained = regime(index, limits)
    if not NEEDING_LABELS & set(options.probes) and (tested is not None or not has_classes(index)):
        return ProbedImages(None, Selection.all(tested or index), Selection(index, trained))
    split = labelled_split(index, tested, everything)
    split = split._replace(anchors=split.anchors.rows(np.isin(split.anchors.image_ids, trained)))
    return ProbedImages(split, split.queries, split.anchors)


def check_map(encoder: Encoder, name: str) -> None:
    """Refuse a dense representation of a single location, of which every correspondence is right."""
    crop = encoder.config.evaluation.crop
    if math.prod(encoder.backbone.grid(crop)) == 1:
        raise ValueError(
            f"{name} has a single location in a crop of {crop} px, which can only match itself; for correspondence use "
            "a larger --crop or a backbone of a smaller stride"
        )
