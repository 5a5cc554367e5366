"""Images that Pillow would cut to 8 bits or misread: PNGs of 16 bits, and TIFFs of more than 8 or of unusual samples.

libpng and libtiff (by imagecodecs) give the stored values; what they mean stands here. The first three samples are
colours, or the first is grey; a further one is opacity where the file says so, and is left out where it does not.
Values become 8 bits one block at a time, so the result costs 3 bytes per pixel on top of the stored values.
"""

import io
import struct
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from glsd.data.undecodable import BROKEN, UndecodableImage, check_size, libraries_quiet

Range = tuple[float, float]

_PNG_SIGNATURE: Final = 8
"""Bytes before the first chunk."""
_BLOCK: Final = 1 << 16
"""Pixels that are scaled at once."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = range(3)
_NUMBERS: Final[dict[int, Literal["u", "i", "f"]]] = {1: "u", 2: "i", 3: "f"}
_OPACITIES: Final = (_PREMULTIPLIED := 1, 2)
_APART: Final = 2
_COMPRESSIONS: Final = {1, 5, 8, 32773, 32946, 34925, 50000}
"""None, LZW, Deflate, PackBits, Deflate by its old number, LZMA and ZSTD."""
_MOST_SAMPLES: Final = 8
_ANY_TILE: Final = 1 << 20
"""Pixels of a tile that is not too large for any image."""


class _Meaning(NamedTuple):
    """What the samples of a pixel are."""

    dtype: np.dtype[Any]
    num_colors: int
    """1 is grey, 3 are red, green and blue."""
    opacity: int | None = None
    """The sample that is opacity."""
    is_premultiplied: bool = False
    """The colours have been multiplied by the opacity."""
    white_is_zero: bool = False


class DeepImage(NamedTuple):
    """An image whose header has been read and whose values have not."""

    height: int
    width: int
    orientation: object
    """As EXIF counts; anything but 2..8 says nothing."""
    meaning: _Meaning
    stored: Callable[[], NDArray[Any]]
    """Reads the values, (height, width, samples)."""

    def rgb(self, value_range: Range | None) -> NDArray[np.uint8]:
        """As it is stored, not turned upright, (height, width, 3); floats need a `value_range`."""
        dtype = self.meaning.dtype
        if dtype.itemsize == 1 or value_range is None:
            if dtype.kind == "f":
                raise UndecodableImage("its values are floats; set data.value_range to those that are black and white")
            value_range = (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        with libraries_quiet:
            values = self.stored()
        opaque = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
        if self.meaning.opacity is not None and 0 < values[..., self.meaning.opacity].max() <= value_range[1]:
            opaque = min(opaque, value_range[1])  # 12 bits in 16, for example, are so in all samples
        rows = max(1, _BLOCK // self.width)
        for top, left in product(range(0, self.height, rows), range(0, self.width, _BLOCK)):
            block = slice(top, top + rows), slice(left, left + _BLOCK)
            pixels[block] = _scaled(values[block], self.meaning, value_range, opaque)
        return pixels

    def extremes(self) -> tuple[int, int]:
        """The lowest and the highest value of its colours, which are integers."""
        with libraries_quiet:
            colors = self.stored()[..., : self.meaning.num_colors]
        return int(colors.min()), int(colors.max())


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Name, content and all bytes of each chunk of a PNG; the last one is short where the file is cut off."""
    rest = memoryview(data)[_PNG_SIGNATURE:]
    while rest:
        size = 12 + int.from_bytes(rest[:4], "big")
        chunk, rest = rest[:size], rest[size:]
        yield bytes(chunk[4:8]), chunk[8:-4], chunk


def with_chunks(data: bytes, is_kept: Callable[[bytes, memoryview], bool]) -> bytes:
    """The PNG with only the chunks whose name and content are kept."""
    kept = (chunk for name, content, chunk in _png_chunks(data) if is_kept(name, content))
    return data[:_PNG_SIGNATURE] + b"".join(kept)


def deep_png(data: bytes, max_pixels: int) -> DeepImage | None:
    """A PNG of 16 bits; None of one of fewer."""
    width, height, bits, color_type = struct.unpack(">IIBB", data[16:26])
    if bits != 16:
        return None
    check_size(width, height, max_pixels)
    contents = {name: content for name, content, _ in _png_chunks(data)}
    num_colors = 3 if color_type & 2 else 1
    has_opacity = bool(color_type & 4) or b"tRNS" in contents
    meaning = _Meaning(np.dtype(np.uint16), num_colors, num_colors if has_opacity else None)

    def stored() -> NDArray[Any]:
        import imagecodecs

        pixels = with_chunks(data, lambda name, _: name in (b"IHDR", b"tRNS", b"IDAT", b"IEND"))
        return imagecodecs.png_decode(pixels).reshape(height, width, num_colors + has_opacity)

    return DeepImage(height, width, _exif_orientation(bytes(contents.get(b"eXIf", b""))), meaning, stored)


class _TiffTags(NamedTuple):
    """What the first image of a TIFF is."""

    width: int
    height: int
    bits: tuple[int, ...]
    number: int
    photometric: int
    samples: int
    extra_samples: tuple[int, ...]
    are_samples_apart: bool
    compression: int
    tile: tuple[int, int]
    orientation: object


def _tiff_tags(data: bytes) -> _TiffTags:
    """The tags, also of kinds that Pillow cannot open."""
    file = io.BytesIO(data)
    with libraries_quiet:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if b"+" in data[2:4] else 8))
        file.seek(tags.next)
        tags.load(file)
        return _TiffTags(
            int(tags[TiffImagePlugin.IMAGEWIDTH]),
            int(tags[TiffImagePlugin.IMAGELENGTH]),
            tuple(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))),
            tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0],
            int(tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION]),
            int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)),
            tuple(tags.get(TiffImagePlugin.EXTRASAMPLES, ())),
            tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _APART,
            int(tags.get(TiffImagePlugin.COMPRESSION, 1)),
            (int(tags.get(TiffImagePlugin.TILEWIDTH, 0)), int(tags.get(TiffImagePlugin.TILELENGTH, 0))),
            tags.get(ExifTags.Base.Orientation),
        )


def deep_tiff(data: bytes, max_pixels: int) -> DeepImage | None:
    """The first image of a TIFF; None of one that Pillow reads rightly, which has at most 8 bits.

    Raises:
        UndecodableImage: the image or its tiles are too large, or it is of a kind whose colours are not sure.
    """
    tags = _tiff_tags(data)
    check_size(tags.width, tags.height, max_pixels)
    if tags.tile[0] * tags.tile[1] > max(tags.width * tags.height, _ANY_TILE):
        raise UndecodableImage(f"tiles of {tags.tile[0]} x {tags.tile[1]} pixels are larger than the image")
    is_supported = tags.compression in _COMPRESSIONS
    if max(tags.bits) <= 8:
        is_plain = tags.samples == (3 if tags.photometric == _RGB else 1) and tags.number == 1
        is_said = bool(tags.extra_samples) and not is_supported
        if max(tags.bits) < 8 or tags.photometric > _RGB or is_plain or is_said:
            return None
    meaning = _tiff_meaning(tags)
    if not is_supported:
        raise UndecodableImage(
            f"TIFF compression {tags.compression} of {tags.samples} samples of {tags.bits[0]} bits is not supported; "
            "none, LZW, Deflate, PackBits, LZMA and ZSTD are"
        )

    def stored() -> NDArray[Any]:
        import imagecodecs

        together = (tags.height, tags.width, *((tags.samples,) if tags.samples > 1 else ()))
        apart = (tags.samples, tags.height, tags.width)
        is_apart = tags.are_samples_apart and tags.samples > 1
        # Where the file holds another size than its tags say, libtiff finds no room for it.
        values = imagecodecs.tiff_decode(data, out=np.zeros(apart if is_apart else together, meaning.dtype))
        return np.moveaxis(values, 0, -1) if is_apart else values.reshape(tags.height, tags.width, tags.samples)

    return DeepImage(tags.height, tags.width, tags.orientation, meaning, stored)


def _tiff_meaning(tags: _TiffTags) -> _Meaning:
    bits, samples = tags.bits[0], tags.samples
    number = _NUMBERS.get(tags.number)
    if number is None or (number == "f" and bits == 8):
        raise UndecodableImage(f"samples of TIFF format {tags.number} and {bits} bits are not supported")
    if len(set(tags.bits)) > 1 or bits not in (8, 16, 32, 64):
        raise UndecodableImage(f"{bits} bits per sample are not supported; up to 8, 16, 32 and 64 are")
    if tags.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        raise UndecodableImage(f"colours of TIFF kind {tags.photometric} with {bits} bits are not supported")
    first_extra = samples - len(tags.extra_samples)
    opacity = next((first_extra + n for n, kind in enumerate(tags.extra_samples) if kind in _OPACITIES), None)
    # Writers that know of no colours, such as GDAL, tag the first of three bands as grey.
    is_untagged = tags.photometric == _BLACK_IS_ZERO and samples - (opacity is not None) == 3
    num_colors = 3 if tags.photometric == _RGB or is_untagged else 1
    if samples > _MOST_SAMPLES or samples < num_colors or (num_colors == 1 and samples > 2):
        raise UndecodableImage(
            f"{samples} samples per pixel of TIFF kind {tags.photometric} are not supported, since it is not sure "
            "which are its colours; write RGB as kind 2"
        )
    if opacity is not None and opacity < num_colors:
        raise UndecodableImage(f"{len(tags.extra_samples)} of {samples} samples per pixel are said to be no colours")
    is_premultiplied = opacity is not None and tags.extra_samples[opacity - first_extra] == _PREMULTIPLIED
    dtype = np.dtype(f"{number}{bits // 8}")
    return _Meaning(dtype, num_colors, opacity, is_premultiplied, tags.photometric == _WHITE_IS_ZERO)


def _exif_orientation(exif: bytes) -> object:
    tags = Image.Exif()
    try:
        with libraries_quiet:
            tags.load(exif)
            return tags.get(ExifTags.Base.Orientation)
    except BROKEN:
        return None


def _scaled(values: NDArray[Any], meaning: _Meaning, value_range: Range, opaque: float) -> NDArray[np.floating[Any]]:
    """(..., samples) as grey or RGB on white from 0 to 255, (..., 1 or 3); `opaque` is the opacity that hides white."""
    precision: type[np.floating[Any]] = np.float32 if values.dtype.itemsize <= 2 else np.float64
    low, high = value_range
    with np.errstate(invalid="ignore", over="ignore"):  # floats may be infinite, or no numbers, which count as 0
        colors: NDArray[Any] = values[..., : meaning.num_colors].astype(precision)
        if meaning.opacity is None:
            opacity: Any = precision(1)
        else:
            opacity = values[..., meaning.opacity : meaning.opacity + 1].astype(precision) / precision(opaque)
            opacity = np.clip(np.nan_to_num(opacity), 0, 1)
        if meaning.is_premultiplied:
            colors = colors / np.where(opacity > 0, opacity, 1)
        shares: NDArray[Any] = (colors - precision(low)) / precision(high - low)
    shares = np.clip(np.nan_to_num(shares), 0, 1)
    if meaning.white_is_zero:
        shares = 1 - shares
    scaled: NDArray[np.floating[Any]] = np.rint(255 * (1 - opacity + opacity * shares))
    return scaled
