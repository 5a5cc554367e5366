"""Pictures to draw, and what is found in a drawn figure."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch, Rectangle

from glsd.augment.multicrop import Views, multicrop
from glsd.config import Config
from glsd.experiments import load_config

CONFIG = load_config("demo", {"augment.vertical_flip": 0.5, "augment.local_scale": (0.02, 0.2)})


def photo(height: int = 90, width: int = 130) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 2 % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


def views(seed: int = 0, config: Config = CONFIG) -> Views:
    return multicrop(photo(), config.augment, seed, epoch=0, image_id=0)


def lines(axes: Axes) -> list[PathPatch]:
    return [patch for patch in axes.patches if isinstance(patch, PathPatch)]


def boxes(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def ends_in_pixels(axes: Axes) -> np.ndarray:
    """Where every line between the two images of the axes starts and ends, in pixels of each: (lines, 2, 2)."""
    left, right = axes.images
    paths = [line.get_path().vertices for line in lines(axes)]
    return np.array([[_in_pixels(left, path[0]), _in_pixels(right, path[-1])] for path in paths]).reshape(-1, 2, 2)


def _in_pixels(image: AxesImage, point: np.ndarray) -> list[float]:
    x0, x1, y1, y0 = image.get_extent()
    height, width = image.get_array().shape[:2]
    return [(point[0] - x0) / (x1 - x0) * width - 0.5, (point[1] - y0) / (y1 - y0) * height - 0.5]
