"""Bytes of remote images on a node's own disk, so that epochs after the first read them there.

Of a data set that does not fit, the images are kept that come first in a random order. So the bound holds whatever
processes read and write, without anyone counting, and no image makes way for another that is read as often. Data sets
that no running process uses make way, the one longest unused first.
"""

import hashlib
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from glsd.data.index import Index
from glsd.data.order import scrambled
from glsd.record import Record
from glsd.storage.cache import ABOUT, cache_folder, remove, use
from glsd.storage.counts import count
from glsd.storage.replacing import alone, replace_file
from glsd.storage.uris import is_remote

_FOLDER_IMAGES = 1000
_CLAIM_S: Final = 60.0
"""For which a claim holds. Then other data sets may have left room, and another process may have claimed less."""
_claiming: Final = threading.Lock()


class _Claim(Record):
    """What a data set may have on this disk."""

    about: str
    room: int
    """Bytes."""
    below: int
    """Images whose place in the order is below this are kept; together they have at most so many bytes."""


class ImageCache:
    """Reads images of an index, those of object stores from this node's disk where it has them.

    Opening it takes a moment for each million images, so a process keeps it.

    Args:
        index: the images.
        image_ids: those of them that are read; None is all.
        most_bytes: what all data sets together may have on this disk.
    """

    def __init__(self, index: Index, image_ids: np.ndarray | None, most_bytes: int) -> None:
        self._index = index
        self._image_ids = np.arange(len(index)) if image_ids is None else image_ids
        digest = hashlib.blake2b(index.key.encode() + self._image_ids.tobytes(), digest_size=16).hexdigest()
        self._folder = cache_folder() / f"images-{digest}"
        use(self._folder)
        self._most_bytes = most_bytes
        self._wanted = min(int(index.lengths[self._image_ids].sum()), most_bytes)
        self._claim()
        self._claimed_at = time.monotonic()

    def read(self, image_id: int) -> bytes:
        """The encoded bytes of an image; errors are those of `Index.read`."""
        place = self._index.place(image_id)
        if not is_remote(place.uri):
            return self._index.read(image_id)
        path, is_kept = self._folder / f"{image_id // _FOLDER_IMAGES}" / f"{image_id}", self._keeps(image_id)
        if is_kept:
            with suppress(OSError):
                data = path.read_bytes()
                if len(data) == place.length:
                    count("cache_hits")
                    return data
        count("cache_misses")
        data = self._index.read(image_id)
        if not is_kept:
            return data
        unfinished = path.with_name(f"{image_id}.{os.getpid()}.{threading.get_ident()}")
        with suppress(OSError):  # a full disk ends no training
            path.parent.mkdir(exist_ok=True)
            try:
                unfinished.write_bytes(data)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
        return data

    def _keeps(self, image_id: int) -> bool:
        """Whether an image has its place on this disk, once it was read."""
        with _claiming:
            if time.monotonic() > self._claimed_at + _CLAIM_S:
                with suppress(OSError):  # a full disk, or a claim that was cleared just now
                    self._claim()
                self._claimed_at = time.monotonic()
        return bool(_places(np.array([image_id]))[0] < self._below)

    def _claim(self) -> None:
        with alone(self._folder.with_name("images.lock")):
            self._below = self._claimed(self._room())

    def _room(self) -> int:
        """Bytes that this data set may have, once others have made way."""
        others = [path for path in cache_folder().glob(f"images-*/{ABOUT}") if path.parent != self._folder]
        claims = {path.parent: _claim(path).room for path in others}
        for other in sorted(claims, key=lambda folder: (folder / ABOUT).stat().st_mtime):
            if sum(claims.values()) + self._wanted > self._most_bytes and remove(other):
                del claims[other]
        return max(0, min(self._wanted, self._most_bytes - sum(claims.values())))

    def _claimed(self, room: int) -> int:
        """Claim so many bytes; images whose place in the order is below what this returns are kept."""
        about = self._folder / ABOUT
        if about.exists() and (claim := _claim(about)).room == room:
            about.touch()  # it has been used
            return claim.below
        places = _places(self._image_ids)
        in_order = np.argsort(places)
        num_kept = int((np.cumsum(self._index.lengths[self._image_ids][in_order]) <= room).sum())
        below = int(places[in_order[num_kept]]) if num_kept < len(places) else 2**63
        for path in self._folder.glob("*/*"):
            if path.name.isdecimal() and _places(np.array([int(path.name)]))[0] >= below:
                path.unlink()
        self._folder.mkdir(exist_ok=True)
        claim = _Claim(about=f"remote images of {', '.join(self._index.sources)}", room=room, below=below)
        replace_file(about, claim.model_dump_json().encode())
        return below


def _claim(about: Path) -> _Claim:
    return _Claim.model_validate_json(about.read_bytes())


def _places(image_ids: np.ndarray) -> np.ndarray:
    """Where images stand in the order, as integers below 2^63."""
    return (scrambled(image_ids.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)
