"""Reading: local files through the operating system, `s3://`, `gs://` and their like through `pyarrow.fs`."""

import errno
import io
import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import pyarrow
import pyarrow.fs

from glsd.storage.counts import count
from glsd.storage.uris import is_remote, resolved

_BUFFER_BYTES: Final = 1 << 20
"""Headers of a tar are an image apart: few large reads beat many small ones, above all of an object store."""
_PAUSES: Final = (0.5, 2.0)
_SHARD_SECONDS: Final = 600
_PERMANENT: Final = (FileNotFoundError, NotADirectoryError, PermissionError)


def allow_requests(count: int) -> None:
    """Let so many threads of this process read from an object store at once, of those that it opens from now on."""
    pyarrow.set_io_thread_count(max(count, pyarrow.io_thread_count()))


def open_file(uri: str) -> io.BufferedReader:
    """The file, to be read anywhere."""
    if not is_remote(uri):
        return io.BufferedReader(open(uri, "rb", buffering=0), _BUFFER_BYTES)  # noqa: PTH123 - the caller closes it
    filesystem, path = resolved(uri)
    return io.BufferedReader(filesystem.open_input_file(path), _BUFFER_BYTES)


def open_stream(uri: str) -> io.BufferedReader:
    """The file, to be read once from its beginning."""
    if not is_remote(uri):
        return open_file(uri)
    filesystem, path = resolved(uri)
    return io.BufferedReader(filesystem.open_input_stream(path, compression=None), _BUFFER_BYTES)


def read(uri: str, offset: int = -1, length: int = -1) -> tuple[bytes, int]:
    """Bytes [offset, offset + length) of a file, by default all, and the size of the file.

    Errors that may pass are retried twice after a pause; Google's client insists by itself.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: reading failed, or is not permitted.
    """
    if not is_remote(uri):
        return _insistently(uri, lambda: _read_local(uri, offset, length), _PAUSES)
    filesystem, path = resolved(uri)
    if offset < 0:
        return _insistently(uri, lambda: _read_whole(filesystem, path), _pauses(filesystem))
    period = int(time.monotonic() // _SHARD_SECONDS)
    return _insistently(uri, lambda: _read_range(uri, period, offset, length), _pauses(filesystem))


def read_file(filesystem: pyarrow.fs.FileSystem, path: str) -> bytes:
    """The whole file at a path of a file system, as `read` reads it."""
    return _insistently(path, lambda: _read_whole(filesystem, path), _pauses(filesystem))[0]


def _pauses(filesystem: pyarrow.fs.FileSystem) -> Sequence[float]:
    """Between the attempts; Google's client has made its own by then."""
    return () if filesystem.type_name == "gcs" else _PAUSES


def _insistently(name: str, attempt: Callable[[], tuple[bytes, int]], pauses: Sequence[float]) -> tuple[bytes, int]:
    for pause in (*pauses, None):
        try:
            return attempt()
        except _PERMANENT:
            raise
        except OSError as error:
            if pause is None:
                times = f" {len(pauses) + 1} times" if pauses else ""
                raise OSError(error.errno or errno.EIO, f"reading {name} failed{times}: {error}") from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def _read_local(path: str, offset: int, length: int) -> tuple[bytes, int]:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        data = file.readall() if offset < 0 else os.pread(file.fileno(), length, offset)
        return data, os.fstat(file.fileno()).st_size


def _read_range(uri: str, period: int, offset: int, length: int) -> tuple[bytes, int]:
    file = _shard(uri, period)
    count("requests")
    return file.read_at(length, offset), file.size()


@lru_cache(maxsize=4096)
def _shard(uri: str, _period: int) -> pyarrow.NativeFile:
    """A file that stays open for a period of time, so that its size is asked for once and not with every image."""
    return _opened(*resolved(uri))


def _read_whole(filesystem: pyarrow.fs.FileSystem, path: str) -> tuple[bytes, int]:
    count("requests")
    if filesystem.type_name == "gcs":
        # A file that can be read anywhere would be asked for twice, which fails where it was replaced in between, and
        # waited for with Python's lock held.
        with filesystem.open_input_stream(path, compression=None) as stream:
            data = b"".join(iter(lambda: stream.read(_BUFFER_BYTES), b""))
    else:
        with _opened(filesystem, path) as file:
            data = file.read()
    return data, len(data)


def _opened(filesystem: pyarrow.fs.FileSystem, path: str) -> pyarrow.NativeFile:
    count("requests", 2 if filesystem.type_name == "gcs" else 1)
    file = filesystem.open_input_file(path)
    if file.closed:  # so says a file of `gs://` that could not be asked for, and hides the reason
        raise OSError("the object store did not send it")
    return file
