"""Correspondence (Sec. 4.7): is the location of view b that is most similar to one of view a the right one?

Two kinds of pairs have a known truth. Of one crop, view b is a flip with other colours (`transformed_view`,
`flip_truth`), so that a cell's centre falls onto a cell's centre and a perfect matching has accuracy 1 and error 0 px.
Of two photographs of a flat scene, a homography says where each point of one lies in the other
(`image_pair_correspondence`, `homography_truth`). Pixel i lies at coordinate i, as in `glsd.geometry`; points are
(x, y).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from glsd.augment.distributions import sample_views
from glsd.augment.photometric import photometric_worker
from glsd.config import AugmentConfig
from glsd.encoder.encoder import Encoder
from glsd.matching import match_by_similarity
from glsd.runs.records import Matched


class Correspondence(NamedTuple):
    """The matching of each of B pairs of views and how right it is; shares and errors are means over locations.

    Locations of view a whose true location is not in view b are left out of all of them; a pair of views without any
    other location has NaN.
    """

    accuracy: Float[Tensor, " batch"]
    """Share of locations whose matched cell is the one that contains the true location."""
    error_px: Float[Tensor, " batch"]
    """Mean distance from the matched cell's centre to the true location, in pixels of view b."""
    accuracy_top: Float[Tensor, " batch"]
    """`accuracy` over the `num_top` most similar pairs of locations."""
    error_top_px: Float[Tensor, " batch"]
    """`error_px` over the `num_top` most similar pairs of locations."""
    num_top: Int64[Tensor, " batch"]
    """How many pairs of locations are in the two above: ten, or all where there are fewer."""
    num_pairs: Int64[Tensor, " batch"]
    """How many locations of view a have a true location in view b."""
    xy: Float[Tensor, "height width 2"]
    """Centres of view a's cells in pixels of view a."""
    matched_xy: Float[Tensor, "batch height width 2"]
    """Centre of the matched cell of each location of view a, in pixels of view b."""
    similarity: Float[Tensor, "batch height width"]
    """Its cosine similarity."""
    truth: Float[Tensor, "batch height width 2"]
    """The true location in pixels of view b; NaN outside of it."""
    correct: Float[Tensor, "batch height width"]
    """1 where the matched cell contains the true location, 0 where it does not, NaN where there is none."""


class PairCorrespondence(NamedTuple):
    """Two images as the encoder saw them, and their correspondence, of a batch of one."""

    view_a: UInt8[np.ndarray, "size size 3"]
    view_b: UInt8[np.ndarray, "size size 3"]
    correspondence: Correspondence


def transformed_view(
    crop: UInt8[np.ndarray, "size size 3"], seed: int, image_id: int, config: AugmentConfig | None = None
) -> UInt8[np.ndarray, "size size 3"]:
    """View b of a crop: always flipped left-right, then colour jitter and grayscale, keyed by the image.

    EsViT's analysis makes it this way, without blur and solarisation. By default the colours are those of the paper's
    training, however a model was trained: so the numbers of models compare.
    """
    config = config or AugmentConfig()
    colours = config.model_copy(update={"blur_probability": (0.0, 0.0, 0.0), "solarize_probability": (0.0, 0.0, 0.0)})
    pho = sample_views(colours, seed, 0, np.array([image_id]), np.array([crop.shape[:2]])).pho[0, 0]
    return photometric_worker(crop[:, ::-1], pho, config)


def flip_truth(grid: tuple[int, int], size: int) -> Float[Tensor, "height width 2"]:
    """Where each location of a square view of `size` px lies in its left-right mirror image, in pixels.

    >>> flip_truth((1, 2), 8)  # two cells of 4 px, whose centres are at x = 1.5 and 5.5
    tensor([[[5.5000, 3.5000],
             [1.5000, 3.5000]]])
    """
    return cell_centers(grid, size).flip(1)


def homography_truth(
    homography: Float[Tensor, "3 3"], grid_a: tuple[int, int], size_a: int, size_b: int
) -> Float[Tensor, "height width 2"]:
    """Where each location of square view a lies in square view b; NaN outside of view b.

    `homography` takes (x, y, 1) of view a to (x', y', w') of view b, whose point is (x', y') / w'. A point with
    w' <= 0 is behind the second camera (for a homography with w' > 0 where the images overlap, as one with a positive
    last entry has near the origin).

    >>> shift = torch.tensor([[1.0, 0.0, 4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # 4 px to the right
    >>> homography_truth(shift, (1, 2), 8, 8)
    tensor([[[5.5000, 3.5000],
             [   nan,    nan]]])
    """
    centres = cell_centers(grid_a, size_a).double()
    projected = torch.cat([centres, torch.ones_like(centres[..., :1])], -1) @ homography.double().mT
    w = projected[..., 2:]
    xy = projected[..., :2] / w
    inside = (w > 0) & ((xy >= -0.5) & (xy < size_b - 0.5)).all(-1, keepdim=True)
    return torch.where(inside, xy, torch.nan).float()


def cell_centers(grid: tuple[int, int], size: int) -> Float[Tensor, "height width 2"]:
    """Centres of the cells of a square view of `size` px: location k of n lies at (k + 1/2) size / n - 1/2."""
    y, x = ((torch.arange(n) + 0.5) * size / n - 0.5 for n in grid)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def correspondence(
    z_a: Float[Tensor, "batch height_a width_a dim"],
    z_b: Float[Tensor, "batch height_b width_b dim"],
    truth: Float[Tensor, "*#batch height_a width_a 2"],
    size: int,
    num_top: int = 10,
) -> Correspondence:
    """Match each location of view a to the location of view b of highest cosine similarity, and hold it to the truth.

    Args:
        z_a: dense representation of view a.
        z_b: dense representation of view b.
        truth: where each location of view a lies in view b, in pixels; NaN is outside.
        size: side of view b in pixels.
        num_top: how many of the most similar pairs of locations count in `accuracy_top` and `error_top_px`.

    In a view of 8 px and 2 x 2 cells of 4 px, whose centres are at 1.5 and 5.5, three locations out of four find their
    mirror images. The last one, (x, y) = (5.5, 5.5), takes the upper right cell instead of the lower left one: it is
    4 px off in x and in y, and the mean error is sqrt(32) / 4. It is also the least similar one, so the three most
    similar pairs are all right.

    >>> z_a = torch.eye(4).reshape(1, 2, 2, 4)
    >>> z_b = z_a.flip(2).clone()
    >>> z_b[0, 1, 0] = torch.tensor([0.0, 0.0, 0.0, -1.0])  # was like the last location
    >>> z_b[0, 0, 1] = torch.tensor([1.0, 0.0, 0.0, 0.5])  # like the first one, and a little like the last
    >>> found = correspondence(z_a, z_b, flip_truth((2, 2), 8), size=8, num_top=3)
    >>> found.accuracy, found.error_px, found.accuracy_top
    (tensor([0.7500]), tensor([1.4142]), tensor([1.]))
    """
    height_a, width_a = z_a.shape[1:3]
    grid_b = (z_b.shape[1], z_b.shape[2])
    matches = match_by_similarity(z_a.flatten(1, 2), z_b.flatten(1, 2))
    similarity = 1 - matches.distance  # (B, K)
    matched_xy = cell_centers(grid_b, size).to(similarity).flatten(0, 1)[matches.k_star]  # (B, K, 2)
    true_xy = truth.to(similarity).expand(len(z_a), height_a, width_a, 2).flatten(1, 2)

    known = true_xy.isfinite().all(-1)
    cells = (true_xy + 0.5) * torch.tensor(grid_b[::-1]).to(similarity) / size  # floor: (column, row) of the true cell
    column, row = cells.floor().nan_to_num(-1).long().unbind(-1)
    correct = (row * grid_b[1] + column == matches.k_star).to(similarity).where(known, torch.nan)
    error_px = torch.linalg.vector_norm(matched_xy - true_xy, dim=-1)  # NaN where not known

    order = similarity.where(known, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :num_top]
    top_correct, top_error = correct.gather(1, order), error_px.gather(1, order)
    grid_a = (height_a, width_a)
    return Correspondence(
        correct.nanmean(1),
        error_px.nanmean(1),
        top_correct.nanmean(1),
        top_error.nanmean(1),
        known.sum(1).clamp(max=num_top),
        known.sum(1),
        cell_centers(grid_a, size).to(similarity),
        matched_xy.unflatten(1, grid_a),
        similarity.unflatten(1, grid_a),
        true_xy.unflatten(1, grid_a),
        correct.unflatten(1, grid_a),
    )


def mean_correspondence(results: Sequence[Correspondence]) -> Matched:
    """Means over all pairs of views, however they were batched; refused where none has a true location."""
    num_top, num_pairs = (torch.cat([getattr(result, name) for result in results]) for name in ("num_top", "num_pairs"))
    if not bool((num_pairs > 0).any()):
        raise ValueError("no location of a first view has a true location in its second view")
    means = {
        name: torch.cat([getattr(result, name) for result in results]).double().nanmean().item()
        for name in ("accuracy", "error_px", "accuracy_top", "error_top_px")
    }
    return Matched(**means, num_top=int(num_top.max()), num_images=int((num_pairs > 0).sum()))


@torch.no_grad()
def image_pair_correspondence(
    encoder: Encoder,
    image_a: UInt8[np.ndarray, "height_a width_a 3"],
    image_b: UInt8[np.ndarray, "height_b width_b 3"],
    homography: Float[np.ndarray, "3 3"] | None = None,
) -> PairCorrespondence:
    """Correspondence between two images, both resized (not cropped) to squares of `evaluation.crop` pixels.

    Args:
        encoder: whose dense representations are matched.
        image_a: whose locations are matched.
        image_b: where they are looked for.
        homography: takes (x, y, 1) in pixels of image a to image b, as OpenCV has it; None where no truth is known, as
            for two images of different things (Fig. 12), and then accuracies and errors are NaN.
    """
    size = encoder.config.evaluation.crop
    view_a, view_b = (
        np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in (image_a, image_b)
    )
    z_a, z_b = encoder.represent(torch.from_numpy(np.stack([view_a, view_b])))[1].split(1)
    grid = (z_a.shape[1], z_a.shape[2])
    if homography is None:
        truth = torch.full((*grid, 2), torch.nan)
    else:
        resized = _resizing(image_b, size) @ homography @ np.linalg.inv(_resizing(image_a, size))
        truth = homography_truth(torch.from_numpy(resized), grid, size, size)
    return PairCorrespondence(view_a, view_b, correspondence(z_a, z_b, truth, size))


def _resizing(image: UInt8[np.ndarray, "height width 3"], size: int) -> Float[np.ndarray, "3 3"]:
    """Takes pixels of the image to pixels of it resized to a square: x -> (x + 1/2) size / width - 1/2."""
    factors = size / np.array(image.shape[1::-1])  # x, y
    matrix = np.diag([*factors, 1.0])
    matrix[:2, 2] = factors / 2 - 0.5
    return matrix
