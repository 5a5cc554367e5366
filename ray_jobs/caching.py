"""The cache folder: who uses what is kept there, what it is for, and how it is cleared.

All of it can be made again from images and weights. A process that uses an entry holds a shared lock on it until it
ends, and one that makes an entry a lock of its own (`glsd.data.shards.alone`); what is locked is not deleted. Locks are
files without content, and they stay: one that is deleted could be held by one process and made again by another.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from glsd.data import Index, cache_folder
from glsd.data.filesystems import replace_file
from glsd.data.shards import alone
from ray_jobs.folder import Folder
from ray_jobs.lease import TIMES, read_holder
from ray_jobs.monitor import duration_text

Kind = Literal["representations", "packed", "indexes", "layers"]
_NAMES: dict[Kind, str] = {
    "representations": r"features-[0-9a-f]{32}|untrained-[0-9a-f]{32}\.json",
    "packed": r"packed-[0-9a-f]{32}(\.unfinished)?",
    "indexes": r"index-(\d+-)?[0-9a-f]{32}\.(arrow|unfinished)",
    "layers": r"linear/[0-9a-f]{20}",
}
"""Names of entries below the cache folder; anything else there is not ours."""

ABOUT = "about.json"
"""In the folder of an entry: what it is for, a text."""

_used: dict[Path, int] = {}
"""Descriptors of this process's locks, by entry; its end closes them."""


class Entry(NamedTuple):
    """Something in the cache folder."""

    kind: Kind
    path: Path
    num_bytes: int
    """On disk, where files may have holes."""
    changed_at: float
    """Seconds since 1970."""
    purpose: str
    """What it is for."""


def use(path: Path) -> None:
    """Keep an entry of the cache, which need not exist yet, from being deleted by others until this process ends."""
    if path not in _used:
        lock = os.open(_lock(path, "used"), os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_SH)
        _used[path] = lock


def remove(path: Path) -> bool:
    """Delete an entry; False, and it stays, where another process uses or makes it."""
    if (own := _used.pop(path, None)) is not None:
        os.close(own)
    with ExitStack() as held:
        for kind in ("lock", "used"):
            lock = held.enter_context(_lock(path, kind).open("wb"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        if path.is_dir():
            unfinished = path.with_suffix(".unfinished")  # a name of which nothing is used, should this be killed
            if path != unfinished:
                shutil.rmtree(unfinished, ignore_errors=True)
                path.rename(unfinished)
            shutil.rmtree(unfinished)
        else:
            path.unlink(missing_ok=True)
    return True


def kept(purpose: str, facts: Any, measure: Callable[[], Any]) -> Any:
    """A JSON value that follows from JSON facts: what the cache has for them, else `measure()`, by one process."""
    path = _kept_path(purpose, facts)
    use(path)
    with alone(_lock(path, "lock")):
        if not path.exists():
            replace_file(path, json.dumps({"about": purpose, "value": measure()}).encode())
        return json.loads(path.read_bytes())["value"]


def is_kept(purpose: str, facts: Any) -> bool:
    """Whether `kept` would measure nothing."""
    return _kept_path(purpose, facts).exists()


def entries() -> list[Entry]:
    """All entries, the largest of each kind first."""
    cache = cache_folder()
    ours: dict[Path, Kind] = {}
    for path in sorted([*cache.iterdir(), *cache.glob("linear/*")]):
        name = path.relative_to(cache).as_posix()
        for kind, names in _NAMES.items():
            if re.fullmatch(names, name):
                ours[path] = kind
    purposes = _of_indexes([path for path in ours if path.suffix == ".arrow"])
    found = []
    for path, kind in ours.items():
        stats = [file.lstat() for file in _files(path)]
        changed_at = max((stat.st_mtime for stat in stats), default=path.lstat().st_mtime)
        num_bytes = sum(512 * stat.st_blocks for stat in stats)
        found.append(Entry(kind, path, num_bytes, changed_at, _purpose(path, purposes)))
    kinds = get_args(Kind)
    return sorted(found, key=lambda entry: (kinds.index(entry.kind), -entry.num_bytes))


def clear(what: Kind | Literal["all"]) -> tuple[list[Entry], list[Entry]]:
    """Delete the entries of a kind; what was deleted, and what stays because a running process uses it."""
    deleted: list[Entry] = []
    used: list[Entry] = []
    for entry in entries():
        if what in (entry.kind, "all"):
            is_gone = not _is_leased(entry) and remove(entry.path)
            (deleted if is_gone else used).append(entry)
    return deleted, used


def cache_table(found: list[Entry]) -> str:
    """Entries for people."""
    lines = [f"{cache_folder()}: {_size(found)}"]
    for entry in found:
        age = duration_text(max(0.0, time.time() - entry.changed_at))
        lines.append(f"  {entry.kind:<15}  {_gigabytes(entry.num_bytes):>9}  {age:>12} old  {entry.purpose}")
    return "\n".join(lines)


def cleared_table(deleted: list[Entry], used: list[Entry]) -> str:
    """What `clear` did, for people."""
    lines = [f"deleted {_size(deleted)}"]
    if used:
        lines.append(f"left {_size(used)}, which running processes use; clear them when these have ended")
        lines += [f"  {entry.kind:<15}  {entry.purpose}" for entry in used]
    return "\n".join(lines)


def _size(found: list[Entry]) -> str:
    return f"{len(found)} entries, {_gigabytes(sum(entry.num_bytes for entry in found))}"


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _lock(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name.partition('.')[0]}.{kind}")


def _kept_path(purpose: str, facts: Any) -> Path:
    digest = hashlib.sha256(json.dumps([purpose, facts]).encode()).hexdigest()
    return cache_folder() / f"untrained-{digest[:32]}.json"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    else:
        yield path


def _of_indexes(paths: list[Path]) -> dict[Path, str]:
    """What indexes are for, and the packed tars that they name."""
    purposes = {}
    for path in paths:
        index = Index(path)
        try:
            purposes[path] = f"{len(index):,} images of {', '.join(index.sources)}"
        except ValueError:
            purposes[path] = "a broken index"
            continue
        purposes |= {Path(folder): purposes[path] for folder in index.packed}
    return purposes


def _purpose(path: Path, indexed: dict[Path, str]) -> str:
    if path in indexed:
        return indexed[path]
    about = path / ABOUT if path.is_dir() else path
    if about.suffix == ".json" and about.exists():
        return str(json.loads(about.read_bytes())["about"])
    return "a linear layer" if path.parent.name == "linear" else "of data that no index here names"


def _is_leased(entry: Entry) -> bool:
    """Whether a driver trains the layer; of one that is dead the heartbeat has ended."""
    holder = read_holder(Folder(entry.path)) if entry.kind == "layers" else None
    return holder is not None and holder.silent_s < TIMES.lapse_s
