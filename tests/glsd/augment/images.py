"""Images to augment, and Pillow's and torchvision's way of augmenting them, as the published code does."""

import math

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from glsd.augment.vector import PHOTOMETRIC_FIELDS
from glsd.config import AugmentConfig

_ADJUSTMENTS = {
    "brightness": transforms.adjust_brightness,
    "contrast": transforms.adjust_contrast,
    "saturation": transforms.adjust_saturation,
    "hue": transforms.adjust_hue,
}
SMALL = AugmentConfig(global_size=32, local_sizes=(16,), num_local_crops=(3,))


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, an edge and some grain: what bicubic filters and colour changes act on."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    phases, frequencies = rng.uniform(0, 6, (2, 3)), rng.uniform(2, 9, (2, 3))
    waves = np.sin(frequencies[0] * x[..., None] + phases[0]) * np.cos(frequencies[1] * y[..., None] + phases[1])
    image = 128 + 100 * waves + 40 * (x > 0.4)[..., None] + rng.normal(0, 6, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def vector(**fields: float) -> np.ndarray:
    """A row of `pho` that does nothing but what `fields` say."""
    identity = {"brightness": 1, "contrast": 1, "saturation": 1} | {f"jitter_{place + 1}": place for place in range(4)}
    values = identity | fields
    return np.array([values.get(name, 0) for name in PHOTOMETRIC_FIELDS], np.float32)


def pillow_geometric(image: np.ndarray, geo: np.ndarray) -> np.ndarray:
    """G by Pillow."""
    left, top, right, bottom, height, width, flip = (int(value) for value in geo)
    crop = transforms.resized_crop(
        Image.fromarray(image), top, left, bottom - top, right - left, [height, width], InterpolationMode.BICUBIC
    )
    crop = transforms.hflip(crop) if flip in (1, 3) else crop
    return np.asarray(transforms.vflip(crop) if flip in (2, 3) else crop)


def pillow_photometric(crop: np.ndarray, pho: np.ndarray, threshold: int = 128) -> np.ndarray:
    """P by Pillow and torchvision."""
    w = dict(zip(PHOTOMETRIC_FIELDS, pho.tolist(), strict=True))
    image = Image.fromarray(crop)
    if w["jitter"]:
        for place in range(1, 5):
            name = list(_ADJUSTMENTS)[int(w[f"jitter_{place}"])]
            image = _ADJUSTMENTS[name](image, w[name])
    if w["grayscale"]:
        image = transforms.rgb_to_grayscale(image, 3)
    if w["blur_radius"]:
        image = image.filter(ImageFilter.GaussianBlur(w["blur_radius"]))
    if w["solarize"]:
        image = ImageOps.solarize(image, threshold)
    return np.asarray(image)


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two images of 0..255."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
