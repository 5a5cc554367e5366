"""Parquet files and compressed tars as plain tars, which are written once and read by byte ranges.

A part is written by one process: a compressed tar, or row groups of a Parquet file. Its tar appears when it is whole,
so a conversion that was ended resumes with the missing parts. Where a single row of the Parquet files costs little to
read, no tar is written, and the images have the names and the order that they would have in tars.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from glsd.config import DataConfig
from glsd.data.images import IMAGE_EXTENSIONS
from glsd.data.parquet import MOST_FILES, Run, members, runs
from glsd.data.pieces import Each, in_threads
from glsd.data.sources import Source, counted, kind_not_read
from glsd.data.tars import BROKEN_TAR, Member, Rows, Scanned, member_content, member_suffix, rows_of, write_tar
from glsd.storage.cache import use
from glsd.storage.columns import texts
from glsd.storage.files import open_stream
from glsd.storage.folder import Folder
from glsd.storage.listing import Files
from glsd.storage.replacing import alone
from glsd.storage.uris import inner_names

SHOWN_LATE_S: Final = 10.0
"""How long a network disk may take to show what other nodes wrote."""
_BUFFER_BYTES: Final = 1 << 20
_OPENERS: Final[dict[tuple[str, ...], Callable[[io.BufferedReader], Any]]] = {
    (".gz", ".tgz"): gzip.open,
    (".bz2", ".tbz2"): bz2.open,
    (".xz", ".txz"): lzma.open,
}


class _Part(NamedTuple):
    """A part of a source: what becomes one tar if the source is packed."""

    tar: str
    """Its name."""
    file: int
    """Number of its file."""
    uri: str
    inner_name: str
    run: Run | None
    """Of a Parquet file; none for a compressed tar."""


class _Written(NamedTuple):
    """What a part has given: images, and kinds of members that may be images and are not read."""

    num_images: int
    not_read: Counter[str]


@dataclass(frozen=True)
class Conversion:
    """A source of Parquet files or compressed tars, of which footers are read when they are first needed.

    A ValueError says that a file is broken, has no rows, or lacks the columns that `config` names.
    """

    source: Source
    config: DataConfig

    @cached_property
    def is_in_place(self) -> bool:
        """Whether images are read where they lie: those of few Parquet files, all of whose row groups are small."""
        is_few = len(self.source.files.uris) <= MOST_FILES
        return is_few and all(part.run is not None and part.run.is_small for part in self._parts)

    @cached_property
    def _parts(self) -> list[_Part]:
        """The parts in the order of the files and their rows."""
        uris, sizes = self.source.files.uris.to_pylist(), self.source.files.sizes.tolist()
        of_files: Iterable[Sequence[Run | None]] = [[None]] * len(uris)
        if self.source.kind == "Parquet files":
            of_files = in_threads(lambda file: runs(*file, self.config), list(zip(uris, sizes, strict=True)))
        files = zip(range(len(uris)), uris, inner_names(self.source.files.uris).to_pylist(), strict=True)
        found = [(*file, run) for file, of_file in zip(files, of_files, strict=True) for run in of_file]
        if not found:
            raise ValueError(f"{self.source.name} holds no image, as its files have no rows")
        return [_Part(tar_name(number), *fields) for number, fields in enumerate(found)]

    def rows(self, tick: Callable[[int], None], each: Each) -> Rows:
        """The images where they lie, each part of a file being a file, under the names that they would have in tars.

        Args:
            tick: told of so many more images.
            each: looks at the parts.
        """
        scanned: list[Scanned] = []
        for found in each(partial(_scanned, config=self.config), self._parts):
            scanned.append(found)
            tick(len(found.names))
        file_ids = [part.file for part in self._parts]
        uris, sizes, mtimes = self.source.files
        files = Files(uris.take(pa.array(file_ids)), sizes[file_ids], mtimes[file_ids])
        rows = rows_of(files, scanned, self.config.label_column)
        column = pa.scalar(self.config.image_column, pa.large_string())
        return rows._replace(image_column=pa.repeat(column, len(rows.file_ids)))

    def packed(self, place: Path | Folder, tick: Callable[[int], None], each: Each) -> str:
        """The folder of plain tars with the images, made if it is not there.

        Args:
            place: this machine's cache folder, or a folder that all who read the tars reach.
            tick: told of so many more images.
            each: writes the parts.
        """
        source, config = self.source, self.config
        columns = [config.image_column, config.label_column] if source.kind == "Parquet files" else []
        facts = [source.kind, *columns, *source.files.uris.to_pylist()]
        digest = hashlib.sha256("\0".join(facts).encode())
        digest.update(source.files.sizes.tobytes() + source.files.mtimes.tobytes())
        name = f"packed-{digest.hexdigest()[:32]}"
        if isinstance(place, Folder):
            folder = Folder(place.uri(name))
            self._write(folder, tick, each)
            return folder.location
        path = place / name
        with alone(path.with_suffix(".lock")):
            use(path)
            if not path.is_dir():
                parts = path.with_suffix(".parts")
                try:
                    self._write(Folder(parts), tick, each)
                except ValueError:
                    with suppress(OSError):
                        parts.rmdir()  # if no part is whole
                    raise
                parts.rename(path)
        return str(path)

    def _write(self, folder: Folder, tick: Callable[[int], None], each: Each) -> None:
        """Write the parts that the folder lacks."""
        source, parts = self.source, self._parts
        missing = _missing(parts, folder)
        not_read = Counter[str]()
        for written in each(partial(_write_part, config=self.config, folder=folder), missing):
            tick(written.num_images)
            not_read += written.not_read
        if not_read:
            warnings.warn(
                f"{source.name} also holds {counted(not_read)}; if they are images, convert them", stacklevel=7
            )
        end = time.monotonic() + SHOWN_LATE_S
        while lost := _missing(parts, folder):
            if time.monotonic() > end:
                raise ValueError(
                    f"{len(lost)} of {len(parts)} tars were written and are not in {folder.out}, such as "
                    f"{lost[0].tar}; all nodes must share this folder"
                )
            time.sleep(1.0)


def tar_name(number: int) -> str:
    """The name of a part's tar, by which its images are ordered whether it is written or not."""
    return f"{number:06d}.tar"


def _missing(parts: list[_Part], folder: Folder) -> list[_Part]:
    """The parts whose tars the folder does not show."""
    there = folder.sizes()
    return [part for part in parts if part.tar not in there]


def _write_part(part: _Part, config: DataConfig, folder: Folder) -> _Written:
    not_read = Counter[str]()
    found = _tar_members(part, not_read) if part.run is None else members(part.uri, part.inner_name, part.run, config)
    num_images = 0

    def counting() -> Iterator[tuple[str, bytes]]:
        nonlocal num_images
        for name, data in found:
            num_images += not name.endswith(".cls")
            yield name, data

    with folder.replacing(part.tar) as stream:
        write_tar(stream, counting())
    return _Written(num_images, not_read)


def _scanned(part: _Part, config: DataConfig) -> Scanned:
    """The images of a part where they lie: what a scan of its tar would find."""
    assert part.run is not None
    names, lengths, labels = list[str](), list[int](), list[str]()
    for name, data in members(part.uri, part.inner_name, part.run, config):
        if name.endswith(".cls"):
            labels.append(data.decode("utf-8").strip())
        else:
            names.append(name)
            lengths.append(len(data))
    rows = part.run.first_row + np.arange(len(names), dtype=np.int64)
    return Scanned(texts(names), rows, np.array(lengths, np.int64), texts(labels or [None] * len(names)))


def _tar_members(part: _Part, not_read: Counter[str]) -> Iterator[tuple[str, bytes]]:
    """Images and labels of a compressed tar, under the names TAR/MEMBER."""
    opener = next(opener for suffixes, opener in _OPENERS.items() if part.inner_name.lower().endswith(suffixes))
    try:
        with (
            open_stream(part.uri) as compressed,
            opener(compressed) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=Member) as tar,
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
    except (*BROKEN_TAR, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{part.uri} is not a compressed tar, or is broken: {error}") from error
