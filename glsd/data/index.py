"""Which images there are: an Arrow file in the user's cache folder with a row for each image.

Columns: uri, member (its name within a tar), offset (-1 is the whole file), length, file_size, image_column (of a
Parquet file, in which `offset` is the row), label. Rows are sorted by uri and offset, and `image_id` is the row. The
file is keyed by all absolute names, sizes and times, so unchanged data are never indexed twice and changed data never
go by an old index; workers map it into memory and never copy it.
`digest` identifies the images and their order wherever they lie. The data themselves are only read.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from glsd.config import DataConfig
from glsd.data.conversion import Conversion
from glsd.data.images import IMAGE_EXTENSIONS
from glsd.data.known import KnownLists, are_unchanged, known_lists
from glsd.data.memory import check_memory, free_memory
from glsd.data.parquet import read_row
from glsd.data.pieces import Each, in_threads
from glsd.data.sources import Source, Sources, find_sources
from glsd.data.table import index_table
from glsd.data.tars import Rows, scan_tars
from glsd.record import explained
from glsd.storage.cache import cache_folder
from glsd.storage.files import read
from glsd.storage.folder import Folder
from glsd.storage.listing import unreadable, walk, what_is_at
from glsd.storage.replacing import alone, replacing

_FORMAT: Final = "5"
_PART: Final = 1 << 16
_TYPES: Final = {
    "uri": pa.dictionary(pa.int32(), pa.large_string()),
    "member": pa.large_string(),
    **dict.fromkeys(("offset", "length", "file_size"), pa.int64()),
    "image_column": pa.dictionary(pa.int16(), pa.large_string()),
    "label": pa.int64(),
}
_REMEDY: Final = "put it back, or rerun the command, which indexes the data again"


class Place(NamedTuple):
    """Where the encoded bytes of an image lie: a file, bytes [offset, offset + length) of it, or row `offset` of the
    image column of a Parquet file.
    """

    uri: str
    member: str | None
    offset: int
    length: int
    file_size: int
    image_column: str | None


class _Facts(BaseModel):
    """What the metadata of an index say of all its images."""

    digest: str
    key: str
    ordered_as_in_format_2: bool
    classes: list[str] | None
    class_ids: list[int] | None
    sources: list[str]
    packed: list[str]
    lists: KnownLists | None


class Index:
    """The images of a data set, read from their file on first use; only the path is pickled."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> "Index":
        """The index at a path; a ValueError where there is none, or it is broken."""
        index = cls(path)
        table, why = index._table, ""
        try:
            table.validate(full=True)  # Arrow believes a file's offsets, and would read beyond its end
        except pa.ArrowException as error:
            why = f", or is broken: {error}"
        if why or dict(zip(table.column_names, table.schema.types, strict=True)) != _TYPES or not table.num_rows:
            raise ValueError(f"{path} is not an index{why}; delete it and rerun the command")
        assert index._facts
        return index

    def __reduce__(self) -> tuple[type["Index"], tuple[str]]:
        return Index, (str(self.path),)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def digest(self) -> str:
        """Thirty-two hexadecimal digits for relative names, sizes, order and labels: a copy elsewhere has the same."""
        return self._facts.digest

    @cached_property
    def key(self) -> str:
        """Thirty-two hexadecimal digits for the absolute names, sizes and times of all files."""
        return self._facts.key

    def has_digest(self, saved: str | None) -> bool:
        """Whether a saved digest is that of this index; what was begun with format 2 has saved its `key`."""
        return saved == self.digest or (saved == self.key and self._facts.ordered_as_in_format_2)

    @cached_property
    def classes(self) -> list[str] | None:
        """The name of each label, or None where images have none."""
        return self._facts.classes

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """The label of each image, (N,), or None."""
        if self.classes is None:
            return None
        labels: NDArray[np.int64] = self._columns["label"].to_numpy()
        return labels

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each encoded image, (N,)."""
        lengths: NDArray[np.int64] = self._columns["length"].to_numpy()
        return lengths

    @cached_property
    def class_ids(self) -> list[int] | None:
        """The number that the data have for each label, or None where they have names."""
        return self._facts.class_ids

    @property
    def sources(self) -> list[str]:
        """What was indexed."""
        return self._facts.sources

    @property
    def packed(self) -> list[str]:
        """Folders of tars into which images of the index were packed, of this machine's cache or elsewhere."""
        return self._facts.packed

    @property
    def lists(self) -> KnownLists | None:
        """What tells whether the lists that were indexed have changed, see `glsd.data.known`."""
        return self._facts.lists

    @property
    def has_rows(self) -> bool:
        """Whether images are rows of Parquet files, which are read where they lie."""
        return bool(self._columns["image_column"].null_count < len(self))

    def place(self, image_id: int) -> Place:
        """Where an image lies."""
        return Place(*(self._columns[name][image_id].as_py() for name in Place._fields))

    def uri(self, image_id: int) -> str:
        """The name of an image for people: its file, and `#` and the member's name for an image in a tar."""
        place = self.place(image_id)
        inner = place.member if place.member is not None else f"bytes={place.offset}" if place.offset >= 0 else ""
        return f"{place.uri}#{inner}" if inner else place.uri

    def read(self, image_id: int) -> bytes:
        """The encoded bytes of an image; errors that may pass are retried.

        Raises:
            ValueError: the file is gone, of another size or broken since the index was made.
            OSError: it cannot be read.
        """
        place = self.place(image_id)
        try:
            if place.image_column is None:
                data, size = read(place.uri, place.offset, place.length)
            else:
                data, size = read_row(place.uri, place.file_size, place.image_column, place.offset, self.key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{self.uri(image_id)} is gone since the index was made; {_REMEDY}") from error
        if place.image_column is not None and size == place.file_size and len(data) != place.length:
            raise ValueError(f"{self.uri(image_id)} has {len(data)} bytes, not {place.length}; {_REMEDY}")
        if size != place.file_size:
            changed = f"has changed since the index was made (a file of {size} bytes, not {place.file_size})"
            raise ValueError(f"{self.uri(image_id)} {changed}; {_REMEDY}")
        return data

    @cached_property
    def _table(self) -> pa.Table:
        try:
            return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{self.path} is not an index, or is broken: {error}; delete it and rerun the command"
            ) from error

    @cached_property
    def _columns(self) -> dict[str, pa.Array]:
        """Each column in one piece, as it was written."""
        return {name: self._table.column(name).chunk(0) for name in self._table.column_names}

    @cached_property
    def _facts(self) -> "_Facts":
        try:
            return _Facts.model_validate_json((self._table.schema.metadata or {}).get(b"glsd", b""))
        except ValidationError as error:
            raise ValueError(
                f"{self.path} is not an index, or is broken: {explained(error)}; delete it and rerun the command"
            ) from error


def build_index(
    sources: Sources,
    config: DataConfig,
    cache_dir: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
    each: Each = in_threads,
    packed_in: Callable[[], Folder | None] = lambda: None,
) -> Index:
    """The index of all images of the sources, made now if the cache holds none of the data as they are.

    Args:
        sources: folders, lists, tars, Parquet files, or patterns with braces; local paths or uris.
        config: names of the columns of tables.
        cache_dir: where indexes are kept; by default `GLSD_CACHE`, or `glsd` in the user's cache folder.
        progress: called with the number of images (or files that hold them) found so far, by any thread.
        each: does the pieces of an index that is made now.
        packed_in: gives the folder for tars with the images of Parquet files and compressed tars, if there are any; by
            default they go into the cache folder.

    Raises:
        ValueError: a source does not exist, is empty or broken; some images of a source have labels and others none;
            an image is named twice.
    """
    count, counting = 0, Lock()

    def tick(more: int) -> None:
        nonlocal count
        with counting:
            count += more
            if progress is not None:
                progress(count)

    cache = cache_folder(cache_dir)
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    if (known := _known(cache, sources, config)) is not None:
        tick(len(known))
        return known
    found = find_sources(sources, config, tick)
    key = _key(found, config)
    conversions = [None if source.kind in ("images", "tars") else Conversion(source, config) for source in found]
    made = next(cache.glob(f"index-{_FORMAT}-{key}*.arrow"), None)  # which knows, so that no footer is read
    others = packed_in() if (Index(made).packed if made else not _is_in_place(conversions)) else None
    elsewhere = "" if others is None else f"-{hashlib.sha256(others.location.encode()).hexdigest()[:8]}"
    path = cache / f"index-{_FORMAT}-{key}{elsewhere}.arrow"
    with alone(path.with_suffix(".lock")):
        # An index is usable whose packed tars, if it has any, are still there.
        if not path.exists() or any(what_is_at(folder) is None for folder in Index(path).packed):
            names = [source.files.uris for source in found]
            check_memory(sum(map(len, names)), sum(column.nbytes for column in names), free_memory())
            lists = known_lists(sources, found, config)
            rows, packed = _rows(found, conversions, others or cache, tick, each)
            facts = {"key": key, "sources": [source.name for source in found], "packed": packed, "lists": lists}
            table = index_table(found, rows, facts)
            with (
                replacing(path, path.with_suffix(".unfinished")) as file,
                pa.ipc.new_file(file, table.schema) as writer,
            ):
                writer.write_table(table)
    return Index.open(path)


def _known(cache: Path, sources: Sequence[str | Path], config: DataConfig) -> Index | None:
    """The index of lists that are as they were when it was made."""
    for path in sorted(cache.glob(f"index-{_FORMAT}-*.arrow")):
        index = Index(path)
        with suppress(ValueError):
            if are_unchanged(index.lists, sources, config):
                return index
    return None


def _key(found: Iterable[Source], config: DataConfig) -> str:
    digest = hashlib.sha256(b"2")  # as in format 2, whose digest this was, see `Index.has_digest`
    for source in found:
        columns = [config.image_column, config.label_column] if source.kind == "Parquet files" else []
        if source.kind == "images" and source.content:
            columns = [config.label_column]
        for text in (source.kind, source.name, source.content, *columns):
            digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        files, file_ids = source.files, _file_ids(source)
        for start in range(0, len(file_ids), _PART):
            uris = files.uris.take(pa.array(file_ids[start : start + _PART])).to_pylist()
            digest.update("".join(f"{uri}\0" for uri in uris).encode())
        digest.update(files.sizes[file_ids].tobytes() + files.mtimes[file_ids].tobytes())
    return digest.hexdigest()[:32]


def _file_ids(source: Source) -> NDArray[np.int32]:
    """The number of each entry's file."""
    return np.arange(len(source.files.uris), dtype=np.int32) if source.file_ids is None else source.file_ids


def _is_in_place(conversions: Iterable[Conversion | None]) -> bool:
    """Whether nothing is packed."""
    return all(conversion is None or conversion.is_in_place for conversion in conversions)


def _rows(
    found: list[Source],
    conversions: list[Conversion | None],
    place: Path | Folder,
    tick: Callable[[int], None],
    each: Each,
) -> tuple[list[Rows], list[str]]:
    """The images of each source, and the folders into which some were packed."""
    rows: list[Rows] = []
    packed: list[str] = []
    for source, conversion in zip(found, conversions, strict=True):
        if source.kind == "images":
            rows.append(_whole_files(source))
        elif conversion is None:
            rows.append(scan_tars(source.name, source.files, tick, each))
        elif conversion.is_in_place:
            rows.append(conversion.rows(tick, each))
        else:
            packed.append(conversion.packed(place, tick, each))
            tars = walk(packed[-1], (".tar",), lambda _: None)
            rows.append(scan_tars(source.name, tars, lambda _: None, each))
        if not len(rows[-1].file_ids):
            raise ValueError(f"{source.name} holds no image; images end in {', '.join(IMAGE_EXTENSIONS)}")
    return rows, packed


def _whole_files(source: Source) -> Rows:
    files, file_ids = source.files, _file_ids(source)
    if closed := unreadable(files.uris.filter(pa.array(files.mtimes >= 0))):
        raise ValueError(f"{closed[0]} cannot be read by this user ({len(closed)} of {len(files.uris)} images cannot)")
    sizes = files.sizes[file_ids]
    offset = np.full(len(file_ids), -1) if source.offsets is None else source.offsets
    length = sizes if source.lengths is None else np.where(offset < 0, sizes, source.lengths)
    members = pa.nulls(len(file_ids), pa.large_string())
    return Rows(files, file_ids, members, offset, length, source.labels, source.image_column)
