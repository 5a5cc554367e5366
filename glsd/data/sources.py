"""What a user names as data, told apart and listed: folders, lists, WebDataset tars and Parquet files.

Listing opens no image: names, sizes and times are enough to know whether an index is still true. Several sources may
be given at once, each of its own kind.
"""

import csv
import hashlib
import io
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from glsd.config import DataConfig
from glsd.data.images import IMAGE_EXTENSIONS
from glsd.storage.columns import Texts, one_column, texts
from glsd.storage.files import open_file, read
from glsd.storage.listing import Files, expanded, stat_files, walk, what_is_at
from glsd.storage.uris import (
    absolute,
    all_beside,
    beside,
    check_uri,
    check_uris,
    is_remote,
    unquote_key,
    unquoted,
)

Sources = str | Path | Sequence[str | Path]
Labels: TypeAlias = Texts | NDArray[np.int64]
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
_WHOLE_NUMBER: Final = r"^-?[0-9]{1,18}$"
_CLASS_ID: Final = r"^(0|-?[1-9][0-9]{0,17})$"  # 01 is a name, and not that of class 1
_LIST_COLUMNS: Final = ("path", "uri")
_CHUNK_ROWS: Final = 1 << 16
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

    Image i lies in file i, or in `file_ids[i]` where a list names files several times; `offsets` and `lengths` are
    given where it names byte ranges. `class_names` are those of the class ids within tars. `content` stands for what
    files cannot tell: the digest of a list, or the class names.
    """

    name: str
    kind: Kind
    files: Files
    labels: Labels | None = None
    file_ids: NDArray[np.int32] | None = None
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


def as_labels(written: Texts) -> Labels:
    """Labels written as text: class ids where all are plain whole numbers (7, -1, not 07), else names of classes."""
    if pc.all(pc.match_substring_regex(written, _CLASS_ID)).as_py():
        ids: NDArray[np.int64] = written.cast(pa.int64()).to_numpy()
        return ids
    return written


def _source(uri: str, config: DataConfig, tick: Callable[[int], None]) -> Source:
    what = what_is_at(uri)
    if what is None:
        is_link = not is_remote(uri) and Path(uri).is_symlink()
        why = "is a link to a file that does not exist; remove it" if is_link else "does not exist"
        raise ValueError(f"{uri} {why}")
    if what == "folder":
        return _folder(uri, config, tick)
    name = unquote_key(uri).lower()
    if name.endswith(".txt"):
        return _text_list(uri, tick)
    if name.endswith(".csv"):
        return _list(read_csv(uri, tick), config, tick)
    for kind, extensions in _EXTENSIONS.items():
        if name.endswith(extensions):
            files = stat_files(texts([uri]), lambda _: None)
            return _parquet(uri, files, config, tick) if kind == "Parquet files" else Source(uri, kind, files)
    known = ", ".join((".txt", ".csv", *itertools.chain.from_iterable(_EXTENSIONS.values())))
    raise ValueError(f"{uri} is not a known kind of data; name a folder or a file that ends in {known}")


def _folder(uri: str, config: DataConfig, tick: Callable[[int], None]) -> Source:
    others = Counter[str]()
    suffixes = tuple(itertools.chain.from_iterable(_EXTENSIONS.values()))
    files = walk(uri, suffixes, tick, lambda name: others.update(kind_not_read(name)))
    names = pc.utf8_lower(unquoted(files.uris))
    counts = {kind: _num_ending(names, extensions) for kind, extensions in _EXTENSIONS.items()}
    kinds = [kind for kind, count in counts.items() if count]
    if not kinds:
        held = f". It holds {counted(others)}; convert them, for example to PNG" if others else ""
        raise ValueError(
            f"{uri} holds no image; images end in {', '.join(IMAGE_EXTENSIONS)} (or are in .tar, .parquet){held}"
        )
    if len(kinds) > 1:
        held = " and ".join(f"{counts[kind]} {kind}" for kind in kinds)
        raise ValueError(f"{uri} holds {held}; name a folder or a list of only one kind")
    if kinds == ["Parquet files"]:
        return _parquet(uri, files, config, tick)
    if kinds == ["tars"]:
        _check_packs(files)
    if kinds == ["images"] and others:
        warnings.warn(f"{uri} also holds {counted(others)}; if they are images, convert them", stacklevel=4)
    return Source(uri, kinds[0], files, _class_folders(uri, files) if kinds[0] == "images" else None)


def _num_ending(names: Texts, extensions: tuple[str, ...]) -> int:
    return sum(pc.sum(pc.ends_with(names, extension), min_count=0).as_py() for extension in extensions)


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
    uris = files.uris.to_pylist()
    sizes = dict(zip(uris, files.sizes.tolist(), strict=True))
    for plan in dict.fromkeys(beside(uri, PACK_PLAN) for uri in uris):
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
        uris = source.files.uris.to_pylist() if "tars" in source.kind else []
        lists = {beside(uri, CLASS_NAMES) for uri in uris}
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


def _class_folders(root: str, files: Files) -> Texts | None:
    """The folder of each image as its class, where every image lies exactly one folder deep."""
    within = pc.utf8_slice_codeunits(unquoted(files.uris), len(unquote_key(root).rstrip("/")) + 1)
    is_elsewhere = pc.not_equal(pc.count_substring(within, "/"), 1)
    elsewhere = pc.sum(is_elsewhere).as_py()
    if elsewhere and elsewhere < 0.1 * len(within):
        warnings.warn(
            f"the folders of {root} are not taken for classes, since {elsewhere} of {len(within)} images are not "
            f"exactly one folder deep, such as {files.uris[pc.index(is_elsewhere, True).as_py()]}",
            stacklevel=5,
        )
    return None if elsewhere else pc.replace_substring_regex(within, "(?s)/.*", "")


class Listed(NamedTuple):
    """A list that was read."""

    uri: str
    columns: dict[str, Texts]
    """By their names in the list."""
    content: str
    """Digest of all of it."""
    place: Callable[[int], str]
    """Where a row stands, for people: `line 7`."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def where(self, row: int) -> str:
        """What a message about a row begins with."""
        return f"{self.uri}, {self.place(row)}"


def _text_list(uri: str, tick: Callable[[int], None]) -> Source:
    data, content = _content(uri)
    entries = one_column(texts([line for _, line in chunk]) for chunk in _chunks(_lines(uri, data)))
    if not len(entries):
        raise ValueError(f"{uri} lists no image; write one path per line")
    return _list(Listed(uri, {"path": entries}, content, partial(_line, _lines, uri)), DataConfig(), tick)


def _lines(uri: str, data: bytes) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    # Not `splitlines`, which also ends a line at characters that a file name may hold, such as U+2028.
    for number, line in enumerate(_decoded(uri, data, newline=None), 1):
        if stripped := line.strip(" \t\n"):
            yield number, stripped


def _line(rows: Callable[[str, bytes], Iterator[tuple[int, Any]]], uri: str, row: int) -> str:
    """Where a row stands in a list, which is read again for the message."""
    return f"line {next(islice(rows(uri, _content(uri)[0]), row, None))[0]}"


def read_csv(uri: str, tick: Callable[[int], None] = lambda _: None) -> Listed:
    """The columns of a CSV file by the names in its first line; `tick` counts the rows, see `_tells_files`.

    Raises:
        ValueError: it is not UTF-8, a quote is not closed, or a row has more or fewer columns than the first line.
    """
    data, content = _content(uri)
    rows = _csv_rows(uri, data)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    chunks = []
    for chunk in _chunks(rows):
        chunks.append([texts(column) for column in zip(*(row for _, row in chunk), strict=True)])
        if _tells_files(header):
            tick(len(chunk))
    del data
    columns = {name: one_column([chunk.pop(0) for chunk in chunks]) for name in header}
    return Listed(uri, columns, content, lambda row: _line(_csv_rows, uri, row + 1))


def _csv_rows(uri: str, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """The names of the columns and each row, with the number of its last line."""
    reader = csv.reader(_decoded(uri, data, newline=""), strict=True)
    header, begins = None, 1
    try:
        for row in reader:
            if header is None:
                header = row
            elif row and len(row) != len(header):
                raise ValueError(
                    f"{uri}, line {reader.line_num}: {len(row)} columns where the first line has {len(header)}"
                )
            if row or row is header:
                yield reader.line_num, row
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f'{uri}, line {begins}: {error}; a quote (") that opens a value there must be closed before the next comma '
            "or the end of the line, and one within it be doubled"
        ) from error


def _content(uri: str) -> tuple[bytes, str]:
    data, _ = read(uri)
    return data, hashlib.sha256(data).hexdigest()


def _decoded(uri: str, data: bytes, newline: str | None) -> Iterator[str]:
    """The lines of a text."""
    try:
        yield from io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=newline)
    except UnicodeDecodeError as error:
        raise ValueError(f"{uri} is not UTF-8 text: {error}") from error


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        yield chunk


def _parquet(uri: str, files: Files, config: DataConfig, tick: Callable[[int], None]) -> Source:
    """Parquet files of images; or of paths, as a CSV list has them."""
    first = str(files.uris[0])
    with open_file(first) as stream:
        try:
            names = pq.read_schema(stream).names
        except pa.ArrowInvalid as error:
            raise ValueError(f"{first} is not a Parquet file, or is broken: {error}") from error
    if config.image_column in names or not set(_LIST_COLUMNS) & set(names):
        return Source(uri, "Parquet files", files)
    if len(files.uris) > 1:
        raise ValueError(f"{uri} holds {len(files.uris)} Parquet files that list images; name each of them as a source")
    return _list(_read_parquet_list(first, config, tick), config, tick)


def _tells_files(columns: Collection[str]) -> bool:
    """Whether a list names few files or tells their sizes, so that reading it is what takes the time."""
    return "offset" in columns or "file_size" in columns


def _read_parquet_list(uri: str, config: DataConfig, tick: Callable[[int], None]) -> Listed:
    data, content = _content(uri)
    file = pq.ParquetFile(pa.BufferReader(data))
    wanted = (*_LIST_COLUMNS, config.label_column, "offset", "length", "file_size")
    names = [name for name in file.schema_arrow.names if name in wanted]
    batches, columns = [], {}
    for batch in file.iter_batches(_CHUNK_ROWS, columns=names):
        batches.append([batch.column(name).cast(pa.large_string()) for name in names])
        if _tells_files(names):
            tick(len(batch))
    for name in names:
        columns[name] = one_column([batch.pop(0) for batch in batches])
        if columns[name].null_count:
            row = pc.index(pc.is_null(columns[name]), True).as_py()
            raise ValueError(f"{uri}, row {row}: no {name}")
    return Listed(uri, columns, content, lambda row: f"row {row}")


def _list(listed: Listed, config: DataConfig, tick: Callable[[int], None]) -> Source:
    """The images that a list names."""
    uri, columns = listed.uri, listed.columns
    column = next((name for name in _LIST_COLUMNS if name in columns), None)
    if column is None:
        raise ValueError(f"{uri} has no column 'path' or 'uri'; its first line has {', '.join(columns) or 'nothing'}")
    if not len(listed):
        raise ValueError(f"{uri} lists no image below its first line")
    if "offset" in columns and "length" not in columns:
        raise ValueError(f"{uri} has a column 'offset' and no 'length'; name both for images within files, or neither")
    labels = None
    if config.label_column in columns:
        written = pc.utf8_trim_whitespace(columns[config.label_column])
        if (row := pc.index(written, "").as_py()) >= 0:
            raise ValueError(f"{listed.where(row)}: no {config.label_column}; label all images or none")
        labels = as_labels(written)
    files, file_ids = _listed_files(listed, column, tick)
    offsets = lengths = None
    if "offset" in columns:
        offsets, lengths = (_whole_numbers(listed, name) for name in ("offset", "length"))
        sizes = files.sizes[file_ids]
        within = (offsets == -1) | ((offsets >= 0) & (lengths >= 0) & (offsets + lengths <= sizes))
        if not within.all():
            row = int(np.flatnonzero(~within)[0])
            raise ValueError(
                f"{listed.where(row)}: bytes {offsets[row]} to {offsets[row] + lengths[row]} do not lie within the "
                f"file of {sizes[row]} bytes; offset -1 is the whole file"
            )
    return Source(uri, "images", files, labels, file_ids, offsets, lengths, content=listed.content)


def _whole_numbers(listed: Listed, column: str) -> NDArray[np.int64]:
    written = pc.utf8_trim_whitespace(listed.columns[column])
    is_number = pc.match_substring_regex(written, _WHOLE_NUMBER)
    if (row := pc.index(is_number, False).as_py()) >= 0:
        text = str(listed.columns[column][row])
        raise ValueError(f"{listed.where(row)}: the {column} {text!r} is not a whole number of bytes")
    numbers: NDArray[np.int64] = written.cast(pa.int64()).to_numpy()
    return numbers


def _listed_files(listed: Listed, column: str, tick: Callable[[int], None]) -> tuple[Files, NDArray[np.int32] | None]:
    """The files that a list names, and the number of each row's file, or None where there is one for each row.

    Where the list tells their sizes, they are not looked at before they are read.
    """
    uris = all_beside(listed.uri, listed.columns.pop(column))
    if (row := check_uris(uris)) is not None:
        try:
            check_uri(str(uris[row]))
        except ValueError as error:
            raise ValueError(f"{listed.where(row)}: {error}") from error
    num_rows, file_ids, each = len(uris), None, slice(None)
    if "offset" in listed.columns:  # else a file that is named twice is refused
        named = uris.dictionary_encode()
        uris, file_ids = named.dictionary, named.indices.to_numpy()
        each = file_ids
    if "file_size" in listed.columns:
        told = _whole_numbers(listed, "file_size")
        sizes = np.zeros(len(uris), np.int64)
        sizes[each] = told
        if (differing := np.flatnonzero(sizes[each] != told)).size:
            raise ValueError(f"{listed.where(int(differing[0]))}: another file_size than in another row of this file")
        return Files(uris, sizes, np.full_like(sizes, -1)), file_ids
    files = stat_files(uris, (lambda _: None) if file_ids is not None else tick)
    missing = np.flatnonzero(files.sizes[each] < 0)
    if missing.size:
        row = int(missing[0])
        named_row = uris[row if file_ids is None else int(file_ids[row])]
        raise ValueError(
            f"{listed.where(row)}: {named_row} is not a file that exists ({missing.size} of {num_rows} entries are not)"
        )
    return files, file_ids
