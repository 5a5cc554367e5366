"""Local files and folders that are whole or not there: written beside, synced, renamed; and locks between processes."""

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, unfinished: Path | None = None) -> Iterator[BinaryIO]:
    """A stream whose content becomes a local file when the block ends, unless it ends by an exception.

    At any moment the file is the old one or the new one, whole, even after a power cut. Until then it is `unfinished`,
    beside it, by default a name that no other thread or process uses.
    """
    unfinished = unfinished or path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)  # a full disk should not stay full because of us
    _sync(path.parent)


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write a local file that is whole at any moment, even after a power cut."""
    with replacing(path) as stream:
        stream.write(data)


@contextmanager
def whole_folder(path: Path, unfinished: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends, unless it ends by an exception.

    At any moment the folder is the old one, the new one, or not there, even after a power cut.

    Args:
        path: the local folder; one that is there is replaced.
        unfinished: its name until then, beside it; what is there under this name is deleted.
        check: called when the content is durable; if it raises, `path` stays as it was.
    """
    replaced = unfinished.with_name(f"{unfinished.name}.replaced")
    for leftover in (unfinished, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for entry in (*unfinished.iterdir(), unfinished):
            _sync(entry)
        check()
        if path.exists():
            path.rename(replaced)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that is killed is released."""
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
