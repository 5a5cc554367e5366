from .evaluation.embedding import embed as embed
from .evaluation.job import evaluate as evaluate
from .packing import pack as pack
from .pretraining.finish import report as report
from .pretraining.job import Run as Run
from .pretraining.job import pretrain as pretrain
from .sweeps.job import sweep as sweep

__all__ = [
    "Run",
    "embed",
    "evaluate",
    "pack",
    "pretrain",
    "report",
    "sweep",
]
