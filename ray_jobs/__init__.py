"""The paper as jobs on Ray: pretrain, evaluate, pack. Importing this imports no Ray until a job is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_jobs.evaluating import evaluate as evaluate
    from ray_jobs.packing import pack as pack
    from ray_jobs.pretraining import Run as Run
    from ray_jobs.pretraining import pretrain as pretrain

_ROOMS = {"Run": "pretraining", "evaluate": "evaluating", "pack": "packing", "pretrain": "pretraining"}

__all__ = ["Run", "evaluate", "pack", "pretrain"]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ray_jobs.{_ROOMS[name]}"), name)
