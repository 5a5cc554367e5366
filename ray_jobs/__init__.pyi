from .evaluation.embedding import embed as embed
from .evaluation.job import evaluate as evaluate
from .evaluation.options import EmbedOptions as EmbedOptions
from .evaluation.options import EvaluateOptions as EvaluateOptions
from .packing import pack as pack
from .packing_options import PackOptions as PackOptions
from .pretraining.finish import report as report
from .pretraining.job import Run as Run
from .pretraining.job import pretrain as pretrain
from .pretraining.options import PretrainOptions as PretrainOptions
from .settings import JobSettings as JobSettings
from .sweeps.job import sweep as sweep
from .sweeps.options import SweepOptions as SweepOptions

__all__ = [
    "EmbedOptions",
    "EvaluateOptions",
    "JobSettings",
    "PackOptions",
    "PretrainOptions",
    "Run",
    "SweepOptions",
    "embed",
    "evaluate",
    "pack",
    "pretrain",
    "report",
    "sweep",
]
