"""How a job runs, apart from what it computes: the same experiment on another cluster has the same configuration."""

import os
from typing import Literal

from pydantic import Field

from glsd.config import Record

Logger = Literal["wandb", "mlflow"]


class JobSettings(Record):
    """Workers, devices and failures of one job."""

    workers: int = Field(default=1, ge=1)
    """Training workers, one process and one GPU (or the machine's cores in equal parts) each."""
    gpu: bool | None = None
    """Train on GPUs; None does where the cluster has any."""
    gpus_per_worker: float = Field(default=1, gt=0, le=1)
    """GPU that a training worker reserves, where it trains on one; several small jobs can share a GPU by fractions."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """CPUs that a training worker reserves on its node; None is next to none on one machine and 1 on a cluster."""
    photometrics: Literal["auto", "worker", "device"] = "auto"
    """Where photometric transforms are computed: by the CPU workers of the stream or batch-wise on the training device;
    auto is the device where it is a GPU."""
    max_failures: int | None = Field(default=None, ge=0)
    """How often the workers are started again after one dies; None is 0 on one machine and 3 on a cluster."""
    dashboard: bool = False
    """Start Ray's dashboard where this job starts Ray by itself."""
    loggers: tuple[Logger, ...] = ()
    """Log the run there as well: wandb (Weights & Biases) and mlflow, extras of that name."""

    @property
    def device(self) -> str:
        """Where this process computes, if it is none of the workers: on its machine's GPU, if `gpu` allows it.

        A trial of a sweep is an actor that reserves no GPU; on those that it sees others train.
        """
        import ray  # as torch takes seconds, and `glsd --help` asks for the settings alone
        import torch

        is_trial = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
        return "cuda" if self.gpu is not False and not is_trial and torch.cuda.is_available() else "cpu"


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
