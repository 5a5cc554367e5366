"""P, the photometric part of an augmentation (Sec. 3.2), twice from the same w_pho.

Order: jitter (brightness, contrast, saturation, hue in the order that w_pho gives), grayscale, Gaussian blur, solarize.
`photometric_worker` is a chain of OpenCV calls on the uint8 of one crop after another, for CPU workers;
`photometric_device` is a chain of tensor operations on all crops of one size at once, in float and without a wait for
the device, for the device that trains. Both follow Pillow and torchvision, that the reference uses; `normalize` comes
after either.
"""

import math
from functools import cache

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from glsd.augment.vector import JITTER_OPERATIONS, PHOTOMETRIC_FIELDS
from glsd.config import AugmentConfig

_COLUMN = {name: index for index, name in enumerate(PHOTOMETRIC_FIELDS)}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's and OpenCV's grey
_CONTRAST, _SATURATION, _HUE = (JITTER_OPERATIONS.index(name) for name in ("contrast", "saturation", "hue"))
_HUE_STEPS = 255
"""Pillow's steps to the colour circle. It cuts off a turn's fraction of a step, and that of each pixel's hue, which is
half a step on average."""
_CACHED_PIXELS = 2**16
"""Pixels of the crops that `photometric_device` takes at once on a CPU: some 800 KB, which stay in its cache."""
_LEVELS = np.arange(256, dtype=np.float32)


def photometric_worker(
    crops: UInt8[np.ndarray, "*views size size 3"], pho: Float32[np.ndarray, "*views 12"], config: AugmentConfig
) -> UInt8[np.ndarray, "*views size size 3"]:
    """Apply P with `pho` to each crop, on the CPU; a new array."""
    out = np.array(crops, order="C")
    photometric_in_place(out, pho, config)
    return out


def photometric_in_place(
    crops: UInt8[np.ndarray, "*views size size 3"], pho: Float32[np.ndarray, "*views 12"], config: AugmentConfig
) -> None:
    """Apply P with `pho` to each crop of a C-contiguous buffer, in the buffer."""
    views = crops.reshape(-1, *crops.shape[-3:])
    for crop, row in zip(views, pho.reshape(-1, pho.shape[-1]).tolist(), strict=True):
        if row[_COLUMN["jitter"]]:
            for operation in map(int, row[:4]):
                factor = row[_COLUMN["brightness"] + operation]
                if factor != _IDENTITY[operation]:
                    _JITTER[operation](crop, factor)
        if row[_COLUMN["grayscale"]]:
            cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, dst=crop)
        if radius := row[_COLUMN["blur_radius"]]:
            kernel = _gaussian_kernel(radius)
            cv2.sepFilter2D(crop, -1, kernel, kernel, dst=crop, borderType=cv2.BORDER_REPLICATE)
        if row[_COLUMN["solarize"]]:
            cv2.LUT(crop, _solarized(config.solarize_threshold), dst=crop)


def _brightness(crop: np.ndarray, factor: float) -> None:
    cv2.LUT(crop, np.clip(_LEVELS * np.float32(factor), 0, 255).astype(np.uint8), dst=crop)


def _contrast(crop: np.ndarray, factor: float) -> None:
    mean = int(cv2.mean(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    cv2.LUT(crop, np.clip(mean + np.float32(factor) * (_LEVELS - mean), 0, 255).astype(np.uint8), dst=crop)


def _saturation(crop: np.ndarray, factor: float) -> None:
    # Pillow cuts fractions off and OpenCV rounds them.
    matrix = np.full((3, 4), -0.499, np.float32)
    matrix[:, :3] = (1 - factor) * np.array(_LUMA) + factor * np.eye(3)
    cv2.transform(crop, matrix, dst=crop)


def _hue(crop: np.ndarray, turns: float) -> None:
    steps = math.floor(256 / _HUE_STEPS * (math.trunc(_HUE_STEPS * turns) - 0.5))
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(steps % 256)
    cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=crop)


_JITTER = (_brightness, _contrast, _saturation, _hue)
_IDENTITY = (1.0, 1.0, 1.0, 0.0)


def _gaussian_kernel(radius: float) -> Float32[np.ndarray, " taps"]:
    """Normalised samples of a Gaussian of standard deviation `radius`, out to three of them."""
    half = _half_taps(radius)
    offsets = np.arange(-half, half + 1)
    kernel = np.exp(-0.5 * (offsets / radius) ** 2)
    normalised: np.ndarray = kernel / kernel.sum()
    return normalised.astype(np.float32)


def _half_taps(radius: float) -> int:
    return int(np.ceil(3 * radius))


@cache
def _solarized(threshold: int) -> np.ndarray:
    levels = np.arange(256)
    return np.where(levels >= threshold, 255 - levels, levels).astype(np.uint8)


def photometric_device(
    crops: UInt8[Tensor, "crops size size 3"], pho: Float[Tensor, "crops 12"], config: AugmentConfig
) -> Float32[Tensor, "crops 3 size size"]:
    """Apply P with `pho` to all crops at once, on their device, without waiting for it; values in 0..1.

    Pillow rounds to bytes between the steps; here nothing is rounded. Call it outside of autocast, whose bfloat16
    products would cost accuracy in the blur.
    """
    if crops.device.type != "cpu":
        return _photometric(crops, pho.float(), config)
    # A few crops at a time stay in the processor's cache through all steps.
    num_parts = max(1, crops.numel() // (3 * _CACHED_PIXELS))
    parts = zip(crops.tensor_split(num_parts), pho.float().tensor_split(num_parts), strict=True)
    return torch.cat([_photometric(*part, config) for part in parts])


def _photometric(crops: Tensor, pho: Tensor, config: AugmentConfig) -> Tensor:
    x = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255  # (N, 3, S, S)
    parameters = pho[:, :, None, None, None]  # (N, P, 1, 1, 1)
    order, factors = parameters[:, :4], parameters[:, 4:8]
    # Hue is the slow one of the four. Instead of trying it at each place, the other three are tried before and after.
    hue_place = ((order == _HUE) * torch.arange(4, device=x.device)[:, None, None, None]).sum(dim=1)  # (N, 1, 1, 1)
    for place in range(3):
        x = _blended(x, order[:, place], factors, applied=hue_place > place)
    x = _turned(x, _cut_to_steps(factors[:, _HUE]))
    for place in range(1, 4):
        x = _blended(x, order[:, place], factors, applied=hue_place < place)
    x = torch.where(parameters[:, _COLUMN["grayscale"]] > 0, _grey(x), x)
    weights = _blur_weights(pho[:, _COLUMN["blur_radius"]], x.shape[-1], _half_taps(config.blur_radius[1]))
    x = weights[:, None] @ x @ weights[:, None].mT
    # Half a level below the threshold is where a byte would round up to it.
    solarized = (parameters[:, _COLUMN["solarize"]] > 0) & (x >= (config.solarize_threshold - 0.5) / 255)
    return torch.where(solarized, 1 - x, x)


def normalize(x: Float[Tensor, "crops 3 height width"], config: AugmentConfig) -> Float[Tensor, "crops 3 height width"]:
    """Subtract the mean and divide by the standard deviation of each colour channel; `x` in 0..1."""
    return (x - _channels(config.mean, x.dtype, x.device)) / _channels(config.std, x.dtype, x.device)


@cache
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "channels 1 1"]:
    """The values on the device, which each copy to it would wait for."""
    with torch.inference_mode(False):  # made in inference mode, they serve training later
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]  # (N, 1, S, S)


def _blended(x: Tensor, operation: Tensor, factors: Tensor, applied: Tensor) -> Tensor:
    """Brightness, contrast or saturation: all three mix x with black, its mean grey or its grey."""
    factor = factors.gather(1, operation.long()[:, None])[:, 0].where(applied, 1)  # (N, 1, 1, 1)
    grey = _grey(x)
    mean = grey.mean(dim=(2, 3), keepdim=True) * (operation == _CONTRAST)
    return torch.lerp(torch.where(operation == _SATURATION, grey, mean), x, factor).clamp_(0, 1)


def _cut_to_steps(turns: Tensor) -> Tensor:
    """The turn that Pillow makes of one asked for: see `_HUE_STEPS`."""
    return torch.where(turns == 0, turns, ((_HUE_STEPS * turns).trunc() - 0.5) / _HUE_STEPS)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """The hue of HSV, turned; a channel of hue h is V - C * clamp(min(k, 4 - k), 0, 1) with k = (h + n) mod 6."""
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    scale = 1 / chroma.clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )  # (N, S, S), in sixths of a turn
    hue += 6 * turns[:, 0]
    channels = []
    for n in (5, 3, 1):
        k = (hue + n).remainder_(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def _blur_weights(radius: Tensor, size: int, half: int) -> Tensor:
    """(N, size, size): row i has the weights of a line's pixels in blurred pixel i; the edge pixels continue outside.

    A blur is two products with this matrix, whatever the radius, and a radius of 0 gives the identity exactly.
    """
    pixels = torch.arange(size, device=radius.device)
    line = torch.arange(-half, size + half, device=radius.device)
    distance = (line - pixels[:, None]).float()  # (S, S + 2 half)
    sharpness = 1 / radius.clamp(min=1e-3)[:, None, None]
    weights = torch.exp(-0.5 * (distance * sharpness).square()) * (distance.abs() <= half)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    folded = weights[..., half : half + size].clone()
    folded[..., 0] += weights[..., :half].sum(dim=-1)
    folded[..., -1] += weights[..., half + size :].sum(dim=-1)
    return folded
