"""A store of representations on disk, written row by row; after a kill it resumes."""

import io
import json
import math
import os
import time
from itertools import compress
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from glsd.storage.replacing import replacing

_SAVE_INTERVAL_S = 2.0
_VALUES, _JOURNAL = "values.npy", "journal.jsonl"
PENDING, DONE, SKIPPED = range(3)


class Rows(NamedTuple):
    """What an encoder made of a chunk of m images."""

    image_ids: NDArray[np.int64]
    values: NDArray[np.float32]
    reasons: list[str]
    """Why an image could not be decoded; its values mean nothing then. Empty where it could."""

    def some(self, chosen: NDArray[np.bool_]) -> "Rows":
        """Those of the chosen images."""
        return Rows(self.image_ids[chosen], self.values[chosen], list(compress(self.reasons, chosen)))


_Line: Final = TypeAdapter(list[tuple[int, str]])


def _header(shape: tuple[int, ...]) -> bytes:
    """How a file of float32 values begins."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


class Store:
    """Rows on disk: `values.npy`, a sparse file with a row for each image, and `journal.jsonl`, which rows are there.

    A line of the journal is written when the rows that it names are durable, so a kill loses only the rows since the
    last line. Rows are written by `write` and not through a mapping, for which a full disk would be a fatal signal and
    whose pages would count as this process's memory.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        header = _header(shape)
        if not (folder / _VALUES).exists():
            (folder / _JOURNAL).unlink(missing_ok=True)  # of values that someone has deleted
            with replacing(folder / _VALUES) as file:
                file.write(header)
                file.truncate(len(header) + 4 * math.prod(shape))
        self.path = folder / _VALUES
        self.state = np.full(shape[0], PENDING, np.uint8)
        self.reasons: dict[int, str] = {}
        self._row_bytes = 4 * math.prod(shape[1:])
        self._unsaved: list[tuple[int, str]] = []
        self._saved_at = time.monotonic()
        self._first = len(header)
        with self.path.open("rb") as values:
            if values.read(len(header)) != header or values.seek(0, os.SEEK_END) != len(header) + 4 * math.prod(shape):
                raise self._broken(self.path)
        whole = 0
        (folder / _JOURNAL).touch()
        with (folder / _JOURNAL).open("rb") as journal:
            for line in journal:
                if line.endswith(b"\n"):
                    whole += len(line)
                    self._note(line, folder / _JOURNAL)
        self._values, self._journal = self.path.open("r+b"), (folder / _JOURNAL).open("ab")
        self._journal.truncate(whole)  # a kill within a write leaves a part of a line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._values, self._journal:
            self._save()

    def lacks(self, image_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each image whether it has no row yet."""
        return np.asarray(self.state[image_ids] == PENDING)

    def add(self, rows: Rows) -> None:
        """Write rows that are not there."""
        assert self.lacks(rows.image_ids).all(), "an image was embedded twice"
        for image_id, row, reason in zip(rows.image_ids.tolist(), rows.values, rows.reasons, strict=True):
            if not reason:
                self._values.seek(self._first + image_id * self._row_bytes)
                self._values.write(row.data)
            self._mark(image_id, reason)
            self._unsaved.append((image_id, reason))
        if time.monotonic() - self._saved_at > _SAVE_INTERVAL_S:
            self._save()

    def _note(self, line: bytes, journal: Path) -> None:
        try:
            rows = _Line.validate_json(line)
            if not all(0 <= image_id < len(self.state) for image_id, _ in rows):
                raise ValueError
        except ValueError:
            raise self._broken(journal) from None
        for image_id, reason in rows:
            self._mark(image_id, reason)

    def _broken(self, file: Path) -> ValueError:
        return ValueError(f"{file} is broken; run `glsd cache --clear representations`, then this command again")

    def _mark(self, image_id: int, reason: str) -> None:
        self.state[image_id] = SKIPPED if reason else DONE
        if reason:
            self.reasons[image_id] = reason

    def _save(self) -> None:
        if not self._unsaved:
            return
        self._values.flush()
        os.fsync(self._values.fileno())
        self._journal.write(json.dumps(self._unsaved).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._unsaved, self._saved_at = [], time.monotonic()
