"""Local files that are replaced whole: written beside, synced, renamed; and locks between processes."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """A stream into a new local file, its content durable when the block ends; for its name see `sync_folder`."""
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes a local file when the block ends, unless it ends by an exception.

    At any moment the file is the old one or the new one, whole, even after a power cut.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with synced(temporary) as stream:
            yield stream
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # a full disk should not stay so for our sake
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write a local file that is whole at any moment, even after a power cut."""
    with replacing(path) as stream:
        stream.write(data)


def sync_folder(folder: Path) -> None:
    """Make the names in a local folder durable: a rename alone may be lost in a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time; the lock of a process that is killed is open."""
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
