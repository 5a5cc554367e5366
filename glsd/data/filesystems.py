"""Where bytes lie: local paths through the operating system, `s3://`, `gs://` and their like through `pyarrow.fs`.

A uri is an absolute local path, or `scheme://bucket/key?options` as pyarrow reads it (`endpoint_override=...` names an
S3 server of one's own), in which `%`, `?` and `#` of a key are percent-encoded and nothing else is.

Local files are replaced whole: written beside, synced, renamed.
"""

import errno
import io
import os
import re
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple, TypeVar, cast
from urllib.parse import unquote

import numpy as np
import pyarrow.fs
from numpy.typing import NDArray

_SCHEMES: Final = ("file", "s3", "gs", "gcs")
# Headers of a tar are an image apart: few large reads beat many small ones, above all of an object store.
_BUFFER_BYTES: Final = 1 << 20
_TICK_FILES: Final = 1000
_PAUSES: Final = (0.5, 2.0)
# Without credentials or network, `gs://` is tried again for more than a quarter of an hour by default, without a word.
_GOOGLE_RETRY_SECONDS: Final = 30
_Read = TypeVar("_Read")
_NOWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_SECRET_OPTION: Final = re.compile(r"[?&][^=&]*(key|secret|token|password|credential)[^=&]*=|@", re.IGNORECASE)
_PERMANENT: Final = (FileNotFoundError, NotADirectoryError, PermissionError)


class Files(NamedTuple):
    """Files in the order they were found: uri, size in bytes, time of the last change in nanoseconds."""

    uris: list[str]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]


def is_remote(uri: str) -> bool:
    """Whether the uri is read through pyarrow."""
    return "://" in uri


def absolute(source: str | Path) -> str:
    """The uri of what a user named: `~` expanded, made absolute, without a slash at its end.

    Raises:
        ValueError: no uri can be made of it, see `check_uri`.
    """
    text = str(source)
    check_uri(text)
    if is_remote(text):
        location, mark, options = text.partition("?")
        return location.rstrip("/") + mark + options
    return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111 - Path.resolve would follow symlinks


def check_uri(uri: str) -> None:
    """Refuse credentials, which would be written wherever the uri is, and names that this process cannot tell apart.

    Raises:
        ValueError: it holds credentials, or is a local name with letters that the locale reads in an encoding of its
            own; the message has no credentials in it.
    """
    if is_remote(uri):
        check_no_credentials(uri)
    elif not uri.isascii() and (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise ValueError(
            f"{uri!a} is read as {encoding} by the locale of this process, and file names are UTF-8 here; set "
            "PYTHONUTF8=1 in the environment of all processes"
        )


def check_no_credentials(text: str) -> None:
    """Refuse a uri, or an argument with a uri at its end, in which there are credentials.

    Raises:
        ValueError: there are; the message does not show them.
    """
    before, _, rest = text.partition("://")
    scheme = re.split(r"[^a-z0-9]", before.lower())[-1]
    location, mark, options = rest.partition("?")
    authority = location.partition("/")[0]
    if scheme in ("gs", "gcs"):
        authority = authority.removeprefix("anonymous@")
    if ":" in authority or "@" in authority or _SECRET_OPTION.search(mark + options):
        raise ValueError(
            f"a URI that begins with {scheme}:// holds credentials, which would be kept in files and reports; leave "
            "them out. For s3:// set the environment variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for gs:// "
            "Google's default credentials; a server of one's own is named by ?endpoint_override=HOST:PORT"
        )


def relative(uri: str, root: str) -> str:
    """The part of a uri below the root."""
    return unquote_key(uri)[len(unquote_key(root)) :].lstrip("/")


def inner_names(uris: Sequence[str]) -> list[str]:
    """Names of files below the folder that they have in common: the same wherever the folder lies."""
    readable = [unquote_key(uri).rpartition("://")[2] for uri in uris]
    start = os.path.commonprefix(readable).rfind("/") + 1  # noqa: RUF071 - cut at a slash it is a folder
    return [name[start:] for name in readable]


def unquote_key(uri: str) -> str:
    """A uri as a person reads it: without options, decoded."""
    return unquote(uri.partition("?")[0]) if is_remote(uri) else uri


def beside(uri: str, entry: str) -> str:
    """The uri of an entry that a list at `uri` names: absolute, or relative to the list's folder."""
    if is_remote(entry):
        return entry
    if not is_remote(uri):
        return os.path.normpath(os.path.join(os.path.dirname(uri), entry))  # noqa: PTH118, PTH120 - 100k times
    location, mark, options = uri.partition("?")
    return f"{location.rpartition('/')[0]}/{_quote_key(entry)}{mark}{options}"


def what_is_at(uri: str) -> Literal["file", "folder"] | None:
    """A file, a folder, or nothing."""
    if not is_remote(uri):
        if os.path.isdir(uri):  # noqa: PTH112
            return "folder"
        return "file" if os.path.exists(uri) else None  # noqa: PTH110
    filesystem, path = resolved(uri)
    kind = filesystem.get_file_info(path).type
    if kind == pyarrow.fs.FileType.Directory:
        return "folder"
    return "file" if kind == pyarrow.fs.FileType.File else None


def walk(
    root: str,
    suffixes: tuple[str, ...],
    tick: Callable[[int], None],
    on_other: Callable[[str], None] = lambda _: None,
) -> Files:
    """All files below a folder whose lower-case names end in one of the suffixes; hidden ones are left out.

    Symbolic links are followed; a folder that can be reached in several ways is entered once.

    Args:
        root: the folder.
        suffixes: of the files.
        tick: told of so many more, now and then.
        on_other: given the name of each file that ends otherwise and is not hidden.

    Raises:
        ValueError: a folder cannot be read, a link leads nowhere, or the locale cannot read a name.
    """
    return (_walk_remote if is_remote(root) else _walk_local)(root, suffixes, tick, on_other)


def stat_files(uris: Sequence[str], tick: Callable[[int], None]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sizes and times of files, in order; -1 for those that do not exist or are no files.

    Args:
        uris: the files.
        tick: told of so many more, now and then.
    """
    pairs = list[tuple[int, int]]()
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(uris), _TICK_FILES):
            part = uris[start : start + _TICK_FILES]
            local = not any(map(is_remote, part))
            pairs += map(_stat_local, part) if local else pool.map(_stat, part)
            tick(len(part))
    facts = np.array(pairs, np.int64).reshape(-1, 2)
    return facts[:, 0].copy(), facts[:, 1].copy()


def unreadable(uris: Iterable[str]) -> list[str]:
    """Local files that this user may not read."""
    return [uri for uri in uris if not is_remote(uri) and not os.access(uri, os.R_OK)]


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
    filesystem = resolved(uri)[0] if is_remote(uri) else None
    return _insistently(uri, filesystem, lambda: _read_once(uri, offset, length))


def read_file(filesystem: pyarrow.fs.FileSystem, path: str) -> bytes:
    """The whole file at a path of a file system, as `read` reads it."""
    return _insistently(path, filesystem, lambda: _whole(filesystem, path))


def _insistently(name: str, filesystem: pyarrow.fs.FileSystem | None, attempt: Callable[[], _Read]) -> _Read:
    pauses = () if filesystem is not None and filesystem.type_name == "gcs" else _PAUSES
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


def _read_once(uri: str, offset: int, length: int) -> tuple[bytes, int]:
    if is_remote(uri):
        filesystem, path = resolved(uri)
        if offset < 0:
            data = _whole(filesystem, path)
            return data, len(data)
        with _opened(filesystem, path) as file:
            return cast(bytes, file.read_at(length, offset)), file.size()
    with open(uri, "rb", buffering=0) as file:  # noqa: PTH123
        data = file.readall() if offset < 0 else os.pread(file.fileno(), length, offset)
        return data, os.fstat(file.fileno()).st_size


def _whole(filesystem: pyarrow.fs.FileSystem, path: str) -> bytes:
    if filesystem.type_name == "gcs":
        # A file that can be read anywhere would be asked for twice, which fails where it was replaced in between, and
        # waited for with Python's lock held.
        with filesystem.open_input_stream(path, compression=None) as stream:
            return b"".join(iter(lambda: stream.read(_BUFFER_BYTES), b""))
    with _opened(filesystem, path) as file:
        return cast(bytes, file.read())


def _opened(filesystem: pyarrow.fs.FileSystem, path: str) -> pyarrow.NativeFile:
    file = filesystem.open_input_file(path)
    if file.closed:  # so says a file of `gs://` that could not be asked for, and hides the reason
        raise OSError("the object store did not send it")
    return file


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


def joined(folder: str, name: str) -> str:
    """The uri of what has this relative name in a folder."""
    if not is_remote(folder):
        return str(Path(folder) / name)
    location, mark, options = folder.partition("?")
    return f"{location.rstrip('/')}/{_quote_key(name)}{mark}{options}"


def resolved(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a remote uri, and the path on it.

    Raises:
        ValueError: its scheme is not known, or it holds credentials.
    """
    check_uri(uri)
    location, mark, options = uri.partition("?")
    scheme, _, rest = location.partition("://")
    authority, _, key = rest.partition("/")
    bucket = authority.rpartition("@")[2]
    return _filesystem(scheme, authority, mark + options), f"{bucket}/{unquote(key)}".rstrip("/")


@lru_cache(maxsize=64)
def _filesystem(scheme: str, authority: str, options: str) -> pyarrow.fs.FileSystem:
    if scheme not in _SCHEMES:
        raise ValueError(f"{scheme}:// is not known; use a local path or one of {', '.join(_SCHEMES)}")
    if scheme in ("gs", "gcs") and "retry_limit_seconds=" not in options:
        options += f"{'&' if options else '?'}retry_limit_seconds={_GOOGLE_RETRY_SECONDS}"
    return pyarrow.fs.FileSystem.from_uri(f"{scheme}://{authority or '/'}{options}")[0]


def _quote_key(key: str) -> str:
    return key.replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def _walk_local(
    root: str, suffixes: tuple[str, ...], tick: Callable[[int], None], on_other: Callable[[str], None]
) -> Files:
    uris: list[str] = []
    facts: list[tuple[int, int]] = []
    entered: set[tuple[int, int]] = set()
    folders, links = [root], deque[str]()  # links last, so that a folder goes by its own name
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        ticked = len(uris)
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except PermissionError as error:
            raise ValueError(
                f"{folder} cannot be read: {error.strerror}; give this user the right to list it"
            ) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _holds(entry.is_dir):
                (links if entry.is_symlink() else folders).append(entry.path)
            elif not entry.name.lower().endswith(suffixes):
                if _holds(entry.is_file):
                    on_other(entry.name)
            else:
                check_uri(entry.path)
                try:
                    status = entry.stat()
                except OSError as error:
                    if error.errno not in _NOWHERE:
                        raise
                    raise ValueError(f"{entry.path} is a link to a file that does not exist; remove it") from error
                if stat.S_ISREG(status.st_mode):
                    uris.append(entry.path)
                    facts.append((status.st_size, status.st_mtime_ns))
                    if len(uris) - ticked == _TICK_FILES:
                        tick(_TICK_FILES)
                        ticked = len(uris)
        tick(len(uris) - ticked)
    sizes, mtimes = np.array(facts, np.int64).reshape(-1, 2).T
    return Files(uris, sizes, mtimes)


def _holds(test: Callable[[], bool]) -> bool:
    """What a test of an entry says; of a link to itself nothing holds."""
    try:
        return test()
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return False


def _walk_remote(
    root: str, suffixes: tuple[str, ...], tick: Callable[[int], None], on_other: Callable[[str], None]
) -> Files:
    filesystem, path = resolved(root)
    try:
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))
    except OSError as error:
        raise OSError(f"{root} cannot be listed: {error}") from error
    location, mark, options = root.partition("?")
    infos = []
    for info in sorted(found, key=lambda info: info.path):
        if info.type != pyarrow.fs.FileType.File or "/." in info.path[len(path) :]:
            continue
        if info.path.lower().endswith(suffixes):
            infos.append(info)
        else:
            on_other(info.base_name)
    tick(len(infos))
    return Files(
        [f"{location}{_quote_key(info.path[len(path) :])}{mark}{options}" for info in infos],
        np.array([info.size for info in infos], np.int64),
        np.array([info.mtime_ns for info in infos], np.int64),
    )


def _stat(uri: str) -> tuple[int, int]:
    return _stat_remote(uri) if is_remote(uri) else _stat_local(uri)


def _stat_local(uri: str) -> tuple[int, int]:
    try:
        status = os.stat(uri)  # noqa: PTH116
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return -1, -1
    except ValueError:  # a zero byte
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)


def _stat_remote(uri: str) -> tuple[int, int]:
    filesystem, path = resolved(uri)
    info = filesystem.get_file_info(path)
    return (info.size, info.mtime_ns) if info.type == pyarrow.fs.FileType.File else (-1, -1)
