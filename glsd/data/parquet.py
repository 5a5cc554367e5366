"""Images in the rows of Parquet files: what row groups there are, all rows in order, and a single one where it lies.

A row is read by its row group's chunk of the image column, which is one read, and decoded as a whole. Where all chunks
are small this is cheap enough to be done for every image; else the images are packed, see `glsd.data.conversion`.
"""

import io
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from glsd.config import DataConfig
from glsd.data.tars import image_suffix
from glsd.storage.columns import PARQUET, reading_arrow
from glsd.storage.files import open_file, read

_PART_BYTES: Final = 256 << 20
_SMALL_BYTES: Final = 1 << 20
"""Of a row group's images, uncompressed, which are read and decoded for each one of them."""
_MANY_ROWS: Final = 64
_BUFFER_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 1 << 16
"""In which most footers fit."""
MOST_FILES: Final = 128
"""Of which a process keeps the footers: one of 500 row groups of three columns takes 1.1 MB of memory."""


class Run(NamedTuple):
    """Successive row groups of a file, of at most 256 MiB or only one."""

    row_groups: range
    first_row: int
    is_small: bool
    """Whether each of them holds at most 1 MiB of images, or a single one."""


def runs(uri: str, size: int, config: DataConfig) -> list[Run]:
    """The row groups of a file of so many bytes; a ValueError where it is broken or lacks the image column."""
    footer = _read_footer(uri, size, config.image_column)
    found: list[Run] = []
    num_bytes = num_rows = 0
    for number in range(footer.metadata.num_row_groups):
        group = footer.metadata.row_group(number)
        is_small = group.num_rows <= 1 or group.column(footer.leaf).total_uncompressed_size <= _SMALL_BYTES
        if not found or num_bytes + group.total_byte_size > _PART_BYTES:
            found.append(Run(range(number, number), num_rows, True))
            num_bytes = 0
        run = found[-1]
        found[-1] = Run(range(run.row_groups.start, number + 1), run.first_row, run.is_small and is_small)
        num_bytes, num_rows = num_bytes + group.total_byte_size, num_rows + group.num_rows
    return found


def members(uri: str, inner_name: str, run: Run, config: DataConfig) -> Iterator[tuple[str, bytes]]:
    """Images and labels of row groups, under the names FILE/ROW, as members of a tar."""
    with open_file(uri) as stream, reading_arrow(uri, PARQUET):
        # A row group is never in memory as a whole.
        table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        columns = [name for name in (config.image_column, config.label_column) if name in table.schema_arrow.names]
        row = run.first_row
        for batch in table.iter_batches(batch_size=256, row_groups=list(run.row_groups), columns=columns):
            for image, *labels in zip(*(batch.column(name) for name in columns), strict=True):
                where, key = f"{uri}, row {row}", f"{inner_name}/{row:09d}"
                data = _encoded(image.as_py(), where, config.image_column)
                yield key + image_suffix(data), data
                for label in labels:
                    yield f"{key}.cls", _label(label.as_py(), where, config.label_column)
                row += 1


def read_row(uri: str, size: int, column: str, row: int, key: str) -> tuple[bytes, int]:
    """The image in a row of a file that had so many bytes, and the file's size now: if it is another, no image.

    Errors that may pass are retried. Threads may read side by side. The footer is kept for whoever gives the same key.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such row or column, or is broken.
        OSError: reading failed, or is not permitted.
    """
    try:
        footer = _footer(uri, size, column, key)
    except _ResizedError as error:
        return b"", error.size
    number = int(np.searchsorted(footer.ends, row, side="right"))
    if not 0 <= row < footer.metadata.num_rows:
        raise ValueError(f"{uri} has no row {row}, but {footer.metadata.num_rows} rows")
    chunk = footer.metadata.row_group(number).column(footer.leaf)
    start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
    data, size_now = read(uri, start, chunk.total_compressed_size)
    if size_now != size:
        return b"", size_now
    leaf = chunk.path_in_schema
    # A group may name an image thousands of times and hold it once. A dictionary stays one then, which takes longer.
    dictionaries = [leaf] if chunk.has_dictionary_page and chunk.num_values > _MANY_ROWS else None
    try:
        file = pq.ParquetFile(_Piece(data, start, size), metadata=footer.metadata, read_dictionary=dictionaries)
        values = file.read_row_group(number, columns=[leaf], use_threads=False).column(0)
        value = values[row - int(footer.ends[number]) + len(values)].as_py()
    except (pa.ArrowException, OSError, LookupError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri}, row {row}: the file has changed, or is broken: {error}") from error
    return _encoded(value, f"{uri}, row {row}", column), size


class _Footer(NamedTuple):
    """What tells where rows lie."""

    metadata: pq.FileMetaData
    leaf: int
    """Number of the column of the images' bytes."""
    ends: NDArray[np.int64]
    """The row after each row group."""


class _ResizedError(ValueError):
    """A file has another size than it had."""

    def __init__(self, uri: str, size: int) -> None:
        super().__init__(f"{uri} changed while it was read; rerun the command")
        self.size = size


@lru_cache(maxsize=MOST_FILES)
def _footer(uri: str, size: int, column: str, _key: str) -> _Footer:
    """A footer that is kept, until the file is changed and its index has another key."""
    return _read_footer(uri, size, column)


def _read_footer(uri: str, size: int, column: str) -> _Footer:
    data, size_now = read(uri, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    needed = min(size, int.from_bytes(data[-8:-4], "little") + 8)
    if size_now == size and needed > len(data):
        data, size_now = read(uri, size - needed, needed)
    if size_now != size:
        raise _ResizedError(uri, size_now)
    with reading_arrow(uri, PARQUET):
        metadata = pq.read_metadata(pa.BufferReader(data))
        path = _image_path(uri, metadata.schema.to_arrow_schema(), column)
        leaves = [leaf for leaf in range(metadata.num_columns) if metadata.schema.column(leaf).path == path]
    if not leaves:
        raise ValueError(f"{uri} is broken: its schema has the column {path!r}, and its row groups do not")
    num_rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return _Footer(metadata, leaves[0], np.cumsum(num_rows, dtype=np.int64))


def _image_path(uri: str, schema: pa.Schema, column: str) -> str:
    """The path of the images' bytes in a schema."""
    if column not in schema.names:
        raise ValueError(
            f"{uri} has no column {column!r}; set data.image_column to one of its columns: {', '.join(schema.names)}"
        )
    kind, path = schema.field(column).type, column
    if pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        kind, path = kind.field("bytes").type, f"{column}.bytes"
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)):
        raise ValueError(
            f"{uri}: column {column!r} is of type {schema.field(column).type}; data.image_column must name one of "
            "encoded bytes (binary) or {bytes, path} structs"
        )
    return path


class _Piece(io.RawIOBase):
    """A file of which only the bytes from `start` on are here."""

    def __init__(self, data: bytes, start: int, size: int) -> None:
        self._data, self._start, self._size, self._position = memoryview(data), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        first = self._position - self._start
        assert first >= 0
        data = self._data[first : first + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _encoded(value: Any, where: str, column: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        raise ValueError(f"{where}: no bytes in column {column!r}; images must be in the file, not named by it")
    return bytes(data)


def _label(value: Any, where: str, column: str) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{where}: {value!r} in column {column!r} is not a label; labels are whole numbers or names")
    return str(value).encode()
