"""How a job runs, apart from what it computes: the same experiment on another cluster has the same configuration."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from glsd.record import Record
from glsd.runs.trackers import Logger


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


def num_cores(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: those that it may run on, or fewer where a container has a quota of CPU time.

    Args:
        cgroups: where control groups are mounted, of version 2 or, in a folder for each controller, of version 1.
        membership: the groups of this process. A quota of a group above counts as well.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _cpu_quotas(cgroups, membership))]))


def _cpu_quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The CPUs that each limited group of this process may use; a container may see its own group as the topmost."""
    try:
        lines = membership.read_text("utf-8").splitlines()
    except OSError:  # not on Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top in (cgroups / controllers, cgroups / "cpu") if controllers else (cgroups, cgroups / "unified"):
            for group in (top / path.lstrip("/"), *(top / path.lstrip("/")).parents):
                if group.is_relative_to(top):
                    yield from _cpu_quota(group)


def _cpu_quota(group: Path) -> Iterator[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text("utf-8") for name in names).split()
        except OSError:
            continue
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)
