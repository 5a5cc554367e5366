from .embedding import embed as embed
from .evaluating import evaluate as evaluate
from .finishing import report as report
from .packing import pack as pack
from .pretraining import Run as Run
from .pretraining import pretrain as pretrain
from .sweeping import sweep as sweep

__all__ = [
    "Run",
    "embed",
    "evaluate",
    "pack",
    "pretrain",
    "report",
    "sweep",
]
