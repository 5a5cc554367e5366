"""What an encoder looks at of an image (Sec. 4.3); without torch, for tasks that decode images and embed none."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from glsd.config import EvaluationConfig

_STRIP_PIXELS = 2**22
"""A resized image with more pixels is a strip, of which only the crop is made. That costs equality with torchvision to
the last bit, and 2**22 are 64 times as long as wide at the default `evaluation.resize`."""


def evaluation_crop(
    image: UInt8[np.ndarray, "height width 3"], evaluation: EvaluationConfig
) -> UInt8[np.ndarray, "crop crop 3"]:
    """Bicubic resize of the shorter side to `evaluation.resize`, then the central `evaluation.crop` pixels."""
    resize, crop = evaluation.resize, evaluation.crop
    shorter = min(image.shape[:2])
    # The longer side is rounded down and the crop's corner to the nearest even, as torchvision does.
    height, width = (resize * side // shorter for side in image.shape[:2])
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    if height * width > _STRIP_PIXELS:
        return _resized_part(image, (height, width), (top, left), crop)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + crop, top + crop)))


def _resized_part(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int], corner: tuple[int, int], crop: int
) -> UInt8[np.ndarray, "crop crop 3"]:
    """The square of side `crop` at `corner`, (top, left), of the image resized to `size`, (height, width)."""
    box = []  # (start, stop) in the image, for its rows and its columns
    for axis in (0, 1):
        start, stop = (place * image.shape[axis] / size[axis] for place in (corner[axis], corner[axis] + crop))
        # Pillow keeps a box in single precision, which cannot tell half pixels apart far out in a long strip.
        support = math.ceil(2 * max(1, (stop - start) / crop)) + 1  # bicubic
        first = max(0, math.floor(start) - support)
        image = image.take(range(first, min(image.shape[axis], math.ceil(stop) + support)), axis)
        box.append((start - first, stop - first))
    (top, bottom), (left, right) = box
    part = Image.fromarray(image).resize((crop, crop), Image.Resampling.BICUBIC, (left, top, right, bottom))
    return np.array(part)
