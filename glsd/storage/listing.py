"""Which files there are: folders walked, files looked at, brace patterns expanded."""

import errno
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow.fs
from numpy.typing import NDArray

from glsd.storage.uris import check_uri, is_remote, quote_key, resolved

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"([0-9]+)\.\.([0-9]+)")
_TICK_FILES: Final = 1000
_NOWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Files(NamedTuple):
    """Files in the order they were found: uri, size in bytes, time of the last change in nanoseconds."""

    uris: list[str]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]


def what_is_at(uri: str) -> Literal["file", "folder"] | None:
    """A file, a folder, or nothing."""
    if is_remote(uri):
        filesystem, path = resolved(uri)
        kind = filesystem.get_file_info(path).type
        is_folder, is_file = kind == pyarrow.fs.FileType.Directory, kind == pyarrow.fs.FileType.File
    else:
        is_folder, is_file = os.path.isdir(uri), os.path.exists(uri)  # noqa: PTH110, PTH112
    return "folder" if is_folder else "file" if is_file else None


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
        tick: told of so many more files.
        on_other: given the name of each file that ends otherwise and is not hidden.

    Raises:
        ValueError: a folder cannot be read, a link leads nowhere, or the locale cannot read a name.
    """
    return (_walk_remote if is_remote(root) else _walk_local)(root, suffixes, tick, on_other)


def stat_files(uris: Sequence[str], tick: Callable[[int], None]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sizes and times of files, in order; -1 for those that do not exist or are no files; `tick` counts them."""
    pairs = list[tuple[int, int]]()
    with ThreadPoolExecutor(16) as pool:
        for start in range(0, len(uris), _TICK_FILES):
            part = uris[start : start + _TICK_FILES]
            pairs += (pool.map if any(map(is_remote, part)) else map)(_stat, part)
            tick(len(part))
    sizes, mtimes = np.array(pairs, np.int64).reshape(-1, 2).T.copy()
    return sizes, mtimes


def unreadable(uris: Iterable[str]) -> list[str]:
    """Local files that this user may not read."""
    return [uri for uri in uris if not is_remote(uri) and not os.access(uri, os.R_OK)]


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
        if info.type == pyarrow.fs.FileType.File and "/." not in info.path[len(path) :]:
            if info.path.lower().endswith(suffixes):
                infos.append(info)
            else:
                on_other(info.base_name)
    tick(len(infos))
    return Files(
        [f"{location}{quote_key(info.path[len(path) :])}{mark}{options}" for info in infos],
        np.array([info.size for info in infos], np.int64),
        np.array([info.mtime_ns for info in infos], np.int64),
    )


def _stat(uri: str) -> tuple[int, int]:
    if is_remote(uri):
        filesystem, path = resolved(uri)
        info = filesystem.get_file_info(path)
        return (info.size, info.mtime_ns) if info.type == pyarrow.fs.FileType.File else (-1, -1)
    try:
        status = os.stat(uri)  # noqa: PTH116
    except (OSError, ValueError) as error:  # a ValueError is a zero byte
        if isinstance(error, OSError) and error.errno not in _NOWHERE:
            raise
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)


def expanded(uri: str) -> list[str]:
    """A brace pattern such as `{000..007}` or `{train,test}` as all that it stands for, unless it is there itself."""
    if not _BRACES.search(uri) or (not is_remote(uri) and what_is_at(uri)):
        return [uri]
    choices: list[list[str]] = []
    for position, piece in enumerate(_BRACES.split(uri)):
        if position % 2 == 0:
            choices.append([piece])
        elif match := _RANGE.fullmatch(piece):
            first, last = match.groups()
            choices.append([str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(","))
    return ["".join(parts) for parts in itertools.product(*choices)]
