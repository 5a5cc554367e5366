"""Which images there are: an Arrow file in the user's cache folder with a row for each image.

Columns: uri, member (its name within a tar), offset (-1 is the whole file), length, file_size, label. Rows are sorted
by uri and offset, and `image_id` is the row. The file is keyed by all absolute names, sizes and times, so unchanged
data are never indexed twice and changed data never go by an old index; workers map it into memory and never copy it.
`digest` identifies the images and their order wherever they lie. The data themselves are only read.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from glsd.config import DataConfig
from glsd.data.images import IMAGE_EXTENSIONS
from glsd.data.sources import CLASS_NAMES, Labels, Source, Sources, find_sources
from glsd.data.tars import Rows, pack, scan_tars
from glsd.storage.cache import cache_folder
from glsd.storage.files import read
from glsd.storage.listing import unreadable, walk
from glsd.storage.replacing import alone, replacing
from glsd.storage.uris import inner_names

_FORMAT: Final = "3"
_REMEDY: Final = "put it back, or rerun the command, which indexes the data again"


class Place(NamedTuple):
    """Where the encoded bytes of an image lie: a file, or bytes [offset, offset + length) of it."""

    uri: str
    member: str | None
    offset: int
    length: int
    file_size: int


class Index:
    """The images of a data set, read from their file on first use; only the path is pickled."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> "Index":
        """The index at a path; a ValueError where there is none, or it is broken."""
        index = cls(path)
        assert index._table.num_rows
        return index

    def __reduce__(self) -> tuple[type["Index"], tuple[str]]:
        return Index, (str(self.path),)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def digest(self) -> str:
        """Thirty-two hexadecimal digits for relative names, sizes, order and labels: a copy elsewhere has the same."""
        return str(self._facts["digest"])

    @cached_property
    def key(self) -> str:
        """Thirty-two hexadecimal digits for the absolute names, sizes and times of all files."""
        return str(self._facts["key"])

    def has_digest(self, saved: str | None) -> bool:
        """Whether a saved digest is that of this index; what was begun with format 2 has saved its `key`."""
        return saved == self.digest or (saved == self.key and bool(self._facts["ordered_as_in_format_2"]))

    @cached_property
    def classes(self) -> list[str] | None:
        """The name of each label, or None where images have none."""
        classes: list[str] | None = self._facts["classes"]
        return classes

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
        class_ids: list[int] | None = self._facts["class_ids"]
        return class_ids

    @property
    def sources(self) -> list[str]:
        """What was indexed."""
        return list(self._facts["sources"])

    @property
    def packed(self) -> list[str]:
        """Folders of this machine's cache that hold images of the index: other machines have none of them."""
        return list(self._facts["packed"])

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
            ValueError: the file is gone or of another size since the index was made.
            OSError: it cannot be read.
        """
        place = self.place(image_id)
        try:
            data, size = read(place.uri, place.offset, place.length)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"{self.uri(image_id)} is gone since the index was made; {_REMEDY}") from error
        if size != place.file_size:
            changed = f"has changed since the index was made (a file of {size} bytes, not {place.file_size})"
            raise ValueError(f"{self.uri(image_id)} {changed}; {_REMEDY}")
        return data

    @cached_property
    def _table(self) -> pa.Table:
        try:
            return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise ValueError(
                f"{self.path} is not an index, or is broken: {error}; delete it and rerun the command"
            ) from error

    @cached_property
    def _columns(self) -> dict[str, pa.Array]:
        """Each column in one piece, as it was written."""
        return {name: self._table.column(name).chunk(0) for name in self._table.column_names}

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._table.schema.metadata[b"glsd"])
        return facts


def build_index(
    sources: Sources,
    config: DataConfig,
    cache_dir: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Index:
    """The index of all images of the sources, made now if the cache holds none of the data as they are.

    Args:
        sources: folders, lists, tars, Parquet files, or patterns with braces; local paths or uris.
        config: names of the columns of tables.
        cache_dir: where indexes are kept; by default `GLSD_CACHE`, or `glsd` in the user's cache folder.
        progress: called with the number of images (or files that hold them) found so far.

    Raises:
        ValueError: a source does not exist, is empty or broken; some images of a source have labels and others none;
            an image is named twice.
    """
    count = 0

    def tick(more: int) -> None:
        nonlocal count
        count += more
        if progress is not None:
            progress(count)

    cache = cache_folder(cache_dir)
    found = find_sources([sources] if isinstance(sources, str | Path) else list(sources), config, tick)
    key = _key(found, config)
    path = cache / f"index-{_FORMAT}-{key}.arrow"
    with alone(path.with_suffix(".lock")):
        # An index is usable whose packed tars, if it has any, are still in the cache.
        if not path.exists() or not all(Path(folder).is_dir() for folder in Index(path).packed):
            table = _table(found, config, cache, key, tick)
            with (
                replacing(path, path.with_suffix(".unfinished")) as file,
                pa.ipc.new_file(file, table.schema) as writer,
            ):
                writer.write_table(table)
    return Index.open(path)


def _key(found: Iterable[Source], config: DataConfig) -> str:
    digest = hashlib.sha256(b"2")  # as in format 2, whose digest this was, see `Index.has_digest`
    for source in found:
        columns = [config.image_column, config.label_column] if source.kind == "Parquet files" else []
        if source.kind == "images" and source.content:
            columns = [config.label_column]
        for text in (source.kind, source.name, source.content, *columns, *source.files.uris):
            digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(source.files.sizes.tobytes() + source.files.mtimes.tobytes())
    return digest.hexdigest()[:32]


def _table(found: list[Source], config: DataConfig, cache: Path, key: str, tick: Callable[[int], None]) -> pa.Table:
    parts: list[pa.Table] = []
    labels: list[Labels | None] = []
    class_names: list[list[str] | None] = []
    packed: list[str] = []
    for source in found:
        if source.kind == "images":
            rows = _whole_files(source)
        elif source.kind == "tars":
            rows = scan_tars(source.name, source.files, tick)
        else:
            packed.append(str(pack(source, config, cache, tick)))
            rows = scan_tars(source.name, walk(packed[-1], (".tar",), lambda _: None), lambda _: None)
        if not rows.uri:
            raise ValueError(f"{source.name} holds no image; images end in {', '.join(IMAGE_EXTENSIONS)}")
        parts.append(_part(source, rows))
        labels.append(rows.labels)
        class_names.append(_fitting(source, rows.labels))
    classes, class_ids, ids = _merged_labels(found, labels, class_names)
    table = pa.concat_tables(parts)
    table = table.append_column("label", pa.nulls(len(table), pa.int64()) if ids is None else pa.array(ids))
    table = table.take(pc.sort_indices(table, [("place", "ascending"), ("offset", "ascending")])).combine_chunks()
    names, table = table["name"], table.select([*Place._fields, "label"])
    uris = table["uri"]
    _check_distinct(table)
    facts = {
        "digest": _digest(table, names, classes),
        "key": key,
        "ordered_as_in_format_2": pc.all(
            pc.less_equal(uris.slice(0, len(uris) - 1), uris.slice(1)), min_count=0
        ).as_py(),
        "classes": classes,
        "class_ids": class_ids,
        "packed": packed,
        "sources": [source.name for source in found],
    }
    return table.replace_schema_metadata({"glsd": json.dumps(facts)})


def _digest(table: pa.Table, names: pa.ChunkedArray, classes: list[str] | None) -> str:
    """The digest of the images in their order; `names` are those of their files, empty for what is packed in the cache.

    How it is packed is not part of the data, so only members and their lengths count there.
    """
    is_packed = pc.equal(names, "")
    digest = hashlib.sha256(json.dumps([_FORMAT, classes]).encode())
    for texts in (names, table["member"]):
        digest.update("\0".join(text or "" for text in texts.to_pylist()).encode() + b"\0\0")
    for numbers in (
        pc.if_else(is_packed, 0, table["offset"]),
        table["length"],
        pc.if_else(is_packed, 0, table["file_size"]),
        pc.fill_null(table["label"], -1),
    ):
        digest.update(numbers.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _whole_files(source: Source) -> Rows:
    files = source.files
    if closed := unreadable(files.uris):
        raise ValueError(f"{closed[0]} cannot be read by this user ({len(closed)} of {len(files.uris)} images cannot)")
    offset = np.full(len(files.uris), -1) if source.offsets is None else source.offsets
    length = files.sizes if source.lengths is None else np.where(offset < 0, files.sizes, source.lengths)
    return Rows(files.uris, [None] * len(files.uris), offset, length, files.sizes, source.labels)


def _part(source: Source, rows: Rows) -> pa.Table:
    """The columns of a `Place`; `place`, by which the images are sorted, and `name`, of which the digest is made.

    What is packed in the cache is sorted by the name of its source, wherever the cache is, and has no name.
    """
    names = inner_names(rows.uri)
    places = rows.uri
    if source.kind not in ("images", "tars"):
        places, names = [f"{source.name}/{name}" for name in names], [""] * len(names)
    try:
        uris, members, places, names = (
            pa.array(texts, pa.large_string()) for texts in (rows.uri, rows.member, places, names)
        )
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {error.object!r} is not UTF-8; rename the file") from error
    columns = (uris, members, rows.offset, rows.length, rows.file_size, places, names)
    return pa.table(dict(zip((*Place._fields, "place", "name"), columns, strict=True)))


def _fitting(source: Source, labels: Labels | None) -> list[str] | None:
    """The names of a source's class ids, if it has ids and a name for each."""
    if source.class_names is None or not isinstance(labels, np.ndarray):
        return None
    if labels.min() < 0 or labels.max() >= len(source.class_names):
        warnings.warn(
            f"the class names of {source.name} are not used: it has labels {labels.min()} to {labels.max()}, and "
            f"its {CLASS_NAMES} has {len(source.class_names)} names, from 0",
            stacklevel=4,
        )
        return None
    return source.class_names


def _merged_labels(
    found: list[Source], labels: list[Labels | None], class_names: list[list[str] | None]
) -> tuple[list[str] | None, list[int] | None, NDArray[np.int64] | None]:
    """(name of each label, number of each label in the data, label of each image) over all sources.

    Where all sources have class ids and agree on their names, those names are the classes and the ids the labels.
    Class ids without names are classes if an image has them, in the order of the numbers. Otherwise classes are told
    apart by their names, in the order of these.
    """
    known = [part for part in labels if part is not None]
    if len(known) < len(labels):
        if known:
            without = next(source.name for source, part in zip(found, labels, strict=True) if part is None)
            warnings.warn(f"the labels of some sources are not used, since {without} has none", stacklevel=4)
        return None, None, None
    numbers = [part for part in known if isinstance(part, np.ndarray)]
    if len(numbers) == len(known) and all(names == class_names[0] for names in class_names):
        ids = np.concatenate(numbers)
        if class_names[0] is not None:
            return class_names[0], None, ids
        class_ids, of_image = np.unique(ids, return_inverse=True)
        return [str(class_id) for class_id in class_ids], class_ids.tolist(), of_image
    named = [
        [str(label) for label in part] if names is None else [names[int(label)] for label in part]
        for part, names in zip(known, class_names, strict=True)
    ]
    names = pa.concat_arrays([pa.array(part, pa.large_string()) for part in named])
    classes = sorted(pc.unique(names).to_pylist())
    return classes, None, pc.index_in(names, pa.array(classes, pa.large_string())).to_numpy().astype(np.int64)


def _check_distinct(table: pa.Table) -> None:
    here, there = table.slice(0, table.num_rows - 1), table.slice(1)
    same = pc.and_(pc.equal(here["uri"], there["uri"]), pc.equal(here["offset"], there["offset"]))
    if pc.any(same).as_py():
        twice = table["uri"][pc.index(same, True).as_py()].as_py()
        raise ValueError(f"{twice} is named twice; name every image once, and no folder within another")
