"""What a user names as data, told apart and listed: folders, lists, WebDataset tars and Parquet files.

Listing opens no image: names, sizes and times are enough to know whether an index is still true. Several sources may
be given at once, each of its own kind.
"""

import csv
import hashlib
import io
import itertools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glsd.config import DataConfig
from glsd.data.images import IMAGE_EXTENSIONS
from glsd.storage.files import read
from glsd.storage.listing import Files, expanded, stat_files, walk, what_is_at
from glsd.storage.uris import absolute, beside, check_uri, is_remote, relative, unquote_key

Sources = str | Path | Sequence[str | Path]
Labels = list[str] | NDArray[np.int64]
CLASS_NAMES: Final = "classes.json"
"""Beside tars: the names of their class ids, as `glsd pack` writes them."""
PACK_PLAN: Final = "pack.json"
"""Beside tars: what `glsd pack` writes there, `shards` being (name, first image, last image, bytes) of each."""
Kind = Literal["images", "tars", "compressed tars", "Parquet files"]

_EXTENSIONS: Final[dict[Kind, tuple[str, ...]]] = {
    "images": IMAGE_EXTENSIONS,
    "tars": (".tar",),
    "compressed tars": (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    "Parquet files": (".parquet", ".pq"),
}
_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")
_CLASS_ID: Final = re.compile(r"0|-?[1-9][0-9]{0,17}")  # 01 is a name, and not that of class 1
_NOT_READ: Final = (
    *(".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".jxl", ".jxr", ".wdp", ".jng", ".apng"),
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".raf", ".rw2", ".pef", ".srw"),
    *(".raw", ".x3f", ".iiq", ".3fr", ".rwl", ".mrw", ".dcm", ".dicom", ".ima", ".nii", ".mha", ".mhd", ".nrrd"),
    *(".fits", ".fit", ".fts", ".svs", ".ndpi", ".mrxs", ".scn", ".vsi", ".czi", ".lif", ".nd2", ".oib", ".oif"),
    *(".exr", ".hdr", ".pfm", ".pbm", ".pgm", ".ppm", ".pnm", ".pam", ".tga", ".ico", ".icns", ".psd", ".psb", ".xcf"),
    *(".svg", ".svgz", ".eps", ".pcx", ".dds", ".ecw", ".sid"),
)
"""Suffixes of images of kinds that are not read."""
_NO_IMAGES: Final = (
    *("authors", "changelog", "changes", "checksums", "contributing", "copying", "dockerfile", "license", "licence"),
    *("makefile", "md5sums", "notice", "readme", "sha1sums", "sha256sums", "sha512sums", "todo", "version", "_success"),
)
"""Lower-case names of files without a suffix that are surely no images."""


class Source(NamedTuple):
    """One source: its files in order, and for images their labels and their places within the files.

    `offsets` and `lengths` are given where a list names byte ranges. `class_names` are those of the class ids within
    tars. `content` stands for what files cannot tell: the digest of a list's text, or the class names.
    """

    name: str
    kind: Kind
    files: Files
    labels: Labels | None = None
    offsets: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None
    class_names: list[str] | None = None
    content: str = ""


def find_sources(sources: Sequence[str | Path], config: DataConfig, tick: Callable[[int], None]) -> list[Source]:
    """Lists every source.

    Raises:
        ValueError: a source does not exist, is of no known kind, is empty, names what does not exist or is a pack that
            is not complete.
    """
    if not sources or not all(map(str, sources)):
        raise ValueError("no data named; give a folder of images, a list, tars or Parquet files")
    return _with_class_names([_source(uri, config, tick) for source in sources for uri in expanded(absolute(source))])


def as_labels(texts: list[str]) -> Labels:
    """Labels written as text: class ids where all are plain whole numbers (7, -1, not 07), else names of classes."""
    if all(_CLASS_ID.fullmatch(text) for text in texts):
        return np.array([int(text) for text in texts], np.int64)
    return texts


def _source(uri: str, config: DataConfig, tick: Callable[[int], None]) -> Source:
    what = what_is_at(uri)
    if what is None:
        is_link = not is_remote(uri) and Path(uri).is_symlink()
        why = "is a link to a file that does not exist; remove it" if is_link else "does not exist"
        raise ValueError(f"{uri} {why}")
    if what == "folder":
        return _folder(uri, tick)
    name = unquote_key(uri).lower()
    if name.endswith(".txt"):
        return _text_list(uri, tick)
    if name.endswith(".csv"):
        return _csv_list(uri, config, tick)
    for kind, extensions in _EXTENSIONS.items():
        if name.endswith(extensions):
            return Source(uri, kind, Files([uri], *stat_files([uri], lambda _: None)))
    known = ", ".join((".txt", ".csv", *itertools.chain.from_iterable(_EXTENSIONS.values())))
    raise ValueError(f"{uri} is not a known kind of data; name a folder or a file that ends in {known}")


def _folder(uri: str, tick: Callable[[int], None]) -> Source:
    others = Counter[str]()
    suffixes = tuple(itertools.chain.from_iterable(_EXTENSIONS.values()))
    files = walk(uri, suffixes, tick, lambda name: others.update(kind_not_read(name)))
    names = [unquote_key(file).lower() for file in files.uris]
    counts = {kind: sum(name.endswith(extensions) for name in names) for kind, extensions in _EXTENSIONS.items()}
    kinds = [kind for kind, count in counts.items() if count]
    if not kinds:
        held = f". It holds {counted(others)}; convert them, for example to PNG" if others else ""
        raise ValueError(
            f"{uri} holds no image; images end in {', '.join(IMAGE_EXTENSIONS)} (or are in .tar, .parquet){held}"
        )
    if len(kinds) > 1:
        held = " and ".join(f"{counts[kind]} {kind}" for kind in kinds)
        raise ValueError(f"{uri} holds {held}; name a folder or a list of only one kind")
    if kinds == ["tars"]:
        _check_packs(files)
    if kinds == ["images"] and others:
        warnings.warn(f"{uri} also holds {counted(others)}; if they are images, convert them", stacklevel=4)
    return Source(uri, kinds[0], files, _class_folders(uri, files) if kinds[0] == "images" else None)


def kind_not_read(name: str) -> list[str]:
    """The suffix of a file that looks like an image of a kind that is not read, else nothing.

    Without a suffix, or with a number for one as in names of DICOM files, a file may be an image of any kind.
    """
    suffix = Path(name).suffix.lower()
    if not suffix.removeprefix(".").isdecimal() and suffix:
        return [suffix] if suffix in _NOT_READ else []
    return [] if name.lower() in _NO_IMAGES else ["no suffix"]


def counted(kinds: Counter[str]) -> str:
    """How many files of which kinds are not read, in words."""
    total = kinds.total()
    listed = ", ".join(f"{kind} {kinds[kind]:,}" for kind in sorted(kinds, key=lambda kind: (-kinds[kind], kind)))
    return f"{total:,} {'file of a kind that is' if total == 1 else 'files of kinds that are'} not read: {listed}"


def _check_packs(files: Files) -> None:
    """Refuse shards of a pack that was killed, is at work, or was copied in part; some may be named one by one."""
    sizes = dict(zip(files.uris, files.sizes.tolist(), strict=True))
    for plan in dict.fromkeys(beside(uri, PACK_PLAN) for uri in files.uris):
        if what_is_at(plan) != "file":
            continue
        try:
            shards = {name: num_bytes for name, _, _, num_bytes in json.loads(read(plan)[0])["shards"]}
        except (ValueError, KeyError, TypeError):
            continue  # somebody else's file of that name
        lacking = [name for name, size in shards.items() if sizes.get(beside(plan, name)) != size]
        if lacking:
            raise ValueError(
                f"{plan} names {len(shards)} shards, of which {len(lacking)} are missing or of another size, such as "
                f"{lacking[0]}: the pack is not complete; give the command `glsd pack` that began it again, or name "
                "the tars that are to be used"
            )


def _with_class_names(found: list[Source]) -> list[Source]:
    """The sources, those of tars in one folder with the class names that lie beside them."""
    class_names = cache(_class_names)  # read once for a thousand tars
    result = []
    for source in found:
        lists = {beside(uri, CLASS_NAMES) for uri in source.files.uris} if "tars" in source.kind else ()
        if len(lists) == 1 and (names := class_names(*lists)):
            source = source._replace(class_names=names, content=json.dumps(names))
        result.append(source)
    return result


def _class_names(uri: str) -> list[str] | None:
    """A JSON list of names by class id, or of objects with a `label` and its `name` (or `words`)."""
    if what_is_at(uri) != "file":
        return None
    try:
        entries = json.loads(read(uri)[0])
        if all(isinstance(entry, dict) for entry in entries):
            by_label = {entry["label"]: entry.get("name", entry.get("words")) for entry in entries}
            entries = [by_label[label] for label in range(len(entries))]
    except (ValueError, KeyError, TypeError):
        entries = None
    are_names = isinstance(entries, list) and all(isinstance(name, str) for name in entries)
    if not are_names or len(set(entries)) < len(entries):
        warnings.warn(f"{uri} is not used: it is not a JSON list of different names by class id", stacklevel=5)
        return None
    are_ids = entries == [str(label) for label in range(len(entries))]  # what ids are called that have no names
    return None if are_ids else entries


def _class_folders(root: str, files: Files) -> list[str] | None:
    """The folder of each image as its class, where every image lies exactly one folder deep."""
    parts = [relative(uri, root).split("/") for uri in files.uris]
    elsewhere = [uri for uri, part in zip(files.uris, parts, strict=True) if len(part) != 2]
    if elsewhere and len(elsewhere) < 0.1 * len(parts):
        warnings.warn(
            f"the folders of {root} are not taken for classes, since {len(elsewhere)} of {len(parts)} images are not "
            f"exactly one folder deep, such as {elsewhere[0]}",
            stacklevel=5,
        )
    return None if elsewhere else [part[0] for part in parts]


def _text_list(uri: str, tick: Callable[[int], None]) -> Source:
    text, content = _text(uri)
    # Not `splitlines`, which also ends a line at characters that a file name may hold, such as U+2028.
    stripped = [line.strip(" \t\n") for line in io.StringIO(text, newline=None)]
    lines = {number: beside(uri, line) for number, line in enumerate(stripped, 1) if line}
    if not lines:
        raise ValueError(f"{uri} lists no image; write one path per line")
    return Source(uri, "images", _listed(uri, list(lines.values()), list(lines), tick), content=content)


def _csv_list(uri: str, config: DataConfig, tick: Callable[[int], None]) -> Source:
    columns, numbers, content = read_csv(uri)
    column = next((name for name in ("path", "uri") if name in columns), None)
    if column is None:
        raise ValueError(f"{uri} has no column 'path' or 'uri'; its first line has {', '.join(columns) or 'nothing'}")
    if not numbers:
        raise ValueError(f"{uri} lists no image below its first line")
    files = _listed(uri, [beside(uri, entry) for entry in columns[column]], numbers, tick)
    labels = None
    if config.label_column in columns:
        texts = [label.strip() for label in columns[config.label_column]]
        if "" in texts:
            raise ValueError(
                f"{uri}, line {numbers[texts.index('')]}: no {config.label_column}; label all images or none"
            )
        labels = as_labels(texts)
    if "offset" in columns and "length" not in columns:
        raise ValueError(f"{uri} has a column 'offset' and no 'length'; name both for images within files, or neither")
    offset = length = None
    if "offset" in columns:
        offset, length = (_whole_numbers(uri, name, columns[name], numbers) for name in ("offset", "length"))
        within = (offset == -1) | ((offset >= 0) & (length >= 0) & (offset + length <= files.sizes))
        if not within.all():
            row = int(np.flatnonzero(~within)[0])
            raise ValueError(
                f"{uri}, line {numbers[row]}: bytes {offset[row]} to {offset[row] + length[row]} do not lie within the "
                f"file of {files.sizes[row]} bytes; offset -1 is the whole file"
            )
    return Source(uri, "images", files, labels, offset, length, content=content)


def _whole_numbers(uri: str, column: str, texts: list[str], line_numbers: list[int]) -> NDArray[np.int64]:
    for text, number in zip(texts, line_numbers, strict=True):
        if not _WHOLE_NUMBER.fullmatch(text.strip()):
            raise ValueError(f"{uri}, line {number}: the {column} {text!r} is not a whole number of bytes")
    return np.array([int(text) for text in texts], np.int64)


def read_csv(uri: str) -> tuple[dict[str, list[str]], list[int], str]:
    """Columns of a CSV file by the names in its first line, the line number of each row, and the content's digest.

    Raises:
        ValueError: it is not UTF-8, a quote is not closed, or a row has more or fewer columns than the first line.
    """
    text, content = _text(uri)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    begins = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        begins = reader.line_num + 1
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
                numbers.append(reader.line_num)
            elif row:
                raise ValueError(
                    f"{uri}, line {reader.line_num}: {len(row)} columns where the first line has {len(header)}"
                )
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f'{uri}, line {begins}: {error}; a quote (") that opens a value there must be closed before the next comma '
            "or the end of the line, and one within it be doubled"
        ) from error
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}, numbers, content


def _text(uri: str) -> tuple[str, str]:
    data, _ = read(uri)
    try:
        return data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest()
    except UnicodeDecodeError as error:
        raise ValueError(f"{uri} is not UTF-8 text: {error}") from error


def _listed(uri: str, entries: list[str], line_numbers: list[int], tick: Callable[[int], None]) -> Files:
    """The files that a list names; a file that is named several times (as a tar is) is looked at once."""
    for entry, number in zip(entries, line_numbers, strict=True):
        try:
            check_uri(entry)
        except ValueError as error:
            raise ValueError(f"{uri}, line {number}: {error}") from error
    rows = {entry: row for row, entry in enumerate(dict.fromkeys(entries))}
    sizes, mtimes = stat_files(list(rows), tick)
    tick(len(entries) - len(rows))
    order = np.array([rows[entry] for entry in entries])
    missing = np.flatnonzero(sizes[order] < 0)
    if missing.size:
        first = int(missing[0])
        raise ValueError(
            f"{uri}, line {line_numbers[first]}: {entries[first]} is not a file that exists "
            f"({missing.size} of {len(entries)} entries are not)"
        )
    return Files(entries, sizes[order], mtimes[order])
