"""Encoded images for tests, and TIFFs of kinds that no library writes."""

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photograph(height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours and some noise, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phases = rng.uniform(0, 6, (3, 1, 1))
    waves = 120 + 100 * np.sin(x / 9 + phases) * np.cos(y / 7 + phases) + rng.normal(0, 4, (3, height, width))
    return np.ascontiguousarray(waves.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def encoded(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    """The image as a file of this kind."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int = 0) -> bytes:
    """A small JPEG, another for each seed."""
    return encoded(photograph(12, 16, seed), "JPEG")


def padded(data: bytes) -> bytes:
    """The image and more than a mebibyte after its end, which decoders do not read: two rows of Parquet are packed."""
    return data + bytes(1 << 20)


def write_jpegs(folder: Path, *names: str) -> None:
    """A JPEG under each name, with the folders it takes."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(seed))


def tiff(values: NDArray[Any], orientation: int = 1, photometric: int | None = None) -> bytes:
    """An uncompressed TIFF of one strip: (height, width) or (height, width, 3 or 4) of any number type."""
    height, width, channels = (*values.shape, 1)[:3]
    bits, kind = values.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    colors = (1 if channels == 1 else 2) if photometric is None else photometric
    tags: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [bits] * channels),
        (259, "H", [1]),
        (262, "H", [colors]),
        (273, "I", [0]),
        (274, "H", [orientation]),
        (277, "H", [channels]),
        (278, "I", [height]),
        (279, "I", [values.nbytes]),
        *([(338, "H", [2])] if channels == 4 and colors == 2 else []),
        (339, "H", [kind] * channels),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    long_values = b"".join(_packed(kind, numbers) for _, kind, numbers in tags if len(_packed(kind, numbers)) > 4)
    tags[5] = (273, "I", [start + len(long_values)])
    directory = struct.pack("<H", len(tags))
    for tag, kind_letter, numbers in tags:
        value = _packed(kind_letter, numbers)
        directory += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind_letter], len(numbers))
        if len(value) > 4:
            directory += struct.pack("<I", start)
            start += len(value)
        else:
            directory += value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + long_values + values.tobytes()


def _packed(kind: str, numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}{kind}", *numbers)


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
