"""SIGTERM, which schedulers send to end a job: it unwinds the stack, or asks a training to save its state first."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_asked: Final = threading.Event()
_heeded: Final = threading.Event()


@contextmanager
def sigterm_ends() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that leases end. Ray's own handler would print stacks and exit."""

    def end(*_: object) -> None:
        if _heeded.is_set() and not _asked.is_set():
            _asked.set()
            print(
                "glsd: SIGTERM: a checkpoint is saved with the next line of metrics, then the run ends; a second "
                "SIGTERM ends it at once",
                file=sys.stderr,
            )
            return
        print("glsd: stopped by SIGTERM; rerun the command to resume", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    is_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, end) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, previous)


@contextmanager
def sigterm_asks() -> Iterator[None]:
    """Within this block the first SIGTERM only asks to end, which `is_asked` tells."""
    _asked.clear()
    _heeded.set()
    try:
        yield
    finally:
        _heeded.clear()


def is_asked() -> bool:
    """Whether SIGTERM has asked to end, within such a block."""
    return _heeded.is_set() and _asked.is_set()
