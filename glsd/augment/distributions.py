"""D_aug (Sec. 3.2, Algorithm 2): the distributions that w is drawn from, before any pixel is seen.

One generator per image, keyed by (seed, epoch, image_id), fills a table of uniforms with a row for each view; all that
follows is a pure function of that table, vectorised over images and views. So w of an image depends on nothing else in
its batch, and a view's w not on how many views follow it. The random resized crop is torchvision's: ten attempts, then
a central crop.
"""

import numpy as np
from jaxtyping import Float64, Int64, Integer

from glsd.augment.vector import GEOMETRIC_FIELDS, PHOTOMETRIC_FIELDS, ViewVectors
from glsd.config import AugmentConfig

_ATTEMPTS = 10
_COLUMNS = (
    *(f"area_{attempt}" for attempt in range(_ATTEMPTS)),
    *(f"aspect_{attempt}" for attempt in range(_ATTEMPTS)),
    *("x", "y", "horizontal_flip", "vertical_flip"),
    *("order_brightness", "order_contrast", "order_saturation", "order_hue"),
    *("jitter", "brightness", "contrast", "saturation", "hue"),
    *("grayscale", "blur", "blur_radius", "solarize"),
)
_COLUMN = {name: index for index, name in enumerate(_COLUMNS)}


def sample_views(
    config: AugmentConfig,
    seed: int,
    epoch: int,
    image_ids: Integer[np.ndarray, " batch"],
    sizes: Integer[np.ndarray, "batch 2"],
) -> ViewVectors:
    """Draw w ~ D_aug for every view of every image, of the `sizes` (height, width) in pixels.

    The seed is any integer; the epoch and the identities of images are 0 or more.

    Raises:
        ValueError: an image without pixels.
    """
    if sizes.size and sizes.min() < 1:
        image = int(np.argmax(sizes.min(axis=1) < 1))
        height, width = sizes[image]
        raise ValueError(
            f"image {image_ids[image]} is {height} x {width} pixels; augmentation needs at least one each way"
        )
    uniforms = np.empty((len(image_ids), config.num_views, len(_COLUMNS)))
    for table, image_id in zip(uniforms, image_ids.tolist(), strict=True):
        np.random.default_rng((seed % 2**64, epoch, image_id)).random(out=table)
    return ViewVectors(geo=_geometric(config, uniforms, sizes), pho=_photometric(config, uniforms))


def _geometric(
    config: AugmentConfig, uniforms: Float64[np.ndarray, "batch views columns"], sizes: Integer[np.ndarray, "batch 2"]
) -> np.ndarray:
    num_locals = config.num_views - 2
    scales = np.array([config.global_scale] * 2 + [config.local_scale] * num_locals)  # (V, 2)
    side = np.repeat([size for size, _ in config.groups], [num_views for _, num_views in config.groups])  # (V,)
    boxes = _random_resized_boxes(uniforms, sizes, scales, config.aspect_ratio)  # (B, V, 4)

    geo = np.empty((*uniforms.shape[:2], len(GEOMETRIC_FIELDS)), np.float32)
    geo[..., :4] = boxes
    geo[..., 4:6] = side[:, None]
    geo[..., 6] = (uniforms[..., _COLUMN["horizontal_flip"]] < config.horizontal_flip) + 2 * (
        uniforms[..., _COLUMN["vertical_flip"]] < config.vertical_flip
    )
    return geo


def _random_resized_boxes(
    uniforms: Float64[np.ndarray, "batch views columns"],
    sizes: Integer[np.ndarray, "batch 2"],
    scales: Float64[np.ndarray, "views 2"],
    aspect_ratio: tuple[float, float],
) -> Int64[np.ndarray, "batch views 4"]:
    """Box [ul_x, ul_y, lr_x, lr_y) of each view: the first of ten draws of (area, aspect) that fits into the image."""
    height = sizes[:, None, None, 0]  # (B, 1, 1)
    width = sizes[:, None, None, 1]
    share = _between(uniforms[..., :_ATTEMPTS], scales[:, None, 0], scales[:, None, 1])
    area = share * (height * width)  # (B, V, attempts)
    aspect = np.exp(_between(uniforms[..., _ATTEMPTS : 2 * _ATTEMPTS], *np.log(aspect_ratio)))
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = np.argmax(fits, axis=-1)[..., None]
    found = fits.any(axis=-1)  # (B, V)
    h, w, height, width = _take(h, first), _take(w, first), height[..., 0], width[..., 0]
    x = np.floor(uniforms[..., _COLUMN["x"]] * (width - w + 1)).astype(np.int64)
    y = np.floor(uniforms[..., _COLUMN["y"]] * (height - h + 1)).astype(np.int64)

    narrow, wide = (width < aspect_ratio[0] * height), (width > aspect_ratio[1] * height)
    central_w = np.where(wide, np.maximum(np.rint(height * aspect_ratio[1]).astype(np.int64), 1), width)
    central_h = np.where(narrow, np.maximum(np.rint(width / aspect_ratio[0]).astype(np.int64), 1), height)
    w, h = np.where(found, w, central_w), np.where(found, h, central_h)
    x = np.where(found, x, (width - central_w) // 2)
    y = np.where(found, y, (height - central_h) // 2)
    return np.stack([x, y, x + w, y + h], axis=-1)


def _photometric(config: AugmentConfig, uniforms: Float64[np.ndarray, "batch views columns"]) -> np.ndarray:
    num_locals = config.num_views - 2

    def drawn(name: str) -> np.ndarray:
        return uniforms[..., _COLUMN[name]]

    def per_view(triple: tuple[float, float, float]) -> np.ndarray:
        return np.array([*triple[:2], *[triple[2]] * num_locals])

    jitter = drawn("jitter") < config.jitter_probability
    order = uniforms[..., _COLUMN["order_brightness"] : _COLUMN["order_hue"] + 1].argsort(axis=-1)
    columns: dict[str, np.ndarray] = {f"jitter_{place + 1}": order[..., place] for place in range(4)}
    for name in ("brightness", "contrast", "saturation"):
        strength = getattr(config, name)
        columns[name] = np.where(jitter, _between(drawn(name), max(0.0, 1 - strength), 1 + strength), 1.0)
    columns["hue"] = np.where(jitter, _between(drawn("hue"), -config.hue, config.hue), 0.0)
    columns["jitter"] = jitter
    columns["grayscale"] = drawn("grayscale") < config.grayscale_probability
    blurred = drawn("blur") < per_view(config.blur_probability)
    columns["blur_radius"] = np.where(blurred, _between(drawn("blur_radius"), *config.blur_radius), 0.0)
    columns["solarize"] = drawn("solarize") < per_view(config.solarize_probability)
    return np.stack([columns[name] for name in PHOTOMETRIC_FIELDS], axis=-1).astype(np.float32)


def _between(uniform: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    return low + uniform * (high - low)


def _take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, index, axis=-1)[..., 0]
