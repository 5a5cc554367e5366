"""One image's crops and geometric matchings, as training would see them."""

import torch
from matplotlib.figure import Figure

from glsd.augment.multicrop import multicrop
from glsd.config import Config
from glsd.models.backbone import build_backbone
from glsd.reporting.figures.canvas import WIDTH, Image, blank_figure
from glsd.reporting.figures.crops import crops_row_height, draw_crops_row, view_crops
from glsd.reporting.figures.matchings import draw_matching, geometric_pair
from glsd.reporting.figures.pairs import pair_height


def preview(image: Image, config: Config, seed: int = 0, epoch: int = 0, image_id: int = 0) -> Figure:
    """Crops of one image and the geometric matchings of (g1, g2) and of (g1, a local crop), as training draws them.

    The local crop shown is the one with the largest share of matches that count.

    Raises:
        ValueError: the backbone does not exist or cannot take the crops.
    """
    with torch.device("meta"):  # only its shapes are needed
        backbone = build_backbone(config.model.backbone)
    views = multicrop(image, config.augment, seed, epoch, image_id)
    crops = view_crops(views)
    grids = [backbone.grid(crop.shape[0]) for crop in crops]
    scale = config.objective.threshold_scale
    pairs = [geometric_pair(views, 0, view, grids[0], grids[view], scale) for view in range(1, len(crops))]
    shown = [pairs[0], *sorted(pairs[1:], key=lambda pair: -pair.keep.mean())[:1]]
    top, width = crops_row_height(len(crops)), WIDTH / len(shown)
    figure = blank_figure(top + pair_height(width))
    draw_crops_row(figure, 0.0, image, views.geo, crops)
    for column, pair in enumerate(shown):
        draw_matching(figure, column * width, top, width, pair)
    return figure
