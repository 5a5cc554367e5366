"""The table of an index: the images of all sources in one order, their labels, and the digest of both.

Names of files are kept once, however many images lie in each, and a column is deleted as soon as it is not needed: they
are most of the memory that ten million images take.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from glsd.data.conversion import tar_name
from glsd.data.labels import fitting_names, merged_labels
from glsd.data.sources import Source
from glsd.data.tars import Rows
from glsd.storage.columns import Texts, few_values, one_column, prefixed, texts
from glsd.storage.uris import inner_names, outer_names

_DIGEST_FORMAT: Final = "3"
_PART: Final = 1 << 16


def index_table(found: list[Source], rows: list[Rows], facts: Mapping[str, Any]) -> pa.Table:
    """All columns of the index, with these facts and more of its own; the list `rows`, of each source, is emptied."""
    fitting = [
        fitting_names(source.name, source.class_names, part.labels) for source, part in zip(found, rows, strict=True)
    ]
    names_of = [source.name for source in found]
    classes, class_ids, labels = merged_labels(names_of, [part.labels for part in rows], fitting)
    of_files = list(map(_file_columns, found, rows))
    files, places, names = (one_column(column) for column in list(zip(*of_files, strict=True))[:3])
    starts = np.concatenate([np.full(len(part.names), part.start, np.int32) for part in of_files])
    del of_files
    first_files = np.cumsum([0, *(len(part.files.uris) for part in rows)], dtype=np.int32)
    file_ids = np.concatenate([part.file_ids + first for part, first in zip(rows, first_files, strict=False)])
    offsets = np.concatenate([part.offset for part in rows])
    order = _ordered(_ranks(places)[file_ids], offsets, files, file_ids)
    del places
    file_ids, offsets = file_ids[order], offsets[order]
    columns = {
        "uri": pa.DictionaryArray.from_arrays(pa.array(file_ids), files),
        "member": one_column(part.member for part in rows).take(pa.array(order)),
        "offset": offsets,
        "length": _joined([part.length for part in rows])[order],
        "file_size": _joined([part.files.sizes for part in rows])[file_ids],
        "image_column": pa.concat_arrays([few_values(part.image_column, len(part.file_ids)) for part in rows]),
        "label": pa.nulls(len(order), pa.int64()) if labels is None else pa.array(labels[order]),
    }
    rows.clear()
    del labels
    columns["image_column"] = columns["image_column"].take(pa.array(order))
    del order
    in_format_2 = len(found) == 1 or (
        columns["image_column"].null_count == len(offsets)
        and (not facts["packed"] or bool((np.diff(_ranks(files)[file_ids]) >= 0).all()))
    )
    table = pa.table(columns)
    del columns
    digest = _digest(table, names, starts, classes)
    known = {"digest": digest, "ordered_as_in_format_2": in_format_2, "classes": classes, "class_ids": class_ids}
    return table.replace_schema_metadata({"glsd": json.dumps({**facts, **known})})


def _ranks(values: Texts) -> NDArray[np.int64]:
    """Where each value comes in the order of all; equal ones have one rank."""
    ranks: NDArray[np.int64] = pc.rank(values, tiebreaker="dense").to_numpy().astype(np.int64)
    return ranks


def _ordered(
    ranks: NDArray[np.int64], offsets: NDArray[np.int64], files: Texts, file_ids: NDArray[np.int32]
) -> NDArray[np.int64]:
    """The order of images by the ranks of their files and their offsets, in which none is there twice."""
    order = np.lexsort((offsets, ranks))
    ranks, offsets = ranks[order], offsets[order]
    if (same := np.flatnonzero((np.diff(ranks) == 0) & (np.diff(offsets) == 0))).size:
        twice = files[file_ids[order[same[0]]]]
        raise ValueError(f"{twice} is named twice; name every image once, and no folder within another")
    return order


def _digest(table: pa.Table, names: Texts, starts: NDArray[np.int32], classes: list[str] | None) -> str:
    """The digest of the images in their order, with the names of their files from `starts` on.

    A name is empty for what is packed in the cache. How it is packed is not part of the data, so only members and their
    lengths count there.
    """
    file_ids = table["uri"].chunk(0).indices
    is_packed = pc.equal(names, "").take(file_ids)
    digest = hashlib.sha256(json.dumps([_DIGEST_FORMAT, classes]).encode())

    def file_names(start: int, length: int) -> list[str]:
        ids = file_ids.slice(start, length)
        return [name[cut:] for name, cut in zip(names.take(ids).to_pylist(), starts[ids].tolist(), strict=True)]

    def members(start: int, length: int) -> list[str]:
        return [member or "" for member in table["member"].chunk(0).slice(start, length).to_pylist()]

    for column in (file_names, members):
        for start in range(0, len(table), _PART):
            digest.update((b"\0" if start else b"") + "\0".join(column(start, _PART)).encode())
        digest.update(b"\0\0")
    for name in ("offset", "length", "file_size", "label"):
        for start in range(0, len(table), _PART):
            numbers = pc.fill_null(table[name].slice(start, _PART), -1)
            if name in ("offset", "file_size"):
                numbers = pc.if_else(is_packed.slice(start, _PART), 0, numbers)
            digest.update(numbers.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:32]


class _FileColumns(NamedTuple):
    """Of each file of a source: its uri, its place, by which images are sorted, and its name from `start` on, of which
    the digest is made.
    """

    uris: Texts
    places: Texts
    names: Texts
    start: int


def _file_columns(source: Source, rows: Rows) -> _FileColumns:
    """What is packed in the cache is sorted by the name of its source, wherever the cache is, and has no name. The same
    holds for rows that are read in place, so that the images have one order and one digest in both cases.
    """
    uris = rows.files.uris
    if source.kind not in ("images", "tars"):
        in_place = rows.image_column is not None
        tars = texts(map(tar_name, range(len(uris)))) if in_place else inner_names(uris)
        return _FileColumns(uris, prefixed(f"{source.name}/", tars), pa.array([""] * len(uris), pa.large_string()), 0)
    names, start = outer_names(uris)
    held = np.unique(rows.file_ids)
    if len(held) < len(uris):  # files without an image do not count for the folder that all have in common
        start = outer_names(uris.take(pa.array(held)))[1]
    return _FileColumns(uris, uris, names, start)


def _joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One after the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
