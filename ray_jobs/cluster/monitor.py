"""What a running job says: metrics travel from rank 0 to the driver's progress line and to Prometheus.

Rank 0 pushes into a tiny actor and waits for it only at its end; the driver looks there twice a second. A job whose
monitor has died continues in silence.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.cluster.exporting import Event, Exporter
from ray_jobs.cluster.stopping import is_asked
from ray_jobs.progress import ProgressLine

Handle: TypeAlias = Any
"""Handle of a `Monitor` actor; Ray's own type of it has no methods that a checker can see."""
POLL_INTERVAL_S = 0.5
ARRIVAL_S = 10.0
"""How long the last news may take to the driver's machine; later ones are lost."""


class Monitor:
    """News from rank 0 until the driver takes them, oldest first: calls of the progress line's methods."""

    def __init__(self) -> None:
        self._news: deque[tuple[str, tuple[Any, ...]]] = deque(maxlen=1000)
        self._has_started = self._is_stopping = False

    def push(self, method: str, *content: Any) -> None:
        """Add a piece of news."""
        self._news.append((method, content))

    def take(self) -> list[tuple[str, tuple[Any, ...]]]:
        """All news since the last call."""
        news = list(self._news)
        self._news.clear()
        return news

    def worker_started(self) -> None:
        """Say that a worker runs."""
        self._has_started = True

    def has_started(self) -> bool:
        """Whether a worker has run since `start`."""
        return self._has_started

    def start(self) -> None:
        """Begin anew: no worker runs, and none is asked to end."""
        self._has_started = self._is_stopping = False

    def stop(self) -> None:
        """Ask the workers to save a checkpoint and to end."""
        self._is_stopping = True

    def is_stopping(self) -> bool:
        """Whether the workers are to end."""
        return self._is_stopping


def start_monitor() -> Handle:
    """A monitor on the driver's node. It has no name, so that runs cannot share it, and ends with the driver."""
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Monitor).options(scheduling_strategy=node).remote()


@contextmanager
def watch(monitor: Handle, line: ProgressLine) -> Iterator[None]:
    """Show the monitor's news on the line while the body of the `with` block runs, and the last of them after it.

    The monitor is told when this process is asked to end.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(monitor, line, stop), name="glsd-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        line.close()


def _watch(monitor: Handle, line: ProgressLine, stop: threading.Event) -> None:
    asked, is_last, is_stopping = None, False, False
    while True:
        stopped = stop.wait(POLL_INTERVAL_S)
        try:
            if is_asked() and not is_stopping:
                monitor.stop.remote()
                is_stopping = True
            if asked is None:
                asked, is_last = monitor.take.remote(), stopped
            news: list[tuple[str, tuple[Any, ...]]] = ray.get(asked, timeout=ARRIVAL_S)
        except GetTimeoutError:
            if stopped:
                return
            continue  # a busy machine; nothing is lost
        except RayError:
            return  # the monitor or the cluster is gone; the job itself says how it ends
        asked = None
        for method, content in news:
            getattr(line, method)(*content)
        if is_last:  # it was asked after the end, so what came last is shown
            return


class Reporter:
    """Rank 0's end: sends metrics and phases to the driver and to Prometheus, and waits for neither until it is closed.

    Without a monitor nobody watches. Prometheus knows the metrics by the names of the run and the trial, if it is one.
    """

    def __init__(self, monitor: Handle | None, run: str, trial: str = "") -> None:
        self._monitor = monitor
        self._last_push: Any | None = None
        self._exporter = Exporter(run, trial)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Send a step's metrics."""
        self._exporter.export(metrics)
        self.happened("logged")
        self._push("update", dict(metrics))

    def happened(self, *events: Event) -> None:
        """Tell Prometheus that these events happened now."""
        self._exporter.export({f"{event}_time_seconds": time.time() for event in events})

    def is_stopping(self) -> bool:
        """Whether the driver was asked to end the run; False if it gives no answer."""
        try:
            return self._monitor is not None and ray.get(self._monitor.is_stopping.remote(), timeout=ARRIVAL_S)
        except RayError:
            return False

    def phase(self, subject: str, detail: str = "") -> None:
        """Send what is done now, such as 'k-NN'."""
        self._push("phase", subject, detail)

    def note(self, text: str) -> None:
        """Send what stays on the screen."""
        self._push("note", text)

    def close(self) -> None:
        """Wait until all news have arrived: the end of a worker may overtake them."""
        self._exporter.close()
        if self._last_push is not None:
            ray.wait([self._last_push], timeout=ARRIVAL_S)

    def _push(self, method: str, *content: Any) -> None:
        if self._monitor is not None:
            self._last_push = self._monitor.push.remote(method, *content)
