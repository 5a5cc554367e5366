"""The lease of a run directory: one driver at a time, and workers that outlive their driver publish nothing.

A lease is a small file that names its holder (host, process, token) and the time of the holder's last heartbeat. It
works alike on a local disk and on an object store, which has neither locks nor renames: whoever wrote last holds it,
and every holder looks again, after a moment before it begins and at each heartbeat after. On a disk the holder also
locks the folder, so that a start on the same host knows at once whether the holder lives.
"""

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from glsd.runs.records import LEASE, Holder, write_record
from glsd.storage.folder import Folder

_PAUSES_S = (0.1, 0.5)
_locks: set[int] = set()
"""Descriptors of the locked folders of this process."""


def _close_locks() -> None:
    """Close them in a forked child, which would keep its parent's locks after the parent's death."""
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_close_locks)


class LeaseTimes(NamedTuple):
    """Seconds that a lease reckons with."""

    heartbeat_s: float = 3.0
    """Between two heartbeats."""
    grace_s: float = 5.0
    """After the death of a driver on this host, until its workers are gone too."""
    lapse_s: float = 30.0
    """Without a heartbeat, until a driver on another host counts as dead."""
    settle_s: float = 0.5
    """Between writing the lease and looking whether another start wrote it at the same time."""


TIMES = LeaseTimes()


@contextmanager
def held_lease(folder: Folder, on_wait: Callable[[str], None], times: LeaseTimes) -> Iterator[str]:
    """Hold the lease of `folder` for the length of a `with` block, whose target is the lease's token.

    Local folders that the lease has to make for itself are gone again if the block leaves nothing in them. `on_wait` is
    told in a sentence when the start waits for the end of an earlier driver.

    Raises:
        ValueError: another driver holds it; the message names host, process and since when.
    """
    path = Path(folder.path)
    missing = [place for place in (path, *path.parents) if folder.is_local and not place.exists()]
    with _locked(folder, times) as is_locked:
        _await_end(folder, is_locked, on_wait, times)
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        token = uuid.uuid4().hex
        own = Holder(host=socket.gethostname(), pid=os.getpid(), token=token, since=since, heartbeat_ns=time.time_ns())
        write_record(folder, own)
        time.sleep(times.settle_s)
        winner = read_holder(folder)
        if winner is None or winner.token != own.token:
            raise ValueError(_in_use(folder, winner or own))
        stop = threading.Event()
        thread = threading.Thread(target=_beat, args=(folder, own, stop, times), name="glsd-lease", daemon=True)
        thread.start()
        try:
            yield own.token
        finally:
            stop.set()
            thread.join()
            if holds_lease(folder, own.token):
                folder.remove(LEASE)
                with suppress(OSError):  # one of them holds something: it stays, and so do those around it
                    for place in missing:
                        place.rmdir()


def holds_lease(folder: Folder, token: str) -> bool:
    """Whether the lease with this token is still the current one."""
    holder = read_holder(folder)
    return holder is not None and holder.token == token


def read_holder(folder: Folder) -> Holder | None:
    """The current holder, alive or not; None where there is no lease."""
    for pause in (*_PAUSES_S, None):
        content = folder.read(LEASE)
        if not content:  # some file systems show a file that is being written, still empty
            return None
        try:
            return Holder.model_validate_json(content)
        except ValueError as error:
            if pause is None:
                raise ValueError(
                    f"{folder.out}/{LEASE} is not a lease of glsd; delete it if no run uses {folder.out}"
                ) from error
            time.sleep(pause)  # perhaps it was replaced by another start's, while it was read
    raise AssertionError("unreachable")


@contextmanager
def _locked(folder: Folder, times: LeaseTimes) -> Iterator[bool | None]:
    """Lock a local folder for the length of a `with` block, whose target is whether this process has the lock.

    It is None on an object store and on file systems without locks. The folder itself is locked, so no lock file stays
    behind. The operating system releases the lock when the process ends.
    """
    if not folder.is_local:
        yield None
        return
    Path(folder.path).mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.path, os.O_RDONLY)  # a program that this process starts does not inherit it
    _locks.add(lock)
    try:
        yield _lock(lock, times)
    finally:
        _locks.discard(lock)
        os.close(lock)


def _lock(folder: int, times: LeaseTimes) -> bool | None:
    for pause_s in (0.0, times.settle_s):  # a killed process needs a moment to end, and a new one to write its lease
        time.sleep(pause_s)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError:
            return None
        return True
    return False


def _await_end(folder: Folder, is_locked: bool | None, on_wait: Callable[[str], None], times: LeaseTimes) -> None:
    """Wait until it is sure that the holder is dead and that its workers are gone.

    A lock tells nothing about another host, since some network disks keep the locks of each host apart.
    """
    if (holder := read_holder(folder)) is None:
        return
    if holder.host == socket.gethostname() and is_locked is not None:
        if not is_locked:
            raise ValueError(_in_use(folder, holder))
        # It died within an interval of its last heartbeat, and its workers outlive it by the grace time at most.
        seconds = min(times.grace_s, times.heartbeat_s + times.grace_s - holder.silent_s)
        text = f"process {holder.pid}, which used {folder.out}, is gone; waiting {seconds:.0f} s for its workers"
    else:
        # Clocks of two hosts may differ: what counts is whether the heartbeat advances while we look.
        seconds = times.lapse_s
        text = (
            f"{folder.out} was last used by process {holder.pid} on host {holder.host}; "
            f"waiting {seconds:.0f} s to see whether it still runs"
        )
    if seconds > 0:
        on_wait(text)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        now = read_holder(folder)
        if now is None:
            return
        if (now.token, now.heartbeat_ns) != (holder.token, holder.heartbeat_ns):
            raise ValueError(_in_use(folder, now))


def _beat(folder: Folder, own: Holder, stop: threading.Event, times: LeaseTimes) -> None:
    while not stop.wait(times.heartbeat_s):
        try:
            if not holds_lease(folder, own.token):
                return  # taken over while this process was stopped: its workers find out through holds_lease
            write_record(folder, own.model_copy(update={"heartbeat_ns": time.time_ns()}))
        except (OSError, ValueError):
            continue  # a full disk or a lost connection: the next beat tries again, and silence lapses by itself


def _in_use(folder: Folder, holder: Holder) -> str:
    return (
        f"{folder.out} is in use by process {holder.pid} on host {holder.host} since {holder.since}; "
        "wait for its end, stop it, or choose another --out"
    )
