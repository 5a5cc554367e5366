"""The options of `glsd pretrain`, for Python and for the command line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PretrainOptions:
    """What a run starts from, what tests it, and what it draws; none of it is a setting of the experiment."""

    knn_data: tuple[str, ...] = ()
    """Labelled images to test by k-NN during the run, on which the labelled images of the data vote; without them a
    share of the labelled data is tested. Labels are never trained on."""
    init_from: str | None = None
    """Start student and teacher from the backbone of this model: a run, a checkpoint, an exported backbone, timm:NAME,
    or timm:NAME=FILE of weights. The run keeps a copy, so that the model is not needed to resume."""
    figures: bool = True
    """Draw figures into --out at the end."""
