"""What a running job says: metrics travel from rank 0 to the driver's progress line and to Prometheus.

Rank 0 pushes into a tiny actor and waits for it at its end alone; the driver looks there twice a second. A job whose
monitor has died goes on in silence. Ray is imported where it is used, so that the progress line serves verbs that need
no cluster.
"""

import math
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TextIO, TypeAlias

Handle: TypeAlias = Any
"""Handle of a `Monitor` actor; Ray's own type of it has no methods that a checker can see."""
MAX_WIDTH = 120
PRINT_INTERVAL_S = 10.0
POLL_INTERVAL_S = 0.5
ARRIVAL_S = 10.0
"""How long the last news may take to the driver's machine; later ones are lost."""
GAUGES = {
    "step": "Steps done",
    "loss": "Loss of the last logged step",
    "images_per_s": "Source images trained on per second",
    "data_wait": "Share of time spent waiting for data",
    "knn": "k-NN accuracy of the teacher, a share",
    "collapsed": "1 while the teacher has collapsed, 0 while it has not",
}
"""Metrics that Prometheus sees as glsd_step, glsd_loss, ..., with the run as a tag."""


def progress_text(metrics: Mapping[str, float], width: int = MAX_WIDTH) -> str:
    """One line about a step; a part whose metrics are missing is left out.

    Args:
        metrics: any of step, total_steps, epoch (epochs done, with a fraction), epochs, loss, loss_global, loss_local,
            images_per_s, data_wait (share of time), seconds_left, knn (share of images) and collapsed (0 or 1).
        width: most characters; spaces and the names of the loss's parts make room, then the epoch, then these parts.

    >>> progress_text({"step": 120, "total_steps": 520, "loss": 5.8123, "data_wait": 0.03, "seconds_left": 102})
    'step 120/520  loss 5.812  wait   3 %  left 1:42'
    """
    parts = {
        "step": _count("step", metrics, "step", "total_steps"),
        "epoch": _count("epoch", metrics, "epoch", "epochs"),  # under way or just ended, from 1
        "loss": _number("loss {:.3f}", metrics, "loss"),
        "losses": _losses(metrics),
        "speed": _number("{:4.0f} images/s", metrics, "images_per_s"),
        "wait": _number("wait {:4.0%}", metrics, "data_wait").replace("%", " %"),
        "left": f"left {duration_text(metrics['seconds_left'])}" if "seconds_left" in metrics else "",
        "knn": _number("k-NN {:.1%}", metrics, "knn").replace("%", " %"),
        "verdict": {0.0: "healthy", 1.0: "COLLAPSED"}.get(metrics.get("collapsed", -1.0), ""),
    }
    text = "  ".join(filter(None, parts.values())).replace("  (", " (")
    unnamed = parts["losses"].replace("global ", "").replace("local ", "")
    for shorter in ({"losses": unnamed}, {"epoch": ""}, {"losses": ""}):
        if len(text) > width:
            parts |= shorter
            text = " ".join(" ".join(parts.values()).split())
    return text


def duration_text(seconds: float) -> str:
    """Seconds as a clock shows them, and days in words.

    >>> duration_text(102), duration_text(7265), duration_text(270_000)
    ('1:42', '2:01:05', '3 d 3 h')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class ProgressLine:
    """The one progress line of a verb: rewritten in place on a terminal, elsewhere printed every ten seconds or so.

    Args:
        stream: where it is shown; standard error by default.
        clock: seconds, for the time between two printed lines.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = sys.stderr if stream is None else stream, clock
        self._printed_at = -math.inf
        self._pending = ""
        self._subject = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def update(self, metrics: Mapping[str, float]) -> None:
        """Show a step's metrics."""
        width = min(MAX_WIDTH, shutil.get_terminal_size().columns - 1) if self._stream.isatty() else MAX_WIDTH
        self.phase(progress_text(metrics, width))

    def phase(self, text: str) -> None:
        """Show what goes on, such as 'indexing 1,200 images'; its first word tells whether it is something new."""
        subject = text.partition(" ")[0]
        is_due = self._clock() - self._printed_at >= PRINT_INTERVAL_S
        if self._stream.isatty() or is_due or subject != self._subject:
            self._print(text)
        else:
            self._pending = text
        self._subject = subject

    def note(self, text: str) -> None:
        """Show a whole text for good, above what comes after."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._stream.isatty() else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Show the last text for good; what comes after begins on a new line."""
        if self._pending:
            self._print(self._pending)
        if self._stream.isatty() and self._subject:
            self._stream.write("\n")
            self._stream.flush()
        self._subject = ""

    def _print(self, text: str) -> None:
        if self._stream.isatty():
            columns = shutil.get_terminal_size().columns - 1  # a full line would wrap, and stay
            self._stream.write(f"\r{text[:columns]}\x1b[K")
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
        self._printed_at, self._pending = self._clock(), ""


class Monitor:
    """News from rank 0 until the driver takes them, oldest first.

    They are `("metrics", {...})`, `("phase", "...")` and `("note", "...")`, which is shown for good.
    """

    def __init__(self) -> None:
        self._news: deque[tuple[str, Any]] = deque(maxlen=1000)
        self._has_started = False

    def push(self, kind: str, content: Any) -> None:
        """Add a piece of news."""
        self._news.append((kind, content))

    def take(self) -> list[tuple[str, Any]]:
        """All news since the last call."""
        news = list(self._news)
        self._news.clear()
        return news

    def worker_started(self) -> None:
        """Say that a worker runs."""
        self._has_started = True

    def take_started(self) -> bool:
        """Whether a worker has run since the last call."""
        has_started, self._has_started = self._has_started, False
        return has_started


def start_monitor() -> Handle:
    """A monitor beside the driver; it has no name, so runs cannot meet in it, and ends with the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Monitor).options(scheduling_strategy=node).remote()


@contextmanager
def watch(monitor: Handle, line: ProgressLine) -> Iterator[None]:
    """Show the monitor's news on the line while the body of the `with` block runs, and the last of them after it."""
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
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    asked, is_last = None, False
    while True:
        stopped = stop.wait(POLL_INTERVAL_S)
        try:
            if asked is None:
                asked, is_last = monitor.take.remote(), stopped
            news: list[tuple[str, Any]] = ray.get(asked, timeout=ARRIVAL_S)
        except GetTimeoutError:
            if stopped:
                return
            continue  # a busy machine; what it takes is not lost
        except RayError:
            return  # the monitor or the cluster has gone; the job says itself how it ends
        asked = None
        for kind, content in news:
            if kind == "phase":
                line.phase(content)
            elif kind == "note":
                line.note(content)
            else:
                line.update(content)
        if is_last:  # it was asked after the end, so what came last is shown
            return


class Reporter:
    """Rank 0's end: sends metrics and phases to the driver and to Prometheus, and waits for neither until it is closed.

    Args:
        monitor: the driver's; None where nobody watches.
        run: the run's name, the tag of its gauges; Ray takes ASCII alone.
    """

    def __init__(self, monitor: Handle | None, run: str) -> None:
        from ray.util.metrics import Gauge

        self._monitor = monitor
        self._last_push: Any | None = None
        self._tags = {"run": run}
        self._gauges = {key: Gauge(f"glsd_{key}", text, tag_keys=("run",)) for key, text in GAUGES.items()}

    def log(self, metrics: Mapping[str, float]) -> None:
        """Send a step's metrics."""
        for key, gauge in self._gauges.items():
            if key in metrics:
                gauge.set(metrics[key], self._tags)
        self._push("metrics", dict(metrics))

    def phase(self, text: str) -> None:
        """Send what goes on now, such as 'k-NN'."""
        self._push("phase", text)

    def note(self, text: str) -> None:
        """Send what should stay to be read."""
        self._push("note", text)

    def close(self) -> None:
        """Wait until the last news, and with them all before, have arrived: the end of a worker may overtake them."""
        if self._last_push is not None:
            import ray

            ray.wait([self._last_push], timeout=ARRIVAL_S)

    def _push(self, kind: str, content: Any) -> None:
        if self._monitor is not None:
            self._last_push = self._monitor.push.remote(kind, content)


def _count(name: str, metrics: Mapping[str, float], key: str, total_key: str) -> str:
    if key not in metrics:
        return ""
    count = str(math.ceil(metrics[key]))
    if total_key not in metrics:
        return f"{name} {count}"
    total = str(round(metrics[total_key]))
    return f"{name} {count:>{len(total)}}/{total}"


def _number(template: str, metrics: Mapping[str, float], key: str) -> str:
    return template.format(metrics[key]) if key in metrics else ""


def _losses(metrics: Mapping[str, float]) -> str:
    named = (("global", "loss_global"), ("local", "loss_local"))
    parts = ", ".join(f"{name} {metrics[key]:.2f}" for name, key in named if key in metrics)
    return f"({parts})" if parts else ""
