"""Algorithm 2 (multi-crop): w ~ D_aug for each view, then x_v = P(G(x, w_geo), w_pho).

Two global crops and N_L local crops, in the order g1, g2, locals by size. `multicrop` makes the views of one image,
`multicrop_batch` those of a micro-batch, and `ViewBatch` the same image by image, so that each may be decoded when its
turn has come. A crop is written once, into the buffer it travels in, as uint8 with its w.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Integer, UInt8

from glsd.augment.distributions import sample_views
from glsd.augment.geometric import crop_into
from glsd.augment.photometric import photometric_in_place
from glsd.config import AugmentConfig


class Views(NamedTuple):
    """The views of one image and the w that made them."""

    global_crops: UInt8[np.ndarray, "2 size size 3"]
    local_crops: list[UInt8[np.ndarray, "_ _ _ 3"]]
    """One array (n, s, s, 3) for each size of local crop."""
    geo: Float32[np.ndarray, "views 7"]
    pho: Float32[np.ndarray, "views 12"]


def multicrop(
    image: UInt8[np.ndarray, "height width 3"], config: AugmentConfig, seed: int, epoch: int, image_id: int
) -> Views:
    """All views of one upright RGB image, photometrics applied."""
    batch = multicrop_batch([image], config, seed, epoch, np.array([image_id]), photometrics="worker")
    global_crops, *local_crops = (batch[f"crops_{group}"][0] for group in range(len(config.groups)))
    return Views(global_crops, local_crops, batch["geo"][0], batch["pho"][0])


def multicrop_batch(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    config: AugmentConfig,
    seed: int,
    epoch: int,
    image_ids: Integer[np.ndarray, " batch"],
    photometrics: Literal["worker", "device"],
) -> dict[str, np.ndarray]:
    """All views of a micro-batch of B upright RGB images.

    P is applied here ("worker"), or left to `photometric_device` where the crops are used ("device"). Returned are
    `crops_g (B, n, s, s, 3)` uint8 for each group g of `config.groups`, `geo (B, V, 7)` and `pho (B, V, 12)` float32.
    """
    sizes = np.array([image.shape[:2] for image in images], np.int64).reshape(len(images), 2)
    views = ViewBatch(config, seed, epoch, image_ids, sizes, photometrics)
    for row, (image_id, image) in enumerate(zip(image_ids.tolist(), images, strict=True)):
        views.crop(row, image_id, image)
    return views.arrays()


class ViewBatch:
    """The views of a micro-batch, of which one image at a time need be there.

    w depends on an image's size, and drawing it for all images at once takes a seventh of the time of drawing it for
    each. So it is drawn for the sizes that are expected, as headers tell them, and again for an image that turns out
    to be of another size, or another image.
    """

    def __init__(
        self,
        config: AugmentConfig,
        seed: int,
        epoch: int,
        image_ids: Integer[np.ndarray, " batch"],
        sizes: Integer[np.ndarray, "batch 2"],
        photometrics: Literal["worker", "device"],
    ):
        """Draw w for images of the `sizes` (height, width), in pixels; otherwise as `multicrop_batch`.

        Raises:
            ValueError: an image without pixels is expected.
        """
        self._config, self._seed, self._epoch = config, seed, epoch
        self._photometrics = photometrics
        self._expected = list(zip(image_ids.tolist(), map(tuple, sizes.tolist()), strict=True))
        self._w = sample_views(config, seed, epoch, image_ids, sizes)
        self._groups = [
            np.empty((len(image_ids), num_views, size, size, 3), np.uint8) for size, num_views in config.groups
        ]

    def crop(self, row: int, image_id: int, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Make the views of the image at `row` of the micro-batch: G, and P where it belongs to the worker.

        Raises:
            ValueError: an image without pixels.
        """
        if (image_id, image.shape[:2]) != self._expected[row]:
            w = sample_views(self._config, self._seed, self._epoch, np.array([image_id]), np.array([image.shape[:2]]))
            self._w.geo[row], self._w.pho[row] = w.geo[0], w.pho[0]
        crops = [crop for group in self._groups for crop in group[row]]
        crop_into(image, self._w.geo[row], crops)
        if self._photometrics == "worker":
            for crop, pho in zip(crops, self._w.pho[row], strict=True):
                photometric_in_place(crop, pho, self._config)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `multicrop_batch` returns, once the views of every image have been made."""
        return {f"crops_{index}": group for index, group in enumerate(self._groups)} | self._w._asdict()
