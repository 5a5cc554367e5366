"""The paper as jobs on Ray: pretrain, evaluate, sweep. Importing this imports no Ray until a job is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_jobs.embedding import embed as embed
    from ray_jobs.evaluating import evaluate as evaluate
    from ray_jobs.packing import pack as pack
    from ray_jobs.pretraining import Run as Run
    from ray_jobs.pretraining import pretrain as pretrain
    from ray_jobs.reporting import report as report
    from ray_jobs.sweeping import sweep as sweep

_ROOMS = {
    "Run": "pretraining",
    "embed": "embedding",
    "evaluate": "evaluating",
    "pack": "packing",
    "pretrain": "pretraining",
    "report": "reporting",
    "sweep": "sweeping",
}

__all__ = ["Run", "embed", "evaluate", "pack", "pretrain", "report", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ray_jobs.{_ROOMS[name]}"), name)
