"""How a job runs, apart from what it computes: the same experiment on another cluster has the same configuration."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from glsd.record import Record
from glsd.runs.trackers import Logger

DataOn = Literal["any", "train", "data"]


class JobSettings(Record):
    """Workers, devices and failures of one job."""

    workers: int | str = 1
    """Training workers, one process and one GPU (or the machine's cores in equal parts) each. pretrain takes a range,
    such as 1:8: as many as the nodes that are up have room for, fewer once a node is lost, more once one comes."""
    gpu: bool | None = None
    """Train on GPUs; by default if the cluster has any."""
    gpus_per_worker: float = Field(default=1, gt=0, le=1)
    """GPUs that a training worker reserves, if it trains on one; with fractions several small jobs share a GPU."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """CPUs that a training worker reserves on its node; the default is 0.01 on one machine, and 1 on a cluster or with
    a range of workers."""
    photometrics: Literal["auto", "worker", "device"] = "auto"
    """Where photometric transforms are computed: by the CPU workers of the stream, or in batches on the training
    device; auto is the device if it is a GPU."""
    data_on: DataOn = "any"
    """Where images are decoded and cropped: on the cores of the node that trains on them, and on others once those are
    busy; train is the first alone, and data the nodes with the label `role=data`."""
    cache_gib: float = Field(default=0, ge=0)
    """GiB of each node's cache folder (GLSD_CACHE) for images of object stores: later epochs read them there."""
    wait_for_nodes: float = Field(default=20, ge=0)
    """Minutes that pretrain and sweep wait for nodes with room for the workers, if a cluster has too few; autoscalers
    are asked for them."""
    max_failures: int | None = Field(default=None, ge=0)
    """How often the workers are restarted after one dies; the default is 0 on one machine, and 3 on a cluster or with a
    range of workers."""
    dashboard: bool = False
    """Start Ray's dashboard, if this job starts Ray itself."""
    loggers: tuple[Logger, ...] = ()
    """Log the run also to wandb (Weights & Biases) or mlflow, each an extra of that name."""

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, workers: int | str) -> int | str:
        least, most = _range(workers)
        if not 1 <= least <= most:
            raise ValueError(f"{workers!r} is neither a number of workers nor a range of them; write 4, or 1:4")
        return workers if least < most else least

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest number of workers."""
        return _range(self.workers)

    @property
    def num_workers(self) -> int:
        """The number of workers of a job that cannot change it.

        Raises:
            ValueError: it is a range.
        """
        if isinstance(self.workers, str):
            raise ValueError(f"--workers {self.workers}: only pretrain takes a range; name one number")
        return self.workers

    def of_width(self, workers: int) -> "JobSettings":
        """These settings with so many workers of the range. Their defaults are those of a cluster."""
        cluster = {
            "cpus_per_worker": self.cpus_per_worker or 1.0,
            "max_failures": 3 if self.max_failures is None else self.max_failures,
        }
        return self if workers == self.workers else self.model_copy(update={"workers": workers, **cluster})

    @property
    def cache_bytes(self) -> int:
        """The same in bytes."""
        return int(self.cache_gib * 2**30)


def _range(workers: int | str) -> tuple[int, int]:
    """The least and the largest of a range, (0, 0) for what is none."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", str(workers))
    return (int(match[1]), int(match[2] or match[1])) if match else (0, 0)


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
