"""The lease of a run directory: one driver at a time, and workers that outlive their driver publish nothing.

A lease is a small file that names its holder (host, process, token) and the time of the holder's last heartbeat. It
works alike on a local disk and on an object store, which has neither locks nor renames: whoever wrote last holds it,
and every holder looks again, after a moment before it begins and at each heartbeat after.
"""

import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from glsd.storage.folder import Folder

NAME = "lease.json"
_PAUSES_S = (0.1, 0.5)


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


class Holder(NamedTuple):
    """Who holds a lease."""

    host: str
    machine: str
    """Boot and process-id namespace: process ids mean the same only where this is equal."""
    pid: int
    process_start: str
    """Tells a process from a later one with the same id."""
    token: str
    since: str
    heartbeat_ns: int
    """Since 1970. A lease is written again and again, and has the same length every time: an object store tells the
    length first, so that a reader could be left with half of a longer one.
    """

    @property
    def silent_s(self) -> float:
        """Seconds since the last heartbeat, if the clocks of both hosts agree."""
        return time.time() - self.heartbeat_ns / 1e9


@contextmanager
def held_lease(folder: Folder, on_wait: Callable[[str], None], times: LeaseTimes) -> Iterator[str]:
    """Hold the lease of `folder` for the length of a `with` block, whose target is the lease's token.

    Local folders that the lease has to make for itself are gone again if the block leaves nothing in them.

    Raises:
        ValueError: another driver holds it; the message names host, process and since when.
    """
    holder = read_holder(folder)
    if holder is not None:
        _await_end(folder, holder, on_wait, times)
    missing = _missing_folders(folder)
    own = _this_process()
    _write(folder, own)
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
            folder.remove(NAME)
            _remove_empty(missing)


def holds_lease(folder: Folder, token: str) -> bool:
    """Whether the lease with this token is still the current one."""
    holder = read_holder(folder)
    return holder is not None and holder.token == token


def read_holder(folder: Folder) -> Holder | None:
    """The current holder, alive or not; None where there is no lease."""
    for pause in (*_PAUSES_S, None):
        data = folder.read(NAME)
        if not data:  # some file systems show a file that is being written, still empty
            return None
        try:
            return Holder(**json.loads(data))
        except (TypeError, ValueError) as error:
            if pause is None:
                raise ValueError(
                    f"{folder.out}/{NAME} is not a lease of glsd; delete it if no run uses {folder.out}"
                ) from error
            time.sleep(pause)  # perhaps it was replaced by another start's, while it was read
    raise AssertionError("unreachable")


def _await_end(folder: Folder, holder: Holder, on_wait: Callable[[str], None], times: LeaseTimes) -> None:
    if holder.machine == _machine():
        if _process_start(holder.pid) == holder.process_start:
            raise ValueError(_in_use(folder, holder))
        # It died within an interval of its last heartbeat, and its workers outlive it by the grace time at most.
        seconds = min(times.grace_s, times.heartbeat_s + times.grace_s - holder.silent_s)
        text = (
            f"process {holder.pid}, which used {folder.out}, is gone; waiting {max(seconds, 0):.0f} s for its workers"
        )
    else:
        # Clocks of two hosts may differ: what counts is whether the heartbeat advances while we look.
        seconds = times.lapse_s
        text = (
            f"{folder.out} was last used by process {holder.pid} on host {holder.host}; "
            f"waiting {seconds:.0f} s to see whether it still runs"
        )
    if seconds <= 0:
        return
    on_wait(text)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        now = read_holder(folder)
        if now is None:
            return
        if (now.token, now.heartbeat_ns) != (holder.token, holder.heartbeat_ns):
            raise ValueError(_in_use(folder, now))


def _missing_folders(folder: Folder) -> list[Path]:
    """The local folder and those around it that do not exist yet, from the inside out."""
    if not folder.is_local:
        return []
    path = Path(folder.path)
    return [place for place in (path, *path.parents) if not place.exists()]


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # one holds something: it stays, and so do those around it
        for path in folders:
            path.rmdir()


def _beat(folder: Folder, own: Holder, stop: threading.Event, times: LeaseTimes) -> None:
    while not stop.wait(times.heartbeat_s):
        try:
            if not holds_lease(folder, own.token):
                return  # taken over while this process was stopped: its workers find out through holds_lease
            _write(folder, own._replace(heartbeat_ns=time.time_ns()))
        except (OSError, ValueError):
            continue  # a full disk or a lost connection: the next beat tries again, and silence lapses by itself


def _write(folder: Folder, holder: Holder) -> None:
    folder.write(NAME, json.dumps(holder._asdict(), indent=2).encode())


def _in_use(folder: Folder, holder: Holder) -> str:
    return (
        f"{folder.out} is in use by process {holder.pid} on host {holder.host} since {holder.since}; "
        "wait for its end, stop it, or choose another --out"
    )


def _this_process() -> Holder:
    start = _process_start(os.getpid())
    assert start is not None
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        process_start=start,
        token=uuid.uuid4().hex,
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        heartbeat_ns=time.time_ns(),
    )


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        return f"{boot.read_text('ascii').strip()} {Path('/proc/self/ns/pid').readlink()}"
    return f"{uuid.getnode():x}"


def _process_start(pid: int) -> str | None:
    """When a living process began, in the system's own words; None where it is gone or a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *fields = stat.rpartition(")")[2].split()  # the name before may hold blanks and parentheses
        return None if state in "ZX" else fields[18]  # field 22 of proc(5): starttime
    answer = subprocess.run(
        ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    state, _, start = answer.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else start.strip()
