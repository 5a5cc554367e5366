"""Which files there are: folders walked, files looked at, brace patterns expanded."""

import errno
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.fs
from numpy.typing import NDArray

from glsd.storage.columns import Texts, mapped, one_column, parts, texts
from glsd.storage.files import insistently
from glsd.storage.uris import check_uri, is_remote, quote_key, resolved

_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"([0-9]+)\.\.([0-9]+)")
_TICK_FILES: Final = 1000
_THREADS: Final = 16
"""That wait for a disk of the network or an object store at once."""
_MOST_PREFIXES: Final = 1000
_NOWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Files(NamedTuple):
    """Files in the order they were found: uri, size in bytes, time of the last change in nanoseconds.

    The time is -1 where a list told of a file and nobody has looked at it.
    """

    uris: Texts
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]


def what_is_at(uri: str) -> Literal["file", "folder"] | None:
    """A file, a folder, or nothing."""
    if is_remote(uri):
        filesystem, path = resolved(uri)
        kind = insistently(f"looking at {uri}", lambda: filesystem.get_file_info(path), filesystem).type
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


def stat_files(uris: Texts, tick: Callable[[int], None]) -> Files:
    """The files at these uris, with size -1 for those that do not exist or are no files; `tick` counts them."""
    facts = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(uris), _TICK_FILES):
            part = uris.slice(start, _TICK_FILES).to_pylist()
            found = list((pool.map if any(map(is_remote, part)) else map)(_stat, part))
            facts.append(np.array(found, np.int64))
            tick(len(part))
    sizes, mtimes = np.concatenate([np.empty((0, 2), np.int64), *facts]).T.copy()
    return Files(uris, sizes, mtimes)


def unreadable(uris: Texts) -> list[str]:
    """Local files that this user may not read."""
    return [
        uri for part in parts(uris) for uri in part.to_pylist() if not is_remote(uri) and not os.access(uri, os.R_OK)
    ]


class _Scanned(NamedTuple):
    """What is in a local folder: folders and links to folders, files with (size, time) of each, other files."""

    folders: list[str]
    links: list[str]
    uris: Texts
    facts: NDArray[np.int64]
    others: list[str]


def _walk_local(
    root: str, suffixes: tuple[str, ...], tick: Callable[[int], None], on_other: Callable[[str], None]
) -> Files:
    found: list[_Scanned] = []
    entered: set[tuple[int, int]] = set()
    links = deque[str]()  # last, so that a folder goes by its own name
    pool = ThreadPoolExecutor(_THREADS)
    scans: list[Future[_Scanned]] = []

    def begin(folder: str) -> None:
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) not in entered:
            entered.add((status.st_dev, status.st_ino))
            scans.append(pool.submit(_scan, folder, suffixes, tick))

    try:
        begin(root)
        while scans or links:
            if not scans:
                begin(links.popleft())
                continue
            here = scans.pop().result()
            found.append(here)
            links.extend(here.links)
            for name in here.others:
                on_other(name)
            for inner in here.folders:
                begin(inner)
    finally:
        pool.shutdown(cancel_futures=True)
    sizes, mtimes = np.concatenate([here.facts for here in found]).T.copy()
    return Files(one_column(here.uris for here in found if len(here.uris)), sizes, mtimes)


def _scan(folder: str, suffixes: tuple[str, ...], tick: Callable[[int], None]) -> _Scanned:
    folders, links, uris, others = list[str](), list[str](), list[str](), list[str]()
    facts: list[tuple[int, int]] = []
    ticked = 0
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except PermissionError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}; give this user the right to list it") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _holds(entry.is_dir):
            (links if entry.is_symlink() else folders).append(entry.path)
        elif not entry.name.lower().endswith(suffixes):
            if _holds(entry.is_file):
                others.append(entry.name)
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
    return _Scanned(folders, links, texts(uris), np.array(facts, np.int64).reshape(-1, 2), others)


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

    def listed(selector: pyarrow.fs.FileSelector) -> list[pyarrow.fs.FileInfo]:
        return insistently(f"listing {root}", lambda: filesystem.get_file_info(selector), filesystem)

    def kept(infos: Iterable[pyarrow.fs.FileInfo]) -> tuple[Texts, NDArray[np.int64], list[str]]:
        files = [i for i in infos if i.type == pyarrow.fs.FileType.File and "/." not in i.path[len(path) :]]
        chosen = [info for info in files if info.path.lower().endswith(suffixes)]
        tick(len(chosen))
        facts = np.array([(info.size, info.mtime_ns) for info in chosen], np.int64).reshape(-1, 2)
        others = [info.base_name for info in files if not info.path.lower().endswith(suffixes)]
        return texts([info.path[len(path) :] for info in chosen]), facts, others

    by_prefix = filesystem.type_name == "s3"  # Google's shows no prefix that is not an object itself
    top = listed(pyarrow.fs.FileSelector(path, recursive=not by_prefix))
    prefixes = [info.path for info in top if by_prefix and info.type == pyarrow.fs.FileType.Directory]
    prefixes = [prefix for prefix in prefixes if not prefix.rpartition("/")[2].startswith(".")]
    if len(prefixes) > _MOST_PREFIXES:  # a request each would be more than all pages together
        top, prefixes = listed(pyarrow.fs.FileSelector(path, recursive=True)), []
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [
            kept(top),
            *pool.map(lambda prefix: kept(listed(pyarrow.fs.FileSelector(prefix, recursive=True))), prefixes),
        ]
    for *_, others in found:
        for name in others:
            on_other(name)
    keys = one_column(keys for keys, *_ in found)
    order = pc.sort_indices(keys).to_numpy()
    location, mark, options = root.partition("?")
    uris = mapped(lambda key: f"{location}{quote_key(key)}{mark}{options}", keys.take(order))
    sizes, mtimes = np.concatenate([facts for _, facts, _ in found])[order].T.copy()
    return Files(uris, sizes, mtimes)


def _stat(uri: str) -> tuple[int, int]:
    if is_remote(uri):
        filesystem, path = resolved(uri)
        info = insistently(f"looking at {uri}", lambda: filesystem.get_file_info(path), filesystem)
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
