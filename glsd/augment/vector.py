"""The augmentation vector w = [w_geo, w_pho] (Sec. 3.2): what is known of a view before any pixel is touched.

`geo` is [ul_x, ul_y, lr_x, lr_y, h, w, f]: the crop box [ul_x, lr_x) x [ul_y, lr_y) in integer pixels of the original
upright image, the size that it is resized to, and f = horizontal flip + 2 * vertical flip. `pho` has the columns of
`PHOTOMETRIC_FIELDS`; a factor that is not applied has its identity value, so that the columns say all that happens.
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float32

GEOMETRIC_FIELDS: Final = ("ul_x", "ul_y", "lr_x", "lr_y", "h", "w", "f")
"""Columns of `geo`."""

PHOTOMETRIC_FIELDS: Final = (
    "jitter_1",  # the four operations of the jitter in the order of their application, as indices of JITTER_OPERATIONS
    "jitter_2",
    "jitter_3",
    "jitter_4",
    "brightness",  # factors, 1 leaves the crop as it is
    "contrast",
    "saturation",
    "hue",  # turns of the colour circle, 0 leaves the crop as it is
    "jitter",  # 1 where the four above are applied
    "grayscale",  # 1 where colour is removed
    "blur_radius",  # standard deviation of the Gaussian in pixels of the crop, 0 is no blur
    "solarize",  # 1 where values from the threshold upwards are inverted
)
"""Columns of `pho`, in the order of their application after the jitter's."""

JITTER_OPERATIONS: Final = ("brightness", "contrast", "saturation", "hue")
"""What the values of the columns jitter_1 to jitter_4 stand for."""


class ViewVectors(NamedTuple):
    """w of all views of a batch, in the order g1, g2, locals by size."""

    geo: Float32[np.ndarray, "batch views 7"]
    pho: Float32[np.ndarray, "batch views 12"]
