"""What a training worker says when no unit comes: a stream that starves makes no error."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import ray

from ray_jobs.workers.stream import Unit

PATIENCE_S: Final = 300.0
"""Without a unit, after which it says what the stream waits for, and again after as long."""


def watched(units: Iterator[Unit], say: Callable[[str], None], patience_s: float = PATIENCE_S) -> Iterator[Unit]:
    """The units; what they wait for is said while the worker waits for one longer than its patience."""
    asked_at: float | None = None  # when the worker began to wait, if it does
    stop = threading.Event()

    def watch() -> None:
        said_at = 0.0
        while not stop.wait(patience_s / 10):
            since = asked_at
            if since is not None and time.monotonic() - max(since, said_at) > patience_s:
                say(f"no image has come for {(time.monotonic() - since) / 60:.0f} minutes: {_cause()}")
                said_at = time.monotonic()

    threading.Thread(target=watch, name="glsd-waiting", daemon=True).start()
    try:
        while True:
            asked_at = time.monotonic()
            unit = next(units, None)
            asked_at = None
            if unit is None:
                return
            yield unit
    finally:
        stop.set()


def _cause() -> str:
    """What the cluster lacks, if it lacks anything."""
    total, free = ray.cluster_resources(), ray.available_resources()
    cpus = total.get("CPU", 0.0)
    if free.get("CPU", 0.0) < 1:
        return (
            f"none of the cluster's {cpus:g} CPUs is free to decode images (`ray status` shows what holds them); end "
            "other jobs, add a node, or use fewer --workers or --cpus_per_worker"
        )
    if free.get("object_store_memory", 0.0) < 0.05 * total.get("object_store_memory", 0.0):
        return "the object store is full (`ray memory` shows of what); end other jobs, or start Ray with more of it"
    return "there are CPUs and memory for them, so their storage does not answer, or they are very large"
