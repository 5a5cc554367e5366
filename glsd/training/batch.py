"""A unit of the stream, a dictionary of arrays, as the tensors that a step trains on."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from glsd.augment.photometric import normalize, photometric_device
from glsd.config import AugmentConfig

Unit = Mapping[str, np.ndarray]
"""`unit`, `image_id` (m,) int64; `crops_0`, `crops_1`, ... (m, V_g, S, S, 3) uint8; `geo` (m, V, 7); `pho` (m, V, P)
where photometrics are left to the device."""


class Batch(NamedTuple):
    """m images as a step sees them."""

    crops: list[Tensor]
    """One (m, V_g, 3, S, S) normalised float tensor for each group of equal crops, the globals first."""
    geo: Float[Tensor, "images views 7"]
    image_ids: Int64[Tensor, " images"]


def to_device(unit: Unit, augment: AugmentConfig, device: torch.device) -> Batch:
    """Move a unit to the device and finish its crops there: photometrics if still to be done, and normalisation.

    Crops travel as bytes; nothing here waits for the device.
    """
    pho = _moved(unit["pho"], device) if "pho" in unit else None
    crops, first_view = [], 0
    for group, (size, num_views) in enumerate(augment.groups):
        pixels = _moved(unit[f"crops_{group}"], device)  # (m, V_g, S, S, 3)
        flat = pixels.flatten(0, 1)
        if pho is None:
            images = flat.permute(0, 3, 1, 2).float() / 255
        else:
            images = photometric_device(flat, pho[:, first_view : first_view + num_views].flatten(0, 1), augment)
        crops.append(normalize(images, augment).reshape(-1, num_views, 3, size, size))
        first_view += num_views
    return Batch(crops, _moved(unit["geo"], device), _moved(unit["image_id"], device))


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        # The stream's arrays are read-only views of shared memory, and nothing here writes to them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
