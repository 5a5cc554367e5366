"""How units were made, which travels with them, and what a training says of it: the metrics of its stream."""

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import ray

MAKING: Final = "making"
"""Column of a unit with its `Making`, the same one for each of its images."""
_MOST_RECEIVED: Final = 100_000
"""Times that a meter keeps: more units than this are never ahead of a worker."""


class Making(NamedTuple):
    """How a unit was made, and what its task has counted since the unit before it."""

    begun_at: float
    """When the task began, in seconds since 1970."""
    made_at: float
    """When the unit was made, in seconds since 1970."""
    coordinator: int
    """The process, on the node of the worker, that started the task."""
    requests: int
    cache_hits: int
    cache_misses: int

    def column(self, num_rows: int) -> np.ndarray:
        """The same for each row, (num_rows, 6)."""
        return np.tile(np.array(self, np.float64), (num_rows, 1))


class Received(NamedTuple):
    """What a worker received in some time."""

    seconds: float
    num_units: int
    num_waiting: int
    """Of each unit, the units that the worker received since it was made, added up: those before it in the queue."""
    num_ahead: int
    """The same since its task began."""
    requests: int
    cache_hits: int
    cache_misses: int
    coordinator_bytes: int
    """0 where it has ended, or is not known."""


class Meter:
    """Adds up how the units of a worker were made, from one reading to the next.

    Ray Data does not say how many units there are ahead of a worker, so they are counted as they come.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._received_at = clock, list[float]()
        self._restart()

    def add(self, unit: Mapping[str, np.ndarray]) -> None:
        """Note a unit that the worker receives now."""
        making = Making(*unit[MAKING][0].tolist())
        self._num_waiting += self._num_since(making.made_at)
        self._num_ahead += self._num_since(making.begun_at)
        self._makings.append(making)
        self._received_at.append(self._clock())
        if len(self._received_at) > 2 * _MOST_RECEIVED:
            del self._received_at[:_MOST_RECEIVED]

    def read(self) -> Received:
        """The sums since the last reading."""
        received = Received(
            self._clock() - self._start,
            len(self._makings),
            self._num_waiting,
            self._num_ahead,
            int(sum(making.requests for making in self._makings)),
            int(sum(making.cache_hits for making in self._makings)),
            int(sum(making.cache_misses for making in self._makings)),
            _private_bytes(int(self._makings[-1].coordinator)) if self._makings else 0,
        )
        self._restart()
        return received

    def _num_since(self, moment: float) -> int:
        """Units received since."""
        return len(self._received_at) - bisect_right(self._received_at, moment)

    def _restart(self) -> None:
        self._start, self._makings, self._num_waiting, self._num_ahead = self._clock(), list[Making](), 0, 0


def stream_metrics(everyones: Sequence[Received]) -> dict[str, float]:
    """The metrics of the units of all workers together; none where no unit was received."""
    received = [worker for worker in everyones if worker.num_units]
    if not received:
        return {}
    metrics: dict[str, float] = {
        "units_per_s": sum(worker.num_units / worker.seconds for worker in received),
        "units_waiting": sum(worker.num_waiting / worker.num_units for worker in received),
        "units_ahead": sum(worker.num_ahead / worker.num_units for worker in received),
        "requests": sum(worker.requests for worker in received),
    }
    if ray.is_initialized():
        metrics["object_store"] = _object_store_share()
    if coordinator := max(worker.coordinator_bytes for worker in received):
        metrics["coordinator_bytes"] = coordinator
    hits = sum(worker.cache_hits for worker in received)
    if num_read := hits + sum(worker.cache_misses for worker in received):
        metrics["cache_hit_rate"] = hits / num_read
    return metrics


def _object_store_share() -> float:
    """In use, of all nodes together: what Ray says of single nodes needs its dashboard."""
    total: float = ray.cluster_resources()["object_store_memory"]
    free: float = ray.available_resources().get("object_store_memory", 0.0)
    return 1 - free / total


def _private_bytes(pid: int) -> int:
    """Memory of a process without what it shares, such as the object store; 0 if it has ended or this is not Linux."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)
