"""Reading: local files through the operating system, `s3://`, `gs://` and their like through `pyarrow.fs`.

What an object store refuses now is asked for again. Pyarrow's S3 client gives a request up after three seconds without
a byte, and repeats a failed one every 0.2 s for thirty times; `insistently` repeats that after a pause.
"""

import errno
import io
import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow
import pyarrow.fs

from glsd.storage.counts import count
from glsd.storage.replacing import replace_file
from glsd.storage.uris import is_remote, resolved

_BUFFER_BYTES: Final = 1 << 20
"""Headers of a tar are an image apart: few large reads beat many small ones, above all of an object store."""
_PAUSES: Final = (0.5, 2.0)
_SHARD_SECONDS: Final = 600
_PERMANENT: Final = (FileNotFoundError, NotADirectoryError, PermissionError)
_Result = TypeVar("_Result")


def allow_requests(count: int) -> None:
    """Let so many threads of this process read from an object store at once, of those that it opens from now on."""
    pyarrow.set_io_thread_count(max(count, pyarrow.io_thread_count()))


def open_file(uri: str) -> io.BufferedReader:
    """The file, to be read anywhere."""
    if not is_remote(uri):
        return io.BufferedReader(open(uri, "rb", buffering=0), _BUFFER_BYTES)  # noqa: PTH123 - the caller closes it
    return io.BufferedReader(_RemoteFile(uri), _BUFFER_BYTES)


def open_stream(uri: str) -> io.BufferedReader:
    """The file, to be read once from its beginning."""
    if not is_remote(uri) or (place := resolved(uri))[0].type_name != "gcs":
        return open_file(uri)
    filesystem, path = place
    return io.BufferedReader(filesystem.open_input_stream(path, compression=None), _BUFFER_BYTES)


def read(uri: str, offset: int = -1, length: int = -1) -> tuple[bytes, int]:
    """Bytes [offset, offset + length) of a file, by default all, and the size of the file.

    Errors that may pass are retried.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: reading failed, or is not permitted.
    """
    doing = f"reading {uri}"
    if not is_remote(uri):
        return insistently(doing, lambda: _read_local(uri, offset, length))
    filesystem, path = resolved(uri)
    if offset < 0:
        return insistently(doing, lambda: _read_whole(filesystem, path), filesystem)
    period = int(time.monotonic() // _SHARD_SECONDS)
    return insistently(doing, lambda: _read_range(uri, period, offset, length), filesystem)


def read_file(filesystem: pyarrow.fs.FileSystem, path: str) -> bytes:
    """The whole file at a path of a file system, as `read` reads it."""
    return insistently(f"reading {path}", lambda: _read_whole(filesystem, path), filesystem)[0]


def write(uri: str, data: bytes | memoryview) -> None:
    """Create or replace the file at a path or URI, with the local folders it takes; it is whole at any moment."""
    if is_remote(uri):
        write_file(*resolved(uri), data)
        return
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(uri), data)


def write_file(filesystem: pyarrow.fs.FileSystem, path: str, data: bytes | memoryview) -> None:
    """Create or replace the file at a path of an object store, where it appears when it is whole."""

    def write() -> None:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)

    insistently(f"writing {path}", write, filesystem)


def insistently(doing: str, attempt: Callable[[], _Result], filesystem: pyarrow.fs.FileSystem | None = None) -> _Result:
    """What an attempt gives; errors that may pass are retried twice after a pause; Google's client insists by itself.

    Raises:
        OSError: the last attempt's, which says what it was `doing`, or one that will not pass.
    """
    pauses: Sequence[float] = () if filesystem is not None and filesystem.type_name == "gcs" else _PAUSES
    for pause in (*pauses, None):
        try:
            return attempt()
        except _PERMANENT:
            raise
        except OSError as error:
            if pause is None:
                times = f" {len(pauses) + 1} times" if pauses else ""
                raise OSError(error.errno or errno.EIO, f"{doing} failed{times}: {error}") from error
            time.sleep(pause)
    raise AssertionError("unreachable")


class _RemoteFile(io.RawIOBase):
    """A file of an object store, to be read anywhere, each piece as insistently as `read` does."""

    def __init__(self, uri: str) -> None:
        self._filesystem, path = resolved(uri)
        self._doing, self._position = f"reading {uri}", 0
        self._file = insistently(self._doing, lambda: _opened(self._filesystem, path), self._filesystem)

    def close(self) -> None:
        super().close()
        self._file.close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size()}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer)
        length = max(0, min(len(room), self._file.size() - self._position))
        if not length:
            return 0
        data = insistently(self._doing, lambda: self._file.read_at(length, self._position), self._filesystem)
        room[: len(data)] = data
        self._position += len(data)
        return len(data)


def _read_local(path: str, offset: int, length: int) -> tuple[bytes, int]:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        size = os.fstat(file.fileno()).st_size
        # A list may tell of more bytes than there are, for which there need not be room.
        data = file.readall() if offset < 0 else os.pread(file.fileno(), max(0, min(length, size - offset)), offset)
        return data, size


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
