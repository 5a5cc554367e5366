"""Encoded bytes to upright RGB: JPEG, PNG, WebP, AVIF, BMP, TIFF and the first frame of GIF.

The content decides what a file is, never its name. Greyscale, palette and CMYK images become RGB; transparent ones lie
on white, as a viewer shows them (what hides behind transparent pixels is arbitrary); EXIF orientation is applied;
more than 8 bits per channel are scaled to 8 by `value_range`. Where decoding fails, `UndecodableImage` says why.
"""

import io
import re
import struct
from collections.abc import Iterable
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from glsd.data.deep import DeepImage, Range, deep_png, deep_tiff, with_chunks
from glsd.data.undecodable import BROKEN, check_size, libraries_quiet
from glsd.data.undecodable import UndecodableImage as UndecodableImage


def _brand(brand: bytes) -> re.Pattern[bytes]:
    """The beginning of a file of the HEIF family: its brand, or a general one that this brand is listed after."""
    return re.compile(rb"....ftyp(?:%b|m(?:if1|sf1|iaf)....(?:....){0,15}?%b)" % (brand, brand), re.DOTALL)


# The plugins are called directly: Image.open has a pixel limit of its own, in a global, and tries sixty formats.
_FORMATS: Final[tuple[tuple[re.Pattern[bytes], str, type[ImageFile.ImageFile]], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), ".jpg", JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png", PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp", WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), ".gif", GifImagePlugin.GifImageFile),
    (re.compile(rb"BM"), ".bmp", BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), ".tif", TiffImagePlugin.TiffImageFile),
    (_brand(rb"avi[fs]"), ".avif", AvifImagePlugin.AvifImageFile),
)
IMAGE_EXTENSIONS: Final = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_NOT_READ: Final = (
    (_brand(rb"he[iv][cmsx]"), "HEIC"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "JPEG XL"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "JPEG 2000"),
)

# The chunks of a PNG that Pillow gets. It refuses files with long profiles or texts, none of which is shown.
_SHOWN_CHUNKS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_TEXT_CHUNKS: Final = (b"tEXt", b"zTXt", b"iTXt")
_TURNING_TEXT: Final = re.compile(rb"(XML:com\.adobe\.xmp|Raw profile type exif|exif)\0")
_LONGEST_TEXT: Final = 1 << 20


def decode(data: bytes, max_pixels: int, value_range: Range | None = None) -> NDArray[np.uint8]:
    """Upright RGB of an encoded image, (height, width, 3) uint8, C-contiguous and writable.

    Args:
        data: the encoded bytes.
        max_pixels: largest width x height, judged before any pixel is decoded.
        value_range: values that become 0 and 255 in images of more than 8 bits per channel; values outside saturate.
            None is the full range of an integer type.

    Raises:
        UndecodableImage: the bytes are not an image of a known format, are broken, too large, or floats without
            `value_range`.
    """
    suffix, plugin = _format(data)
    try:
        if suffix == ".jpg" and (pixels := _plain_jpeg(data, max_pixels)) is not None:
            return pixels
        if (deep := _deep(data, suffix, max_pixels)) is not None:
            return _upright(deep.rgb(value_range), deep.orientation)
        return _shallow(data, suffix, plugin, max_pixels)
    except UndecodableImage:
        raise
    except BROKEN as error:
        raise UndecodableImage(f"broken {suffix[1:]} content: {error}") from error


def fitting_value_range(contents: Iterable[bytes], max_pixels: int) -> tuple[int, int] | None:
    """The `value_range` of as many bits as the values have, of encoded images that use at most a quarter of their type.

    Images of at most 8 bits, of floats and broken ones say nothing. None where no image says anything, and from the
    first one on that uses more of its type, such as one of 16 bits with a value of 16384.
    """
    low = high = 0
    fitting = None
    for data in contents:
        try:
            deep = _deep(data, _format(data)[0], max_pixels)
            if deep is None or deep.meaning.dtype.kind == "f" or deep.meaning.dtype.itemsize == 1:
                continue
            lowest, highest = deep.extremes()
        except BROKEN:
            continue
        low, high = min(low, lowest), max(high, highest)
        white = 2 ** max(high, -1 - low).bit_length() - 1
        fitting = (-1 - white if low < 0 else 0), white
        if 4 * (white + 1 - fitting[0]) > 2 ** (8 * deep.meaning.dtype.itemsize):
            return None
    return fitting if high > low else None


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) that the header of a JPEG or PNG says, found in a microsecond; (1, 1) for any other content.

    `decode` may find another size: where it turns an image upright, and where the header is broken.
    """
    width, height = 1, 1
    if data.startswith(b"\x89PNG") and len(data) >= 24:
        width, height = struct.unpack(">ii", data[16:24])
    elif header := _jpeg_header(data):
        height, width, _ = header
    return max(1, height), max(1, width)


def extension(data: bytes) -> str:
    """The file extension of the content, such as `.jpg`; an UndecodableImage where it is not a known format."""
    return _format(data)[0]


def _format(data: bytes) -> tuple[str, type[ImageFile.ImageFile]]:
    if not data:
        raise UndecodableImage("the file is empty")
    for magic, suffix, plugin in _FORMATS:
        if magic.match(data):
            return suffix, plugin
    known = "JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF"
    for magic, name in _NOT_READ:
        if magic.match(data):
            raise UndecodableImage(f"the content is {name}, and is no {known}; convert it to one of them")
    raise UndecodableImage(f"the content, which begins with {data[:8]!r}, is no {known}")


def _deep(data: bytes, suffix: str, max_pixels: int) -> DeepImage | None:
    if suffix == ".png":
        return deep_png(data, max_pixels)
    return deep_tiff(data, max_pixels) if suffix == ".tif" else None


def _plain_jpeg(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """Pixels equal to Pillow's in two thirds of its time; None leaves the rarer kinds and broken files to Pillow."""
    height, width, colors = _jpeg_header(data) or (0, 0, "")
    if colors not in ("YCbCr", "Gray", "GRAY"):
        return None
    check_size(width, height, max_pixels)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    metadata = data[: _start_of_scan(data)]
    if b"Exif\0" in metadata or b"tiff:Orientation" in metadata:
        with libraries_quiet:
            return _upright(pixels, _orientation(JpegImagePlugin.JpegImageFile(io.BytesIO(data))))
    return pixels


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """(height, width, colour space) of a JPEG; None of what simplejpeg cannot read."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # it knows no name for chroma sampled in quarters of the height
        return None
    return height, width, colorspace


def _start_of_scan(data: bytes) -> int:
    """Where a JPEG's segments end and its pixels begin."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] not in (b"\xda", b"\xff"):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position if data[position + 1 : position + 2] == b"\xda" else len(data)


def _shallow(data: bytes, suffix: str, plugin: type[ImageFile.ImageFile], max_pixels: int) -> NDArray[np.uint8]:
    """At most 8 bits per channel, by Pillow."""
    if suffix == ".avif" and not AvifImagePlugin.SUPPORTED:
        raise UndecodableImage("this Pillow reads no AVIF; install one that does, as those from PyPI do")
    with libraries_quiet:
        image: Image.Image = plugin(io.BytesIO(with_chunks(data, _is_shown) if suffix == ".png" else data))
        check_size(*image.size, max_pixels)
        image.load()
        # After loading, since Pillow turns TIFFs itself and PNGs may carry the tag behind their pixels.
        orientation = _orientation(image)
        if suffix == ".png" and image.mode == "L" and "transparency" in image.info:
            image.info["transparency"] *= 255 // (2 ** data[24] - 1)  # Pillow scales only the pixels
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return _upright(np.array(image if image.mode == "RGB" else image.convert("RGB")), orientation)


def _is_shown(name: bytes, content: memoryview) -> bool:
    if name in _TEXT_CHUNKS:
        return len(content) <= _LONGEST_TEXT and _TURNING_TEXT.match(content) is not None
    return name in _SHOWN_CHUNKS


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; broken metadata say nothing, and the pixels beside them are whole."""
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    except BROKEN:
        return 1
    return orientation


def _upright(pixels: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    """The image turned as its EXIF orientation 1..8 says; other values say nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
