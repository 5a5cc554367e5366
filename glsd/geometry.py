"""From w_geo to the original image's grid (Sec. 3.4.3): positions e, cell diagonals and the distance threshold s.

A crop is described by `geo` = [ul_x, ul_y, lr_x, lr_y, h, w, f]: its box in pixels of the original upright image,
which covers [ul_x, lr_x) x [ul_y, lr_y), the size it is resized to, and f = horizontal flip + 2 * vertical flip (the
paper has the horizontal one only). Pixel i of the original image lies at coordinate i, so its edges are at i - 1/2 and
i + 1/2. Everything is in closed form: no position map is ever cropped or resized. What is done with positions is in
`glsd.matching`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def positions(geo: Float[Tensor, "*batch 7"], grid: tuple[int, int]) -> Float[Tensor, "*batch height width 2"]:
    """Sec. 3.4.3's e: where the centre of each location's patch lies in the original image, as (x, y) in pixels.

    Along an axis, location k of n of an unflipped crop lies at ul + (k + 1/2) * size / n - 1/2; a flip reverses k.
    `grid` is the (height, width) of the dense representation; the size the crop was resized to does not matter.

    Raises:
        ValueError: the grid has no location.
    """
    height, width = _checked(grid)
    ul_x, ul_y, lr_x, lr_y, _, _, flip = geo.unbind(-1)
    x = _centers(ul_x, lr_x, width, flip % 2 == 1)  # (..., W)
    y = _centers(ul_y, lr_y, height, flip >= 2)  # (..., H)
    shape = (*geo.shape[:-1], height, width)
    return torch.stack((x[..., None, :].expand(shape), y[..., :, None].expand(shape)), dim=-1)


def cell_diagonals(geo: Float[Tensor, "*batch 7"], grid: tuple[int, int]) -> Float[Tensor, "*batch"]:
    """Length of the diagonal of a local representation (Sec. 3.4.3), from e_k to the adjacent diagonal e, in pixels.

    Raises:
        ValueError: the grid has no location.
    """
    height, width = _checked(grid)
    ul_x, ul_y, lr_x, lr_y, _, _, _ = geo.unbind(-1)
    return (((lr_x - ul_x) / width).square() + ((lr_y - ul_y) / height).square()).sqrt()


def matching_threshold(
    geo_s: Float[Tensor, "*#batch 7"],
    grid_s: tuple[int, int],
    geo_t: Float[Tensor, "*#batch 7"],
    grid_t: tuple[int, int],
) -> Float[Tensor, "*#batch"]:
    """Eq. 6's s: half the larger of the two views' cell diagonals, in pixels of the original; leading axes broadcast.

    Raises:
        ValueError: a grid has no location.
    """
    return torch.maximum(cell_diagonals(geo_s, grid_s), cell_diagonals(geo_t, grid_t)) / 2


def _centers(
    start: Float[Tensor, "*batch"], end: Float[Tensor, "*batch"], num_cells: int, flipped: Tensor
) -> Float[Tensor, "*batch cells"]:
    k = torch.arange(num_cells, dtype=start.dtype, device=start.device)
    k = torch.where(flipped[..., None], num_cells - 1 - k, k)
    return start[..., None] + (k + 0.5) * (end - start)[..., None] / num_cells - 0.5


def _checked(grid: tuple[int, int]) -> tuple[int, int]:
    if min(grid) < 1:
        raise ValueError(f"grid {grid} must be (height, width) with at least one location")
    return grid
