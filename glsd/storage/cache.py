"""The cache folder and the locks of its entries, all of which can be made again from images and weights.

A process that uses an entry holds a shared lock on it until it ends, and one that makes an entry a lock of its own
(`glsd.storage.replacing.alone`); what is locked is not deleted. Locks are files without content, and they stay: one
that is deleted could be held by one process and made again by another.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from glsd.storage.replacing import alone, replace_file

ABOUT = "about.json"
"""In the folder of an entry: what it is for, a text."""
_used: dict[Path, int] = {}
"""Descriptors of this process's locks, by entry; its end closes them."""


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where what is made from data is kept: `GLSD_CACHE`, or `glsd` in the user's cache folder.

    Raises:
        ValueError: it cannot be made or written to.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if "://" in (named := str(cache_dir or os.environ.get("GLSD_CACHE", ""))):
        raise ValueError(f"the cache folder {named} is a URI; set GLSD_CACHE to a folder on this machine's disk")
    folder = Path(cache_dir or os.environ.get("GLSD_CACHE") or Path(home) / "glsd").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the cache folder {folder} cannot be made: {error}; set GLSD_CACHE to another") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the cache folder {folder} is not writable; set GLSD_CACHE to another")
    return folder


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


def _lock(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name.partition('.')[0]}.{kind}")


def _kept_path(purpose: str, facts: Any) -> Path:
    digest = hashlib.sha256(json.dumps([purpose, facts]).encode()).hexdigest()
    return cache_folder() / f"untrained-{digest[:32]}.json"
