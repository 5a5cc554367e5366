"""Stochastic depth whose masks are keyed instead of drawn (Sec. 4.2: the student drops paths, the teacher none).

A mask is a function of (seed, step, image, view, layer) only: the same whatever else is in the batch, on every
device, with any number of workers and after a resume. `drop_path_keys` folds the first four into one integer per row;
`keep_scales` turns the rows' keys into the factors of every layer at once; `replace_drop_paths` and `dropping_paths`
bring the factors to the layers of a timm model. How rates grow with depth is timm's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from timm.layers.drop import DropPath
from torch import Tensor, nn

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_BITS = 24  # of a uniform number, all of which float32 holds


class KeyedDropPath(nn.Module):
    """A residual branch, times the factor that each row has for this layer: 0 or 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.scales: Tensor | None = None

    def forward(self, x: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        """The branch as it is outside of `dropping_paths`."""
        if self.scales is None:
            return x
        return x * self.scales.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"rate={self.rate:.3f}"


def drop_path_keys(
    seed: int, step: int, image_ids: Int64[Tensor, " images"], num_views: int
) -> Int64[Tensor, "images {num_views}"]:
    """The key of each row of a step's batch, computed on the device of `image_ids` without waiting for it."""
    keys = _mix(torch.full_like(image_ids, seed))
    keys = _mix(keys ^ step)
    keys = _mix(keys ^ image_ids)[:, None]
    return _mix(keys ^ torch.arange(num_views, device=image_ids.device))


def keep_scales(keys: Int64[Tensor, " rows"], rates: Float[Tensor, " layers"]) -> Float[Tensor, "layers rows"]:
    """0 with probability rates[l], else 1 / (1 - rates[l]), so that every layer keeps its expected value."""
    layers = torch.arange(len(rates), device=keys.device)
    uniform = _logical_shift(_mix(keys ^ _mix(layers)[:, None]), 64 - _BITS) * 2.0**-_BITS  # (layers, rows)
    return (uniform >= rates[:, None]) / (1 - rates[:, None])


def replace_drop_paths(model: nn.Module) -> list[KeyedDropPath]:
    """Put a `KeyedDropPath` in the place of every timm `DropPath`, in place; they are returned in order of depth."""
    replaced = []
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, DropPath):
                layer = KeyedDropPath(child.drop_prob)
                setattr(parent, name, layer)
                replaced.append(layer)
    return replaced


@contextmanager
def dropping_paths(layers: Sequence[KeyedDropPath], scales: Float[Tensor, "layers rows"]) -> Iterator[None]:
    """Within it, `layers[l]` multiplies its rows by `scales[l]`."""
    for layer, scale in zip(layers, scales.unbind(), strict=True):
        layer.scales = scale
    try:
        yield
    finally:
        for layer in layers:
            layer.scales = None


def _mix(x: Int64[Tensor, " *shape"]) -> Int64[Tensor, " *shape"]:
    """One step of SplitMix64 (Steele, Lea & Flood 2014): a bijection of 64 bits; int64 products and sums wrap."""
    x = x + _GOLDEN_GAMMA
    x = (x ^ _logical_shift(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _logical_shift(x, 27)) * _MULTIPLIERS[1]
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: Int64[Tensor, " *shape"], bits: int) -> Int64[Tensor, " *shape"]:
    """Right shift that fills with zeros; torch's own fills with the sign."""
    return torch.bitwise_and(x >> bits, 2 ** (64 - bits) - 1)
