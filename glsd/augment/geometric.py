"""G, the geometric part of an augmentation (Sec. 3.2): crop, bicubic resize, flip, from w_geo only.

The resize is torch's antialiased bicubic on uint8 with channels last, which is Pillow's filter in integers (72 dB). The
order of the calls that lead to it matters: with the permutation first, or the new axis made by numpy (of stride 0),
torch does not see that channels are last and takes nearly twice the time.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch.nn import functional

_FLIP_CODES = {1: 1, 2: 0, 3: -1}  # f -> OpenCV's: around the vertical axis, the horizontal axis, both


@torch.inference_mode()
def crop_into(
    image: UInt8[np.ndarray, "height width 3"],
    geo: Float32[np.ndarray, "views 7"],
    out: Sequence[UInt8[np.ndarray, "_ _ 3"]],
) -> None:
    """Apply G with `geo` to `image`, writing view v into `out[v]`, an array of shape (h, w, 3).

    `out` are C-contiguous arrays, such as slices of a batch's buffer, so that a crop is written once, where it travels.
    """
    for (ul_x, ul_y, lr_x, lr_y, h, w, f), target in zip(geo.astype(np.int64).tolist(), out, strict=True):
        # Copied by numpy: torch would copy as well, in three times the time.
        crop = image[ul_y:lr_y, ul_x:lr_x].copy()
        channels_last = torch.from_numpy(crop)[None].permute(0, 3, 1, 2)
        resized = functional.interpolate(channels_last, (h, w), mode="bicubic", antialias=True)
        del crop, channels_last  # or this crop would be kept while the next one is copied
        pixels = resized[0].permute(1, 2, 0).numpy()
        if f:
            cv2.flip(pixels, _FLIP_CODES[f], dst=target)
        else:
            target[...] = pixels
