import contextlib
import io
import logging
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageOps

from glsd.augment.distributions import sample_views
from glsd.config import AugmentConfig
from glsd.data.images import decode, extension, fitting_value_range, header_size
from glsd.data.undecodable import UndecodableImage
from tests.glsd.data.encoding import encoded, photograph, tiff

LIMIT = 10**6


def by_pillow(data: bytes) -> NDArray[np.uint8]:
    return np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def png_of_16_bits(values: NDArray[np.uint16]) -> bytes:
    data: bytes = imagecodecs.png_encode(np.ascontiguousarray(values), level=1)
    return data


def written_tiff(values: NDArray[Any], photometric: str = "rgb", **options: Any) -> bytes:
    """A TIFF by tifffile, of (height, width), (height, width, samples) or, with planarconfig "separate", (samples,
    height, width).
    """
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, metadata=None, **options)
    return file.getvalue()


def with_chunk(data: bytes, name: bytes, payload: bytes) -> bytes:
    """The PNG with a chunk behind its header."""
    return data[:33] + png_chunk(name, payload) + data[33:]


def png_chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png_without_pixels(width: int, height: int, depth: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        *(
            ("RGB", "JPEG", {"quality": 90, "subsampling": s, "progressive": p})
            for s in (0, 1, 2)
            for p in (False, True)
        ),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGB", "AVIF", {}),
        ("L", "AVIF", {}),
        ("RGB", "BMP", {}),
        ("P", "BMP", {}),
        ("L", "BMP", {}),
        ("P", "GIF", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("L", "TIFF", {"compression": "tiff_deflate"}),
        ("1", "TIFF", {"compression": "group4"}),
        ("CMYK", "TIFF", {}),
        ("YCbCr", "TIFF", {}),
    ],
)
@pytest.mark.parametrize("size", [(48, 64), (37, 51), (1, 1)])
def test_every_format_has_the_pixels_that_pillow_reads(
    mode: str, kind: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    data = encoded(Image.fromarray(photograph(*size)).convert(mode), kind, **options)
    pixels = decode(data, LIMIT)
    np.testing.assert_array_equal(pixels, by_pillow(data))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*size, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("horizontally", range(1, 5))
@pytest.mark.parametrize("vertically", range(1, 5))
def test_any_sampling_of_a_jpegs_colours_is_decoded_or_refused_as_by_pillow(horizontally: int, vertically: int) -> None:
    data = bytearray(encoded(photograph(64, 64), "JPEG", subsampling=0))
    data[data.index(b"\xff\xc0") + 11] = 16 * horizontally + vertically  # of the luma, in its start of frame
    assert min(header_size(bytes(data))) >= 1
    try:
        expected = by_pillow(bytes(data))
    except OSError:
        with pytest.raises(UndecodableImage):
            decode(bytes(data), LIMIT)
    else:
        np.testing.assert_array_equal(decode(bytes(data), LIMIT), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB"), ("AVIF", "RGB")]
)
def test_exif_orientation_turns_the_image_upright(orientation: int, kind: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(photograph()).convert(mode), kind, exif=exif)
    np.testing.assert_array_equal(decode(data, LIMIT), by_pillow(data))
    assert decode(data, LIMIT).shape == ((64, 48, 3) if orientation >= 5 else (48, 64, 3))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_are_turned_upright_once(orientation: int, dtype: type[np.generic]) -> None:
    values = np.arange(6, dtype=dtype).reshape(2, 3) * dtype(255 if dtype == np.uint16 else 1)
    value_range = (0.0, 65025.0)
    upright = np.array(by_pillow(tiff(np.arange(6, dtype=np.uint8).reshape(2, 3), orientation)))
    np.testing.assert_array_equal(decode(tiff(values, orientation), LIMIT, value_range), upright)


def test_orientation_applies_to_16_bit_pngs() -> None:
    plain = png_of_16_bits(photograph().astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(with_chunk(plain, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), LIMIT)
    np.testing.assert_array_equal(turned, np.rot90(photograph(), -1))


def test_adobe_cmyk_keeps_its_colours() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert (np.abs(decode(encoded(red, "JPEG"), LIMIT).astype(int) - [255, 0, 0]) <= 3).all()


def test_transparent_pixels_lie_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, color in enumerate([(200, 0, 0, 255), (0, 0, 0, 0), (0, 100, 0, 51)]):
        image.putpixel((x, 0), color)
    # 51 / 255 is a fifth of (0, 100, 0) and four fifths of white.
    assert decode(encoded(image, "PNG"), LIMIT).tolist() == [[[200, 0, 0], [255, 255, 255], [204, 224, 204]]]
    assert decode(encoded(image, "TIFF"), LIMIT).tolist() == [[[200, 0, 0], [255, 255, 255], [204, 224, 204]]]
    assert decode(encoded(image, "WEBP", lossless=True, exact=True), LIMIT).tolist()[0][1] == [255, 255, 255]
    deep = np.array(image).astype(np.uint16) * 257
    assert decode(png_of_16_bits(deep), LIMIT).tolist() == [[[200, 0, 0], [255, 255, 255], [204, 224, 204]]]


def test_a_transparent_palette_entry_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for data in (
        encoded(image, "PNG", transparency=1),
        encoded(image, "PNG", transparency=b"\xff\x00"),
        encoded(image, "GIF", transparency=1),
    ):
        assert decode(data, LIMIT).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.fromarray(photograph(seed=seed)).convert("P") for seed in range(3)]
    for kind in ("GIF", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(decode(data, LIMIT), np.array(frames[0].convert("RGB")))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_deep_values_are_scaled_by_the_range_and_saturate(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["u2", "i2", "u4", "i4", "f4", "f8"])))
    channels = data.draw(st.sampled_from([1, 3]))
    if dtype.kind == "f":
        numbers = st.floats(-1e6, 1e6, width=32)
    else:
        numbers = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    values = data.draw(st.lists(numbers, min_size=2 * channels, max_size=2 * channels))
    low = data.draw(st.integers(-70_000, 70_000))
    high = low + data.draw(st.integers(1, 70_000))
    array = np.array(values, dtype).reshape((1, 2, channels) if channels == 3 else (1, 2))
    pixels = decode(tiff(array), LIMIT, (float(low), float(high))).ravel()
    expected = np.repeat(array, 3) if channels == 1 else array.ravel()
    for pixel, value in zip(pixels.tolist(), expected.tolist(), strict=True):
        share = 255 * min(max((value - low) / (high - low), 0), 1)
        assert abs(pixel - share) <= 0.5 + 1e-2  # 16-bit values are scaled in single precision


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4"])
def test_integers_have_the_full_range_of_their_type_by_default(dtype: str) -> None:
    limits = np.iinfo(dtype)
    middle = (limits.max + limits.min + 1) // 2
    pixels = decode(tiff(np.array([[limits.min, middle, limits.max]], dtype)), LIMIT)
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


def test_16_bit_pngs_keep_grey_and_colour() -> None:
    picture = photograph()
    np.testing.assert_array_equal(decode(png_of_16_bits(picture.astype(np.uint16) * 257), LIMIT), picture)
    np.testing.assert_array_equal(decode(png_of_16_bits(picture.astype(np.uint16)), LIMIT, (0.0, 255.0)), picture)
    grey = decode(png_of_16_bits(picture[..., 0].astype(np.uint16)), LIMIT, (0.0, 255.0))
    np.testing.assert_array_equal(grey, np.repeat(picture[..., :1], 3, axis=2))


def test_8_bit_images_are_not_scaled() -> None:
    picture = photograph()
    np.testing.assert_array_equal(decode(encoded(picture, "PNG"), LIMIT, (0.0, 100.0)), picture)


def test_white_is_zero_is_inverted() -> None:
    values = np.array([[0, 65535]], np.uint16)
    assert decode(tiff(values, photometric=0), LIMIT)[0, :, 0].tolist() == [255, 0]


def test_floats_that_are_no_numbers_are_black() -> None:
    values = np.array([[np.nan, -np.inf, np.inf, 0.5]], np.float32)
    assert decode(tiff(values), LIMIT, (0.0, 1.0))[0, :, 0].tolist() == [0, 0, 255, 128]


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "f4", "f8"])
def test_deep_tiffs_are_the_same_picture_however_they_are_stored(
    compression: str | None, tile: tuple[int, int] | None, dtype: str
) -> None:
    picture = photograph(45, 70)
    predictor = compression in ("lzw", "zlib", "zstd") and {"f": 3}.get(dtype[0], 2)
    options = {"compression": compression, "tile": tile, "predictor": predictor, "rowsperstrip": None if tile else 7}
    together = written_tiff(picture.astype(dtype), planarconfig="contig", byteorder=">", **options)
    apart = written_tiff(np.moveaxis(picture, -1, 0).astype(dtype), planarconfig="separate", **options)
    np.testing.assert_array_equal(decode(together, LIMIT, (0.0, 255.0)), picture)
    np.testing.assert_array_equal(decode(apart, LIMIT, (0.0, 255.0)), picture)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
@pytest.mark.parametrize("extra", [None, "unspecified", "assocalpha", "unassalpha"])
def test_a_fourth_sample_is_opacity_only_where_the_file_says_so(
    depth: int, planarconfig: str, extra: str | None
) -> None:
    white = 2**depth - 1
    samples = np.array([[[0.8, 0.2, 0.0, 1.0], [0.2, 0.1, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0]]])
    values = np.rint(samples * white).astype(f"u{depth // 8}")
    expected = {
        None: samples[..., :3],
        "unspecified": samples[..., :3],
        "assocalpha": samples[..., :3] + 1 - samples[..., 3:],
        "unassalpha": samples[..., :3] * samples[..., 3:] + 1 - samples[..., 3:],
    }[extra]
    stored = values if planarconfig == "contig" else np.moveaxis(values, -1, 0)
    data = written_tiff(stored, planarconfig=planarconfig, extrasamples=extra and [extra])
    if extra is None:  # which tifffile does not write: the tag becomes another one
        data = data.replace(struct.pack("<HHI", 338, 3, 1), struct.pack("<HHI", 337, 3, 1))
    np.testing.assert_array_equal(decode(data, LIMIT), np.rint(255 * expected).astype(np.uint8))


def test_opacity_of_fewer_bits_than_its_type_is_opaque_at_the_top_of_the_value_range() -> None:
    values = np.array([[[4095, 0, 2048, 4095], [4095, 0, 0, 0]]], np.uint16)
    data = written_tiff(values, planarconfig="contig", extrasamples=["unassalpha"])
    assert decode(data, LIMIT, (0.0, 4095.0))[0].tolist() == [[255, 0, 128], [255, 255, 255]]


@pytest.mark.parametrize("number", [4, 6])  # undefined, and complex numbers
def test_samples_that_are_no_plain_numbers_are_refused_by_their_format(number: int) -> None:
    plain = struct.pack("<HHIHH", 339, 3, 1, 1, 0)
    data = tiff(np.array([[0, 65535]], np.uint16)).replace(plain, struct.pack("<HHIHH", 339, 3, 1, number, 0))
    with pytest.raises(UndecodableImage, match=f"^samples of TIFF format {number} and 16 bits are not supported"):
        decode(data, LIMIT)


@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_of_two_samples_the_first_is_grey(planarconfig: str) -> None:
    values = np.array([[[0, 65535], [65535, 0], [13107, 65535]]], np.uint16)
    stored = values if planarconfig == "contig" else np.moveaxis(values, -1, 0)
    for extra, expected in (("unspecified", [0, 255, 51]), ("unassalpha", [0, 255, 51])):
        data = written_tiff(stored, "minisblack", planarconfig=planarconfig, extrasamples=[extra])
        assert decode(data, LIMIT)[0, :, 0].tolist() == expected


def test_white_is_zero_and_transparent_pixels_lie_on_white() -> None:
    values = np.array([[[0, 65535], [65535, 65535], [65535, 0]]], np.uint16)
    data = written_tiff(values, "miniswhite", planarconfig="contig", extrasamples=["unassalpha"])
    assert decode(data, LIMIT)[0, :, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_three_samples_that_are_tagged_as_grey_are_rgb_and_four_are_not_sure(dtype: type[np.generic]) -> None:
    values = photograph().astype(dtype)
    three = written_tiff(values, "minisblack", planarconfig="contig")
    np.testing.assert_array_equal(decode(three, LIMIT, (0.0, 255.0)), photograph())
    four = written_tiff(np.dstack([values, values[..., 0]]), "minisblack", planarconfig="contig")
    with pytest.raises(UndecodableImage, match=r"4 samples per pixel of TIFF kind 1 .* write RGB as kind 2"):
        decode(four, LIMIT)


def test_signed_bytes_have_the_full_range_of_their_type() -> None:
    values = np.array([[-128, 0, 127]], np.int8)
    assert decode(written_tiff(values, "minisblack"), LIMIT)[0, :, 0].tolist() == [0, 128, 255]


def test_the_opaque_colour_of_a_16_bit_png_may_be_called_transparent() -> None:
    grey = with_chunk(png_of_16_bits(np.array([[0, 300, 65535]], np.uint16)), b"tRNS", struct.pack(">H", 300))
    assert decode(grey, LIMIT)[0, :, 0].tolist() == [0, 255, 255]
    colors = png_of_16_bits(np.array([[[0, 0, 0], [1, 2, 3], [1, 2, 4]]], np.uint16))
    colors = with_chunk(colors, b"tRNS", struct.pack(">3H", 1, 2, 3))
    assert decode(colors, LIMIT).tolist() == [[[0, 0, 0], [255, 255, 255], [0, 0, 0]]]


@pytest.mark.parametrize(("depth", "levels"), [(1, 2), (2, 4), (4, 16)])
def test_a_grey_of_few_bits_may_be_called_transparent(depth: int, levels: int) -> None:
    header = struct.pack(">IIBBBBB", 2, 1, depth, 0, 0, 0, 0)
    row = bytes([0, (levels // 2) << (8 - depth) | 0 << (8 - 2 * depth)])  # a middle grey, and black
    chunks = (
        (b"IHDR", header),
        (b"tRNS", struct.pack(">H", levels // 2)),
        (b"IDAT", zlib.compress(row)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, payload) for name, payload in chunks)
    assert decode(data, LIMIT)[0, :, 0].tolist() == [255, 0]


def test_a_16_bit_animation_shows_its_default_image() -> None:
    picture = photograph()
    data = png_of_16_bits(picture.astype(np.uint16) * 257)
    other = png_of_16_bits(np.zeros((48, 64, 3), np.uint16))
    frame = struct.pack(">IIIIIHHBB", 0, 64, 48, 0, 0, 1, 10, 0, 0)
    end = data.index(b"IEND") - 4
    pixels = other[other.index(b"IDAT") + 4 : other.index(b"IEND") - 8]
    animated = data[:end] + png_chunk(b"fcTL", frame) + png_chunk(b"fdAT", struct.pack(">I", 1) + pixels) + data[end:]
    np.testing.assert_array_equal(decode(with_chunk(animated, b"acTL", struct.pack(">II", 1, 0)), LIMIT), picture)


@pytest.mark.parametrize("depth", [8, 16])
def test_long_profiles_and_texts_cost_no_png(depth: int) -> None:
    picture = photograph()
    data = encoded(picture, "PNG") if depth == 8 else png_of_16_bits(picture.astype(np.uint16) * 257)
    long = zlib.compress(bytes(3 << 20))
    for name, payload in (
        (b"iCCP", b"profile\0\0" + long),
        (b"zTXt", b"Comment\0\0" + long),
        (b"iTXt", b"Comment\0\1\0\0\0" + long),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + bytes(3 << 20)),
        (b"tEXt", b"Comment\0" + bytes(65 << 20)),
    ):
        np.testing.assert_array_equal(decode(with_chunk(data, name, payload), LIMIT), picture)


def test_the_texts_of_a_png_that_say_where_it_is_up_are_read() -> None:
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    data = with_chunk(encoded(photograph(), "PNG"), b"iTXt", xmp)
    np.testing.assert_array_equal(decode(data, LIMIT), np.rot90(photograph(), -1))


def test_what_a_tiff_says_of_its_size_is_not_believed() -> None:
    data = tiff(photograph(8, 8).astype(np.uint16))

    def saying(tag: int, number: int) -> bytes:
        place = next(10 + 12 * n for n in range(20) if data[10 + 12 * n : 12 + 12 * n] == struct.pack("<H", tag))
        return data[: place + 8] + struct.pack("<I", number) + data[place + 12 :]

    with pytest.raises(UndecodableImage, match=r"4000000000 x 8 = 32000000000 pixels are more than data\.max_pixels"):
        decode(saying(256, 4_000_000_000), LIMIT)
    for tag, number in ((256, 100_000), (257, 100_000), (277, 200), (277, 7), (273, 2**31)):
        with pytest.raises(UndecodableImage):
            decode(saying(tag, number), LIMIT)
    for length in (7, 2**31):  # of the only strip, which lies where the file ends
        np.testing.assert_array_equal(decode(saying(279, length), LIMIT, (0.0, 255.0)), photograph(8, 8))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiles_are_no_larger_than_the_image(dtype: type[np.generic]) -> None:
    tiled = written_tiff(np.zeros((16, 16, 3), dtype), planarconfig="contig", tile=(16, 16))
    for tag in (322, 323):
        place = tiled.index(struct.pack("<HHI", tag, 4, 1))
        tiled = tiled[: place + 8] + struct.pack("<I", 32_000) + tiled[place + 12 :]
    with pytest.raises(UndecodableImage, match="tiles of 32000 x 32000 pixels are larger than the image"):
        decode(tiled, LIMIT)


def test_a_large_deep_image_takes_three_bytes_a_pixel_besides_its_values() -> None:
    side = 1500
    data = written_tiff(np.zeros((side, side, 3), np.uint16), compression="zlib", planarconfig="contig")
    decode(data, side**2)  # the libraries are imported
    tracemalloc.start()
    decode(data, side**2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (6 + 3 + 2) * side**2


def test_a_value_range_fits_images_that_use_at_most_a_quarter_of_their_type() -> None:
    def images(*highest: int, dtype: str = "u2", lowest: int = 0) -> list[bytes]:
        return [tiff(np.array([[lowest, high]], dtype)) for high in highest]

    assert fitting_value_range(images(100, 4095, 3000), LIMIT) == (0, 4095)
    assert fitting_value_range(images(4096), LIMIT) == (0, 8191)
    assert fitting_value_range(images(16383), LIMIT) == (0, 16383)
    assert fitting_value_range(images(4095, 16384), LIMIT) is None
    assert fitting_value_range(images(3000, dtype="i2", lowest=-1024), LIMIT) == (-4096, 4095)
    assert fitting_value_range(images(30_000, dtype="i2"), LIMIT) is None
    assert fitting_value_range(images(65535, dtype="u4"), LIMIT) == (0, 65535)
    assert fitting_value_range([png_of_16_bits(np.array([[[7, 1000, 900]]], np.uint16))], LIMIT) == (0, 1023)


def test_no_value_range_is_for_images_that_are_black_broken_floats_or_of_8_bits() -> None:
    dim = tiff(np.array([[0, 1000]], np.uint16))
    shallow = encoded(photograph() // 8, "PNG")
    silent = [shallow, b"", tiff(np.ones((2, 2), np.float32)), dim[:60], tiff(np.zeros((2, 2), np.uint16))]
    assert fitting_value_range(silent, LIMIT) is None
    assert fitting_value_range([*silent, dim, *silent], LIMIT) == (0, 1023)


def test_images_are_looked_at_until_one_uses_more_of_its_type() -> None:
    seen = list[int]()

    def contents() -> Iterator[bytes]:
        for number, high in enumerate((1000, 65535, 1000)):
            seen.append(number)
            yield tiff(np.array([[0, high]], np.uint16))

    assert fitting_value_range(contents(), LIMIT) is None
    assert seen == [0, 1]


def test_floats_need_a_value_range() -> None:
    with pytest.raises(UndecodableImage, match=r"set data\.value_range"):
        decode(tiff(np.zeros((2, 2), np.float32)), LIMIT)


def test_deep_cmyk_is_refused_rather_than_shown_in_wrong_colours() -> None:
    with pytest.raises(UndecodableImage, match="kind 5 with 16 bits"):
        decode(tiff(np.zeros((2, 2, 4), np.uint16), photometric=5), LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF"])
def test_truncated_images_are_undecodable(kind: str) -> None:
    data = encoded(photograph(), kind)
    for length in (len(data) * 2 // 3, 20, 5):
        with pytest.raises(UndecodableImage):
            decode(data[:length], LIMIT)


@pytest.mark.parametrize("values", [np.zeros((9, 9), np.uint16), np.zeros((9, 9, 3), np.float32)])
def test_truncated_deep_images_are_undecodable(values: NDArray[Any]) -> None:
    with pytest.raises(UndecodableImage):
        decode(tiff(values)[:100], LIMIT, (0.0, 1.0))


def test_an_empty_file_is_undecodable() -> None:
    with pytest.raises(UndecodableImage, match="the file is empty"):
        decode(b"", LIMIT)


@pytest.mark.parametrize("data", [b"hello world", b"<svg></svg>", b"%PDF-1.4", b"\0" * 100, b"\x1f\x8b\x08"])
def test_other_content_is_undecodable(data: bytes) -> None:
    with pytest.raises(UndecodableImage, match="is no JPEG, PNG, WebP, AVIF, BMP, TIFF or GIF"):
        decode(data, LIMIT)


def test_the_content_names_the_extension() -> None:
    suffixes = {
        ".avif": "AVIF",
        ".jpg": "JPEG",
        ".png": "PNG",
        ".webp": "WEBP",
        ".bmp": "BMP",
        ".tif": "TIFF",
        ".gif": "GIF",
    }
    for suffix, kind in suffixes.items():
        assert extension(encoded(photograph(), kind)) == suffix


def test_a_format_that_is_not_read_is_named() -> None:
    box = b"\0\0\0\x1cftyp"
    for content, name in (
        (box + b"heic\0\0\0\0mif1heic", "HEIC"),
        (box + b"mif1\0\0\0\0mif1miafheic", "HEIC"),
        (b"\xff\x0a" + bytes(20), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (encoded(photograph(), "JPEG2000"), "JPEG 2000"),
    ):
        with pytest.raises(UndecodableImage, match=f"the content is {name}, and is no JPEG, PNG, .*; convert it"):
            decode(content, LIMIT)


def test_avif_may_name_a_general_brand_first() -> None:
    data = encoded(photograph(), "AVIF")
    general = data[:8] + b"mif1" + data[12:]
    assert extension(general) == ".avif"
    np.testing.assert_array_equal(decode(general, LIMIT), decode(data, LIMIT))


def test_a_pillow_without_avif_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photograph(), "AVIF")
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    with pytest.raises(UndecodableImage, match="this Pillow reads no AVIF; install one that does"):
        decode(data, LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF"])
def test_the_pixel_limit_is_named(kind: str) -> None:
    data = encoded(photograph(48, 64), kind)
    assert decode(data, 48 * 64).shape == (48, 64, 3)
    with pytest.raises(UndecodableImage, match=r"64 x 48 = 3072 pixels are more than data\.max_pixels 3071"):
        decode(data, 48 * 64 - 1)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_decompression_bomb_is_refused_by_its_header(depth: int) -> None:
    with pytest.raises(UndecodableImage, match=r"60000 x 60000 = 3600000000 pixels .* data\.max_pixels 178956970"):
        decode(png_without_pixels(60000, 60000, depth), 178_956_970)


def test_the_limit_may_lie_above_pillows_own() -> None:
    side = 14_000
    assert side * side > 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where Image.open refuses
    with pytest.raises(UndecodableImage, match="broken png content"):
        decode(png_without_pixels(side, side, 8), side * side)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"dpi": (72, 72)}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_broken_metadata_cost_no_image(kind: str, options: dict[str, object]) -> None:
    broken = encoded(photograph(), kind, exif=b"Exif\0\0no header of a TIFF", **options)
    np.testing.assert_array_equal(decode(broken, LIMIT), by_pillow(encoded(photograph(), kind, **options)))


def test_pillows_warnings_stay_inside() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description that is long enough to lie behind the directory"
    data = bytearray(encoded(photograph(), "JPEG", exif=exif))
    place = data.index(b"a description") - 12
    data[place : place + 4] = b"\xff\xff\xff\x7f"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(bytes(data), LIMIT).shape == (48, 64, 3)
        assert decode(encoded(Image.new("P", (2, 2)), "PNG", transparency=b"\0"), LIMIT).shape == (2, 2, 3)


def test_threads_that_decode_leave_the_warnings_of_others_and_the_filters_as_they_were() -> None:
    noisy = encoded(photograph(300, 300), "TIFF")
    noisy = noisy.replace(struct.pack("<HHI", 284, 3, 1), struct.pack("<HHI", 284, 3, 2))  # two planar configurations
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="too many entries"):
            Image.open(io.BytesIO(noisy)).load()
        before = list(warnings.filters)
        with ThreadPoolExecutor(4) as pool:
            decoded = [pool.submit(decode, noisy, LIMIT) for _ in range(40)]
            while not all(future.done() for future in decoded):
                with pytest.raises(UserWarning, match="not of Pillow"):
                    warnings.warn("not of Pillow", stacklevel=1)
            assert all(np.array_equal(future.result(), photograph(300, 300)) for future in decoded)
        assert warnings.filters == before


def test_libraries_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    values = photograph(9, 9).astype(np.uint16)
    data = png_of_16_bits(values)
    row = bytes(1 + 9 * 6)
    long = data[:33] + png_chunk(b"IDAT", zlib.compress(row * 10)) + png_chunk(b"IEND", b"")
    with caplog.at_level(logging.DEBUG):
        imagecodecs.png_decode(long)
        assert "Too much image data" in caplog.text
        caplog.clear()
        assert not decode(long, LIMIT).any()
        with pytest.raises(UndecodableImage):
            decode(tiff(values)[:200], LIMIT)
        imagecodecs.png_decode(long)
    assert caplog.text.count("Too much image data") == 1


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_broken_content_is_undecodable_or_an_image(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "deep PNG", "deep TIFF"]))
    deep = photograph(8, 9).astype(np.uint16)
    if kind == "deep PNG":
        content = bytearray(png_of_16_bits(deep))
    elif kind == "deep TIFF":
        content = bytearray(written_tiff(deep, compression=data.draw(st.sampled_from([None, "lzw", "zlib"]))))
    else:
        content = bytearray(encoded(photograph(8, 9), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    assert min(header_size(bytes(content))) >= 1
    with contextlib.suppress(UndecodableImage):
        pixels = decode(bytes(content), LIMIT)
        assert pixels.shape[2] == 3
        assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "data",
    [
        *(
            encoded(Image.fromarray(photograph(37, 51)).convert(mode), kind, **options)
            for mode, kind, options in (
                ("RGB", "JPEG", {}),
                ("RGB", "JPEG", {"progressive": True}),
                ("L", "JPEG", {}),
                ("CMYK", "JPEG", {}),
                ("RGB", "PNG", {}),
                ("P", "PNG", {}),
            )
        ),
        png_of_16_bits(photograph(37, 51).astype(np.uint16)),
    ],
)
def test_the_header_of_a_jpeg_or_png_has_the_size_that_decoding_gives(data: bytes) -> None:
    assert header_size(data) == decode(data, LIMIT).shape[:2] == (37, 51)


@pytest.mark.parametrize("width", [0, 7, 2**31 - 1, 2**32 - 1])
def test_any_header_gives_a_size_that_w_can_be_drawn_for(width: int) -> None:
    png = png_without_pixels(width, width, 8)
    for data in (png, png[:20], b""):
        sample_views(AugmentConfig(), 0, 0, np.array([0]), np.array([header_size(data)]))
