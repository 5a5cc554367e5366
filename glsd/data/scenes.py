"""Pairs of photographs of a flat scene with the homography between them: a known truth on real images (Sec. 4.7)."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float64

from glsd.config import DataConfig
from glsd.data.images import UndecodableImage, decode
from glsd.data.lists import Listed, read_csv
from glsd.storage.files import read
from glsd.storage.listing import what_is_at
from glsd.storage.uris import absolute, beside

_COLUMNS: Final = ("image_a", "image_b", "homography")


class Scene(NamedTuple):
    """Two photographs of a flat scene, by path or URI."""

    image_a: str
    image_b: str
    homography: Float64[np.ndarray, "3 3"]
    """Takes (x, y, 1) in pixels of image a to image b, as OpenCV has it."""


def read_scenes(source: str) -> list[Scene]:
    """The pairs that a CSV file lists, in its order.

    Args:
        source: path or URI of a file with the columns `image_a` and `image_b`, paths relative to the file's folder, and
            `homography`, nine numbers with spaces between them, row by row.

    Raises:
        ValueError: there is no such file, a column or an image is missing, or a homography is not nine numbers of an
            invertible matrix; the message names the line.
    """
    uri = absolute(source)
    if what_is_at(uri) != "file":
        raise ValueError(f"{source} is not a file that exists; name a CSV file with the columns {', '.join(_COLUMNS)}")
    listed = read_csv(uri)
    columns = listed.columns
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise ValueError(f"{source} has no column {missing[0]!r}; its first line has {', '.join(columns) or 'nothing'}")
    if not len(listed):
        raise ValueError(f"{source} lists no pair of images below its first line")
    rows = zip(*(columns[name].to_pylist() for name in _COLUMNS), strict=True)
    return [_scene(listed, number, *row) for number, row in enumerate(rows)]


def _scene(listed: Listed, number: int, image_a: str, image_b: str, homography: str) -> Scene:
    paths = [beside(listed.uri, entry.strip()) for entry in (image_a, image_b)]
    for path in paths:
        if what_is_at(path) != "file":
            raise ValueError(f"{listed.where(number)}: {path} is not a file that exists")
    try:
        matrix = np.array(homography.split(), np.float64).reshape(3, 3)
    except ValueError:
        raise ValueError(
            f"{listed.where(number)}: the homography {homography!r} is not nine numbers with spaces between them"
        ) from None
    if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix) < 3:
        raise ValueError(f"{listed.where(number)}: the homography {homography!r} cannot be inverted")
    return Scene(paths[0], paths[1], matrix)


def photographs(scene: Scene, limits: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Both images of a scene; a ValueError names one that cannot be decoded."""
    images = []
    for uri in (scene.image_a, scene.image_b):
        try:
            images.append(decode(read(uri)[0], limits.max_pixels, limits.value_range))
        except UndecodableImage as error:
            raise ValueError(f"{uri}: {error}") from error
    return images[0], images[1]
