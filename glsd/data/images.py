"""Encoded bytes to upright RGB: JPEG, PNG, WebP, BMP, TIFF and the first frame of GIF.

The content decides what a file is, never its name. Greyscale, palette and CMYK images become RGB; transparent ones lie
on white, as a viewer shows them (what hides behind transparent pixels is arbitrary); EXIF orientation is applied;
more than 8 bits a channel are scaled to 8 by `value_range`. Where decoding fails, `UndecodableImage` says why.
"""

import io
import re
import struct
import threading
import warnings
import zlib
from typing import Any, Final, Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import (
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

Range = tuple[float, float]

# The plugins are called directly: Image.open has a pixel limit of its own, in a global, and tries sixty formats.
_FORMATS: Final[tuple[tuple[re.Pattern[bytes], str, type[ImageFile.ImageFile]], ...]] = (
    (re.compile(rb"\xff\xd8\xff"), ".jpg", JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png", PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp", WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), ".gif", GifImagePlugin.GifImageFile),
    (re.compile(rb"BM"), ".bmp", BmpImagePlugin.BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), ".tif", TiffImagePlugin.TiffImageFile),
)
IMAGE_EXTENSIONS: Final = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# What Pillow's decoders raise on broken content.
_BROKEN: Final = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    Image.DecompressionBombError,
    OverflowError,
    struct.error,
    zlib.error,
)
_SAMPLE_KINDS: Final[dict[int, Literal["u", "i", "f"]]] = {1: "u", 2: "i", 3: "f"}
_WHITE_IS_ZERO: Final = 0
_DEEP_PHOTOMETRICS: Final = (_WHITE_IS_ZERO, 1, 2)  # the others are black is zero, and RGB


class _PillowsWarningsIgnored:
    """Within it Pillow says nothing of odd metadata: its warnings name no file and ask nothing of a user.

    The filters are the process's, so the first thread that enters sets them and the last that leaves restores them;
    between them any number decode at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._restored = warnings.catch_warnings()
                self._restored.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._restored.__exit__(None, None, None)


_quiet = _PillowsWarningsIgnored()


class UndecodableImage(ValueError):
    """These bytes are no image, or none that may be decoded; the message says why."""


def decode(data: bytes, max_pixels: int, value_range: Range | None = None) -> NDArray[np.uint8]:
    """Upright RGB of an encoded image, (height, width, 3) uint8, C-contiguous and writable.

    Args:
        data: the encoded bytes.
        max_pixels: largest width x height, judged before any pixel is decoded.
        value_range: values that become 0 and 255 in images of more than 8 bits a channel; values outside saturate.
            None is the full range of an integer type.

    Raises:
        UndecodableImage: the bytes are no image of a known format, broken, too large, or floats without `value_range`.
    """
    suffix, plugin = _format(data)
    try:
        if suffix == ".jpg" and (pixels := _plain_jpeg(data, max_pixels)) is not None:
            return pixels
        if suffix == ".png" and data[24:25] == b"\x10":
            return _deep_png(data, max_pixels, value_range)
        if suffix == ".tif" and (tags := _tiff_tags(data)).bits > 8:
            return _deep_tiff(data, tags, max_pixels, value_range)
        return _shallow(data, plugin, max_pixels)
    except UndecodableImage:
        raise
    except _BROKEN as error:
        raise UndecodableImage(f"broken {suffix[1:]} content: {error}") from error


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) that the header of a JPEG or PNG says, found in a microsecond; (1, 1) for any other content.

    It is what to expect of `decode` before it has run, not what is sure to come: an image that is turned upright may
    have its sides swapped, and a broken header says anything.
    """
    width, height = 1, 1
    if data.startswith(b"\x89PNG") and len(data) >= 24:
        width, height = struct.unpack(">ii", data[16:24])
    elif header := _jpeg_header(data):
        height, width, _ = header
    return max(1, height), max(1, width)


def extension(data: bytes) -> str:
    """The file extension of the content, such as `.jpg`.

    Raises:
        UndecodableImage: the content is no known image format.
    """
    return _format(data)[0]


def _format(data: bytes) -> tuple[str, type[ImageFile.ImageFile]]:
    if not data:
        raise UndecodableImage("the file is empty")
    for magic, suffix, plugin in _FORMATS:
        if magic.match(data):
            return suffix, plugin
    raise UndecodableImage(f"the content, which begins with {data[:8]!r}, is no JPEG, PNG, WebP, BMP, TIFF or GIF")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UndecodableImage(
            f"{width} x {height} = {width * height} pixels are more than data.max_pixels {max_pixels}"
        )
    if width * height == 0:
        raise UndecodableImage(f"{width} x {height} pixels are none")


def _plain_jpeg(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """Pixels equal to Pillow's in two thirds of its time; None leaves the rarer kinds and broken files to Pillow."""
    header = _jpeg_header(data)
    if header is None or header[2] not in ("YCbCr", "Gray", "GRAY"):
        return None
    height, width, _ = header
    _check_size(width, height, max_pixels)
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    metadata = data[: _start_of_scan(data)]
    if b"Exif\0" in metadata or b"tiff:Orientation" in metadata:
        with _quiet:
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


def _shallow(data: bytes, plugin: type[ImageFile.ImageFile], max_pixels: int) -> NDArray[np.uint8]:
    """At most 8 bits a channel, by Pillow."""
    with _quiet:
        image: Image.Image = plugin(io.BytesIO(data))
        _check_size(*image.size, max_pixels)
        image.load()
        # After loading, since Pillow turns TIFFs itself and PNGs may carry the tag behind their pixels.
        orientation = _orientation(image)
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return _upright(np.array(image.convert("RGB")), orientation)


def _deep_png(data: bytes, max_pixels: int, value_range: Range | None) -> NDArray[np.uint8]:
    width, height = struct.unpack(">II", data[16:24])
    _check_size(width, height, max_pixels)
    pixels = _scaled_to_rgb(_deep_values(data, np.dtype("u2")), value_range)
    if b"eXIf" not in data:
        return pixels
    with _quiet:
        return _upright(pixels, _orientation(PngImagePlugin.PngImageFile(io.BytesIO(data))))


class _TiffTags(NamedTuple):
    """What the first image of a TIFF is, also of kinds that Pillow cannot open."""

    width: int
    height: int
    bits: int
    kind: Literal["u", "i", "f"]
    photometric: int


def _tiff_tags(data: bytes) -> _TiffTags:
    file = io.BytesIO(data)
    with _quiet:
        big = b"+" in data[2:4]
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if big else 8))
        file.seek(tags.next)
        tags.load(file)
        return _TiffTags(
            tags[TiffImagePlugin.IMAGEWIDTH],
            tags[TiffImagePlugin.IMAGELENGTH],
            max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))),
            _SAMPLE_KINDS[tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]],
            tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION],
        )


def _deep_tiff(data: bytes, tags: _TiffTags, max_pixels: int, value_range: Range | None) -> NDArray[np.uint8]:
    _check_size(tags.width, tags.height, max_pixels)
    if tags.bits not in (16, 32, 64):
        raise UndecodableImage(f"{tags.bits} bits a sample are not supported; up to 8, 16, 32 and 64 are")
    if tags.kind == "f" and value_range is None:
        raise UndecodableImage("its values are floats; set data.value_range to those that are black and white")
    if tags.photometric not in _DEEP_PHOTOMETRICS:
        raise UndecodableImage(f"colours of TIFF kind {tags.photometric} with {tags.bits} bits are not supported")
    values = _deep_values(data, np.dtype(f"{tags.kind}{tags.bits // 8}"))
    pixels = _scaled_to_rgb(values, value_range)
    # OpenCV has turned the image upright, but leaves those stored with white as zero inverted.
    return 255 - pixels if tags.photometric == _WHITE_IS_ZERO else pixels


def _deep_values(data: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values of more than 8 bits, (height, width) or (height, width, BGR or BGRA), by OpenCV: Pillow cuts them to 8."""
    log_level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UndecodableImage(f"broken content: {error}") from error
    finally:
        cv2.utils.logging.setLogLevel(log_level)
    if values is None or values.dtype.itemsize != dtype.itemsize:
        raise UndecodableImage(f"broken content, or values of a kind that OpenCV cannot read ({dtype})")
    if values.ndim == 3 and values.shape[2] not in (3, 4):
        raise UndecodableImage(f"{values.shape[2]} channels are neither grey, RGB nor RGBA")
    return np.asarray(values).view(dtype)


def _scaled_to_rgb(values: NDArray[Any], value_range: Range | None) -> NDArray[np.uint8]:
    if value_range is None:
        value_range = (float(np.iinfo(values.dtype).min), float(np.iinfo(values.dtype).max))
    colors = values if values.ndim == 2 else values[..., 2::-1]
    precision: type[np.floating[Any]] = np.float32 if values.dtype.itemsize == 2 else np.float64
    low, high = value_range
    with np.errstate(invalid="ignore", over="ignore"):  # floats may be infinite, or no numbers: these are black
        shares: NDArray[Any] = (colors.astype(precision) - precision(low)) / precision(high - low)
    shares = np.clip(np.nan_to_num(shares), 0, 1)
    if values.ndim == 3 and values.shape[2] == 4:
        full = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
        alpha: NDArray[Any] = np.clip(values[..., 3:].astype(precision) / precision(full), 0, 1)
        shares = 1 - alpha + alpha * shares
    pixels = np.rint(255 * shares).astype(np.uint8)
    return np.ascontiguousarray(pixels) if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; broken metadata say nothing, and the pixels beside them are whole."""
    try:
        orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        return 1
    return orientation


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The image turned as its EXIF orientation 1..8 says; other values say nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
