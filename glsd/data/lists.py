"""Lists of images: text, CSV and Parquet, of millions of rows without a Python object for each."""

import csv
import hashlib
import io
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from glsd.data.labels import Labels, as_labels
from glsd.storage.columns import PARQUET, Texts, one_column, reading_arrow, texts
from glsd.storage.files import read
from glsd.storage.listing import Files, stat_files
from glsd.storage.uris import all_beside, check_uri, check_uris

PATH_COLUMNS: Final = ("path", "uri")
"""Either of them names the files of a list."""
_WHOLE_NUMBER: Final = r"^-?[0-9]{1,18}$"
_CHUNK_ROWS: Final = 1 << 16


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


class ListedImages(NamedTuple):
    """Images by their rows in a list: image i lies in file `file_ids[i]`, or file i where there are none."""

    files: Files
    labels: Labels | None
    file_ids: NDArray[np.int32] | None
    offsets: NDArray[np.int64] | None
    """Of images within files; -1 is the whole file."""
    lengths: NDArray[np.int64] | None
    image_column: Texts | None
    """Of images that are rows of Parquet files, the row being the offset; else null."""


def read_text(uri: str) -> Listed:
    """A text list: a path or uri in each line that is not empty."""
    data, content = content_of(uri)
    entries = one_column(texts([line for _, line in chunk]) for chunk in _chunks(_lines(uri, data)))
    if not len(entries):
        raise ValueError(f"{uri} lists no image; write one path per line")
    return Listed(uri, {"path": entries}, content, partial(_line, _lines, uri))


def _lines(uri: str, data: bytes) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers."""
    # Not `splitlines`, which also ends a line at characters that a file name may hold, such as U+2028.
    for number, line in enumerate(_decoded(uri, data, newline=None), 1):
        if stripped := line.strip(" \t\n"):
            yield number, stripped


def _line(rows: Callable[[str, bytes], Iterator[tuple[int, Any]]], uri: str, row: int) -> str:
    """Where a row stands in a list, which is read again for the message."""
    return f"line {next(islice(rows(uri, content_of(uri)[0]), row, None))[0]}"


def read_csv(uri: str, tick: Callable[[int], None] = lambda _: None) -> Listed:
    """The columns of a CSV file by the names in its first line; `tick` counts the rows, see `_tells_files`.

    Raises:
        ValueError: it is not UTF-8, a quote is not closed, or a row has more or fewer columns than the first line.
    """
    data, content = content_of(uri)
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


def content_of(uri: str) -> tuple[bytes, str]:
    """All of a list, and its digest."""
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


def _tells_files(columns: Collection[str]) -> bool:
    """Whether a list names few files or tells their sizes, so that reading it is what takes the time."""
    return "offset" in columns or "file_size" in columns


def read_parquet(uri: str, label_column: str, tick: Callable[[int], None]) -> Listed:
    """The columns of a Parquet file that lists images, as texts; `tick` counts the rows, see `_tells_files`."""
    data, content = content_of(uri)
    wanted = (*PATH_COLUMNS, label_column, "offset", "length", "file_size", "image_column")
    batches, columns = [], {}
    with reading_arrow(uri, PARQUET):
        file = pq.ParquetFile(pa.BufferReader(data))
        names = [name for name in file.schema_arrow.names if name in wanted]
        for batch in file.iter_batches(_CHUNK_ROWS, columns=names):
            batches.append([_texts(uri, name, batch.column(name)) for name in names])
            if _tells_files(names):
                tick(len(batch))
    for name in names:
        columns[name] = one_column([batch.pop(0) for batch in batches])
        if columns[name].null_count:
            row = pc.index(pc.is_null(columns[name]), True).as_py()
            raise ValueError(f"{uri}, row {row}: no {name}")
    return Listed(uri, columns, content, lambda row: f"row {row}")


def _texts(uri: str, name: str, column: pa.Array) -> Texts:
    try:
        written = column.cast(pa.large_string())
    except pa.ArrowException as error:
        raise ValueError(f"{uri}: column {name!r} holds neither texts nor numbers, but {column.type}") from error
    written.validate(full=True)  # that it is UTF-8
    return written


def listed_images(listed: Listed, label_column: str, tick: Callable[[int], None]) -> ListedImages:
    """The images that a list names; `tick` counts files that are looked at.

    Raises:
        ValueError: a column is missing, a value does not fit, or a file does not exist; the message names the row.
    """
    uri, columns = listed.uri, listed.columns
    column = next((name for name in PATH_COLUMNS if name in columns), None)
    if column is None:
        raise ValueError(f"{uri} has no column 'path' or 'uri'; its first line has {', '.join(columns) or 'nothing'}")
    if not len(listed):
        raise ValueError(f"{uri} lists no image below its first line")
    for named, needed in (("offset", "length"), ("image_column", "offset")):
        if named in columns and needed not in columns:
            raise ValueError(
                f"{uri} has a column {named!r} and no {needed!r}; name both for images within files, or neither"
            )
    labels = None
    if label_column in columns:
        written = pc.utf8_trim_whitespace(columns[label_column])
        if (row := pc.index(written, "").as_py()) >= 0:
            raise ValueError(f"{listed.where(row)}: no {label_column}; label all images or none")
        labels = as_labels(written)
    files, file_ids = _listed_files(listed, column, tick)
    offsets = lengths = image_column = None
    if "image_column" in columns:
        image_column = pc.if_else(pc.equal(columns["image_column"], ""), None, columns["image_column"])
    if "offset" in columns:
        offsets, lengths = (_whole_numbers(listed, name) for name in ("offset", "length"))
        sizes = files.sizes[file_ids]
        within = (offsets == -1) | ((offsets >= 0) & (lengths >= 0) & (offsets + lengths <= sizes))
        if image_column is not None:
            is_row = image_column.is_valid().to_numpy(zero_copy_only=False)
            if (negative := np.flatnonzero(is_row & (offsets < 0))).size:
                row = int(negative[0])
                raise ValueError(f"{listed.where(row)}: there is no row {offsets[row]}; rows are counted from 0")
            within |= is_row
        if not within.all():
            row = int(np.flatnonzero(~within)[0])
            raise ValueError(
                f"{listed.where(row)}: bytes {offsets[row]} to {offsets[row] + lengths[row]} do not lie within the "
                f"file of {sizes[row]} bytes; offset -1 is the whole file"
            )
    return ListedImages(files, labels, file_ids, offsets, lengths, image_column)


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
        if (negative := np.flatnonzero(told < 0)).size:
            raise ValueError(f"{listed.where(int(negative[0]))}: a file_size below 0")
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
