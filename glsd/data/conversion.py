"""Parquet files and compressed tars as plain tars, which are written once and read by byte ranges.

A part is written by one process: a compressed tar, or row groups of a Parquet file. Its tar appears when it is whole,
so a conversion that was ended resumes with the missing parts.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from glsd.config import DataConfig
from glsd.data.images import IMAGE_EXTENSIONS
from glsd.data.pieces import Each, in_threads
from glsd.data.sources import Source, counted, kind_not_read
from glsd.data.tars import image_suffix, member_content, member_suffix, write_tar
from glsd.storage.cache import use
from glsd.storage.files import open_file, open_stream
from glsd.storage.folder import Folder
from glsd.storage.replacing import alone
from glsd.storage.uris import inner_names

SHOWN_LATE_S: Final = 10.0
"""How long a network disk may take to show what other nodes wrote."""
_PART_BYTES: Final = 256 << 20
_BUFFER_BYTES: Final = 1 << 20
_OPENERS: Final[dict[tuple[str, ...], Callable[[io.BufferedReader], Any]]] = {
    (".gz", ".tgz"): gzip.open,
    (".bz2", ".tbz2"): bz2.open,
    (".xz", ".txz"): lzma.open,
}


class _Part(NamedTuple):
    """A part of a source, which becomes one tar."""

    tar: str
    """Its name."""
    uri: str
    inner_name: str
    row_groups: range
    """Of a Parquet file; none for a compressed tar."""
    first_row: int


class _Written(NamedTuple):
    """What a part has given: images, and kinds of members that may be images and are not read."""

    num_images: int
    not_read: Counter[str]


def converted(source: Source, config: DataConfig, place: Path | Folder, tick: Callable[[int], None], each: Each) -> str:
    """The folder of plain tars with the images of Parquet files or compressed tars, made if it is not there.

    Args:
        source: the files.
        config: names of their columns.
        place: this machine's cache folder, or a folder that all who read the tars reach.
        tick: told of so many more images.
        each: writes the parts.

    Raises:
        ValueError: a file is broken, or lacks the columns that `config` names.
    """
    columns = [config.image_column, config.label_column] if source.kind == "Parquet files" else []
    facts = [source.kind, *columns, *source.files.uris.to_pylist()]
    digest = hashlib.sha256("\0".join(facts).encode())
    digest.update(source.files.sizes.tobytes() + source.files.mtimes.tobytes())
    name = f"packed-{digest.hexdigest()[:32]}"
    if isinstance(place, Folder):
        folder = Folder(place.uri(name))
        _write(source, config, folder, tick, each)
        return folder.location
    path = place / name
    with alone(path.with_suffix(".lock")):
        use(path)
        if not path.is_dir():
            parts = path.with_suffix(".parts")
            try:
                _write(source, config, Folder(parts), tick, each)
            except ValueError:
                with suppress(OSError):
                    parts.rmdir()  # if no part is whole
                raise
            parts.rename(path)
    return str(path)


def _write(source: Source, config: DataConfig, folder: Folder, tick: Callable[[int], None], each: Each) -> None:
    """Write the parts that the folder lacks."""
    parts = _parts(source, config)
    if not parts:
        raise ValueError(f"{source.name} holds no image, as its files have no rows")
    missing = _missing(parts, folder)
    not_read = Counter[str]()
    for written in each(partial(_write_part, config=config, folder=folder), missing):
        tick(written.num_images)
        not_read += written.not_read
    if not_read:
        warnings.warn(f"{source.name} also holds {counted(not_read)}; if they are images, convert them", stacklevel=7)
    end = time.monotonic() + SHOWN_LATE_S
    while lost := _missing(parts, folder):
        if time.monotonic() > end:
            raise ValueError(
                f"{len(lost)} of {len(parts)} tars were written and are not in {folder.out}, such as {lost[0].tar}; "
                "all nodes must share this folder"
            )
        time.sleep(1.0)


def _missing(parts: list[_Part], folder: Folder) -> list[_Part]:
    """The parts whose tars the folder does not show."""
    there = folder.sizes()
    return [part for part in parts if part.tar not in there]


def _parts(source: Source, config: DataConfig) -> list[_Part]:
    """The parts in the order of the files and their rows."""
    uris = source.files.uris
    names = inner_names(uris).to_pylist()
    runs: list[list[tuple[range, int]]] = [[(range(0), 0)]] * len(uris)
    if source.kind == "Parquet files":
        runs = list(in_threads(partial(_runs, config=config), uris.to_pylist()))
    of_files = [
        (uri, name, *run) for uri, name, of_file in zip(uris.to_pylist(), names, runs, strict=True) for run in of_file
    ]
    return [_Part(f"{number:06d}.tar", *fields) for number, fields in enumerate(of_files)]


def _runs(uri: str, config: DataConfig) -> list[tuple[range, int]]:
    """Row groups of a Parquet file that make a tar each, with the number of their first row."""
    with open_file(uri) as stream:
        table = _parquet(uri, stream, config)
        runs: list[tuple[range, int]] = []
        num_bytes = num_rows = 0
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            if not runs or num_bytes + group.total_byte_size > _PART_BYTES:
                runs.append((range(number, number), num_rows))
                num_bytes = 0
            run, first_row = runs[-1]
            runs[-1] = (range(run.start, number + 1), first_row)
            num_bytes, num_rows = num_bytes + group.total_byte_size, num_rows + group.num_rows
        return runs


def _write_part(part: _Part, config: DataConfig, folder: Folder) -> _Written:
    not_read = Counter[str]()
    members = _parquet_members(part, config) if part.row_groups else _tar_members(part, not_read)
    num_images = 0

    def counting() -> Iterator[tuple[str, bytes]]:
        nonlocal num_images
        for name, data in members:
            num_images += not name.endswith(".cls")
            yield name, data

    with folder.replacing(part.tar) as stream:
        write_tar(stream, counting())
    return _Written(num_images, not_read)


def _tar_members(part: _Part, not_read: Counter[str]) -> Iterator[tuple[str, bytes]]:
    """Images and labels of a compressed tar, under the names TAR/MEMBER."""
    opener = next(opener for suffixes, opener in _OPENERS.items() if part.inner_name.lower().endswith(suffixes))
    try:
        with (
            open_stream(part.uri) as compressed,
            opener(compressed) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                suffix = member_suffix(member)
                if suffix in (*IMAGE_EXTENSIONS, ".cls"):
                    yield f"{part.inner_name}/{member.name}", member_content(tar, member)
                elif suffix is not None:
                    not_read.update(kind_not_read(member.name.rpartition("/")[2]))
            # tarfile takes a broken header for the end; to the end of the stream its checksum tells.
            while stream.read(_BUFFER_BYTES):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{part.uri} is not a compressed tar, or is broken: {error}") from error


def _parquet_members(part: _Part, config: DataConfig) -> Iterator[tuple[str, bytes]]:
    """Images and labels of row groups, under the names FILE/ROW."""
    with open_file(part.uri) as stream:
        table = _parquet(part.uri, stream, config)
        columns = [name for name in (config.image_column, config.label_column) if name in table.schema_arrow.names]
        row = part.first_row
        for batch in table.iter_batches(batch_size=256, row_groups=list(part.row_groups), columns=columns):
            for image, *labels in zip(*(batch.column(name) for name in columns), strict=True):
                where, key = f"{part.uri}, row {row}", f"{part.inner_name}/{row:09d}"
                data = _encoded(image.as_py(), where, config.image_column)
                yield key + image_suffix(data), data
                for label in labels:
                    yield f"{key}.cls", _label(label.as_py(), where, config.label_column)
                row += 1


def _parquet(uri: str, stream: io.BufferedReader, config: DataConfig) -> pq.ParquetFile:
    """The opened file, of which a row group is never in memory as a whole."""
    try:
        table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{uri} is not a Parquet file, or is broken: {error}") from error
    _check_image_column(uri, table.schema_arrow, config.image_column)
    return table


def _check_image_column(uri: str, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise ValueError(
            f"{uri} has no column {column!r}; set data.image_column to one of its columns: {', '.join(schema.names)}"
        )
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise ValueError(
            f"{uri}: column {column!r} is of type {schema.field(column).type}; data.image_column must name one of "
            "encoded bytes (binary) or {bytes, path} structs"
        )


def _encoded(value: Any, where: str, column: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        raise ValueError(f"{where}: no bytes in column {column!r}; images must be in the file, not named by it")
    return bytes(data)


def _label(value: Any, where: str, column: str) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{where}: {value!r} in column {column!r} is not a label; labels are whole numbers or names")
    return str(value).encode()
