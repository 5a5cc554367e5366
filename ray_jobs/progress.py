"""The one progress line of a verb."""

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Self, TextIO

MAX_WIDTH = 120
PRINT_INTERVAL_S = 10.0


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
    """The one progress line of a verb: rewritten in place on a terminal, printed every ten seconds elsewhere.

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
        self._show("step", progress_text(metrics, width))

    def phase(self, subject: str, detail: str = "") -> None:
        """Show what is done now, such as 'indexing' and how far it is; elsewhere than on a terminal, a new subject is
        printed at once, and a new detail when a line is due.
        """
        self._show(subject, f"{subject} {detail}".rstrip())

    def _show(self, subject: str, text: str) -> None:
        is_due = self._clock() - self._printed_at >= PRINT_INTERVAL_S
        if self._stream.isatty() or is_due or subject != self._subject:
            self._print(text)
        else:
            self._pending = text
        self._subject = subject

    def note(self, text: str) -> None:
        """Show a whole text, which stays above what comes after."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._stream.isatty() else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Show the last text; what comes after begins on a new line."""
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
