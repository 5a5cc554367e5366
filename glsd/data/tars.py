"""Images within tars: a plain tar holds its members as they are, so an image in it is an offset and a length."""

import io
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import BinaryIO, Final, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from glsd.data.images import IMAGE_EXTENSIONS, UndecodableImage, extension
from glsd.data.labels import Labels, as_labels
from glsd.data.pieces import Each
from glsd.data.sources import counted, kind_not_read
from glsd.storage.columns import Texts, one_column, texts
from glsd.storage.files import open_file
from glsd.storage.listing import Files

_LONGEST_TEXT: Final = 1 << 20
_LARGEST_IMAGE: Final = 4 << 30
BROKEN_TAR: Final = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, TypeError)
"""What tarfile raises on content that is not a tar."""


class Rows(NamedTuple):
    """Columns of an index: where each image lies, see `glsd.data.index.Place`; and the labels.

    An `offset` is a row where there is an `image_column`.
    """

    files: Files
    file_ids: NDArray[np.int32]
    """Number of each image's file."""
    member: Texts
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    labels: Labels | None
    image_column: Texts | None = None


class Scanned(NamedTuple):
    """What a file holds: images with their labels (null where there is none)."""

    names: Texts
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: Texts


class _Tar(NamedTuple):
    """What a tar holds: images, companions that are left out since the same key has an image of a simple name, .cls
    members of no image, and kinds of members that may be images and are not read.
    """

    images: Scanned
    companions: list[str]
    unused: list[str]
    not_read: Counter[str]


class Member(tarfile.TarInfo):
    """A header whose sizes are believed only where they are possible, as tarfile makes room for what they say."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Member":
        """A header of 512 bytes."""
        member = super().frombuf(buf, encoding, errors)
        is_file = member.type in tarfile.REGULAR_TYPES
        if member.size < 0 or (member.size > _LONGEST_TEXT and not is_file):
            raise tarfile.ReadError(f"{member.name!r} has {member.size:,} bytes, it says")
        return member


def scan_tars(source: str, files: Files, tick: Callable[[int], None], each: Each) -> Rows:
    """The images of plain tars with their labels.

    The label of an image is the `.cls` of the same name up to the last suffix (`scan 1.5.cls` for `scan 1.5.jpg`), else
    that of its WebDataset key, which ends at the first dot (`KEY.cls` for `KEY.left.jpg` and `KEY.right.jpg`). An image
    whose suffix has several parts (`KEY.mask.png`) is left out where the same key has a simple one (`KEY.jpg`). What is
    left out is told in warnings.

    Args:
        source: what messages call the tars together.
        files: the tars.
        tick: told of so many more images.
        each: scans them, one by one.

    Raises:
        ValueError: a file is not a plain tar or is cut off, or some images have a label and others none.
    """
    scanned: list[_Tar] = []
    for found in each(_scan_tar, files.uris.to_pylist()):
        scanned.append(found)
        tick(len(found.images.names))
    if companions := [name for found in scanned for name in found.companions]:
        key, _, rest = companions[0].rpartition("/")[2].partition(".")
        warnings.warn(
            f"images of {source} that are left out: {len(companions):,}, such as {companions[0]}. In a WebDataset it "
            f"is a part of the image {key}, of the same name up to the first dot. If it is an image of its own, rename "
            f"it, for example to {key}_{rest}",
            stacklevel=5,
        )
    if unused := [name for found in scanned for name in found.unused]:
        warnings.warn(
            f"labels of {source} that belong to no image: {len(unused):,}, such as {unused[0]}. Name a .cls as its "
            "image, or as its image up to the first dot",
            stacklevel=5,
        )
    if not_read := sum((found.not_read for found in scanned), Counter[str]()):
        warnings.warn(f"{source} also holds {counted(not_read)}; if they are images, convert them", stacklevel=5)
    return rows_of(files, [found.images for found in scanned], ".cls beside it")


def rows_of(files: Files, scanned: list[Scanned], label: str) -> Rows:
    """The images of all files; a ValueError names one that has no such label, as others have."""
    names, labels = (one_column(getattr(found, column) for found in scanned) for column in ("names", "labels"))
    file_ids = np.repeat(np.arange(len(scanned), dtype=np.int32), [len(found.names) for found in scanned])
    if 0 < labels.null_count < len(labels):
        first = pc.index(pc.is_null(labels), True).as_py()
        raise ValueError(f"{names[first]} in {files.uris[file_ids[first]]} has no {label}; label all images or none")
    offsets = np.concatenate([np.empty(0, np.int64), *(found.offsets for found in scanned)])
    lengths = np.concatenate([np.empty(0, np.int64), *(found.lengths for found in scanned)])
    return Rows(files, file_ids, names, offsets, lengths, None if labels.null_count else as_labels(labels))


def _scan_tar(uri: str) -> _Tar:
    images: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    not_read = Counter[str]()
    try:
        with open_file(uri) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as tar:
            for member in tar:
                suffix = member_suffix(member)
                if suffix in IMAGE_EXTENSIONS:
                    images.append((member.name, member.offset_data, member.size))
                elif suffix == ".cls":
                    labels[_stem(member.name)] = member_content(tar, member).decode("utf-8").strip()
                elif suffix is not None:
                    not_read.update(kind_not_read(PurePosixPath(member.name).name))
            # tarfile takes a broken header for the end, which is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except BROKEN_TAR as error:
        raise ValueError(f"{uri} is not a plain tar, or is broken: {error}") from error
    names = [name for name, *_ in images]
    simple = {_key(name) for name in names if _stem(name) == _key(name)}
    companions = [name for name in names if _stem(name) != _key(name) and _key(name) in simple]
    left_out, owners = set(companions), {owner for name in names for owner in (_stem(name), _key(name))}
    used = [(*image, labels.get(_stem(image[0]), labels.get(_key(image[0])))) for image in images]
    columns = list(zip(*(image for image in used if image[0] not in left_out), strict=True)) or [()] * 4
    found = texts(columns[0]), np.array(columns[1], np.int64), np.array(columns[2], np.int64), texts(columns[3])
    return _Tar(
        Scanned(*found),
        companions,
        [f"{stem}.cls" for stem in labels if stem not in owners],
        not_read,
    )


def member_suffix(member: tarfile.TarInfo) -> str | None:
    """The lower-case suffix of a member; None for what is hidden or no regular file."""
    name = member.name.rpartition("/")[2]
    if name.startswith(".") or not member.isreg() or member.issparse():
        return None
    stem, dot, end = name.rpartition(".")
    return dot + end.lower() if stem and end else ""


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def member_content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a regular member: an image, or a label of at most a mebibyte."""
    if member.size > (_LONGEST_TEXT if member_suffix(member) == ".cls" else _LARGEST_IMAGE):
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, too many for what it is")
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def write_tar(stream: BinaryIO | io.BytesIO, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a plain tar of (name, content), the same bytes on every machine."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)  # its time, user and group are 0
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def image_suffix(data: bytes, name: str = "") -> str:
    """The suffix of an image by its content; by its name or `.jpg` where the content is not known.

    An image that cannot be decoded stays an image, and is counted as one that was skipped.
    """
    try:
        return extension(data)
    except UndecodableImage:
        named = PurePosixPath(name).suffix.lower()
        return named if named in IMAGE_EXTENSIONS else ".jpg"
