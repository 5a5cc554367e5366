"""Columns of text in Arrow: millions of names without a Python object for each of them at once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Texts: TypeAlias = pa.LargeStringArray
_PART = 1 << 16
PARQUET = "a Parquet file"


@contextmanager
def reading_arrow(uri: str, kind: str) -> Iterator[None]:
    """Errors of pyarrow about the content of a file as a ValueError that says it is not `kind`, or broken."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk or the network, and not the content
            raise
        raise ValueError(f"{uri} is not {kind}, or is broken: {error}") from error


def texts(values: Iterable[str | None]) -> Texts:
    """A column of these values; a ValueError names one that is not UTF-8, as names of files may be."""
    try:
        return pa.array(values, pa.large_string())
    except UnicodeEncodeError as error:
        raise ValueError(f"the name {error.object!r} is not UTF-8; rename the file") from error


def one_column(columns: Iterable[Texts]) -> Texts:
    """The columns one after the other; a single one as it is."""
    columns = list(columns)
    return columns[0] if len(columns) == 1 else pa.concat_arrays([pa.array([], pa.large_string()), *columns])


def few_values(column: Texts | None, length: int) -> pa.DictionaryArray:
    """A column of at most 32,768 different values, with two bytes for each row; None is a column of nulls."""
    kind = pa.dictionary(pa.int16(), pa.large_string())
    return pa.nulls(length, kind) if column is None else column.dictionary_encode().cast(kind)


def parts(column: Texts) -> Iterator[Texts]:
    """The column in parts that Python can hold."""
    for start in range(0, len(column), _PART):
        yield column.slice(start, _PART)


def prefixed(prefix: str, column: Texts) -> Texts:
    """The column with a prefix before each value."""
    return pc.binary_join_element_wise(pa.scalar(prefix, pa.large_string()), column, pa.scalar("", pa.large_string()))


def mapped(function: Callable[[str], str], column: Texts) -> Texts:
    """The column of what a function makes of each value."""
    return one_column(texts([function(value) for value in part.to_pylist()]) for part in parts(column))
