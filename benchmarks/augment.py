"""Augmentation of JPEGs, images a second on one core: ours against a faithful Pillow and torchvision pipeline.

Both sides go from encoded bytes to a batch. The peer does what the published code does: Pillow decodes; torchvision
draws the parameters of each crop, crops, resizes, flips, jitters and greys; Pillow blurs and solarises; ToTensor and
Normalize; for each crop a map of positions, two float channels cut out of a coordinate grid, resized and flipped like
the crop; and the data loader's collation. What it draws is thrown away for the w that ours drew, so that the pixels can
be compared. Drawing, position maps and collation are printed apart.

Ours is timed twice: with photometrics left to the device that trains, and with everything on the CPU. Each pass sends
the same images through all three in turn, on one thread; times are of the processor, and a ratio is that of two passes
side by side. Before its turn each side takes one unit that is not timed, which finds caches and memory as another side
left them: the allocator gives the 100 MB and more that the peer has freed back to the system at some later call, which
would be one of ours. Nothing is timed before both sides agree on the pixels.

Any folder of JPEGs will do:

    python benchmarks/augment.py --images FOLDER [--preset paper] [--passes 9] [--num_images 64]
"""

import argparse
import io
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image, ImageFilter, ImageOps
from torch.utils.data import default_collate
from torchvision import transforms as transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from glsd.augment.distributions import sample_views
from glsd.augment.multicrop import ViewBatch
from glsd.augment.vector import PHOTOMETRIC_FIELDS, ViewVectors
from glsd.config import AugmentConfig
from glsd.data.images import decode, header_size
from glsd.experiments import load_config

COLUMN = {name: index for index, name in enumerate(PHOTOMETRIC_FIELDS)}
JITTER = (
    transforms.adjust_brightness,
    transforms.adjust_contrast,
    transforms.adjust_saturation,
    transforms.adjust_hue,
)
GRID_SIDE = 4096  # the published code's is 10000, 800 MB; a crop of it costs the same
MAX_PIXELS = 100_000_000
GEOMETRIC_P5_DB, FULL_MEAN_DB = 55.0, 41.0


def peer_geometric(image: Image.Image, geo: np.ndarray) -> Image.Image:
    left, top, right, bottom, height, width, flip = (int(value) for value in geo)
    crop = transforms.resized_crop(
        image, top, left, bottom - top, right - left, [height, width], InterpolationMode.BICUBIC
    )
    crop = transforms.hflip(crop) if flip % 2 else crop
    return transforms.vflip(crop) if flip >= 2 else crop


def peer_photometric(crop: Image.Image, pho: np.ndarray, config: AugmentConfig) -> Image.Image:
    w = dict(zip(PHOTOMETRIC_FIELDS, pho.tolist(), strict=True))
    if w["jitter"]:
        for position in range(1, 5):
            operation = int(w[f"jitter_{position}"])
            crop = JITTER[operation](crop, float(pho[COLUMN["brightness"] + operation]))
    if w["grayscale"]:
        crop = transforms.rgb_to_grayscale(crop, 3)
    if w["blur_radius"]:
        crop = crop.filter(ImageFilter.GaussianBlur(w["blur_radius"]))
    return ImageOps.solarize(crop, config.solarize_threshold) if w["solarize"] else crop


def peer_positions(grid: torch.Tensor, height: int, width: int, geo: np.ndarray) -> torch.Tensor:
    left, top, right, bottom, crop_height, crop_width, flip = (int(value) for value in geo)
    crop = transforms.resized_crop(
        grid[:, :height, :width],
        top,
        left,
        bottom - top,
        right - left,
        [crop_height, crop_width],
        InterpolationMode.BICUBIC,
    )
    crop = transforms.hflip(crop) if flip % 2 else crop
    return transforms.vflip(crop) if flip >= 2 else crop


def peer_draws(image: Image.Image, config: AugmentConfig, view: int) -> None:
    """Draws of one view with torchvision's own functions, at their cost; the published code makes the same."""
    transform.RandomResizedCrop.get_params(
        image, list(config.global_scale if view < 2 else config.local_scale), list(config.aspect_ratio)
    )
    strengths = (config.brightness, config.contrast, config.saturation)
    if torch.rand(1) < config.jitter_probability:
        ranges = [[max(0.0, 1 - strength), 1 + strength] for strength in strengths]
        transform.ColorJitter.get_params(*ranges, [-config.hue, config.hue])
    for _ in range(3 + (view == 1)):  # flip, grayscale, blur, solarize
        torch.rand(1)


class Peer:
    """The published code's way; `seconds` sums up what the whole and its parts took."""

    def __init__(self, config: AugmentConfig):
        self.config = config
        axis = torch.arange(GRID_SIDE, dtype=torch.float32).expand(GRID_SIDE, GRID_SIDE)
        self.grid = torch.stack((axis, axis.T))
        self.seconds = {"whole": 0.0, "drawing": 0.0, "position maps": 0.0, "collation": 0.0}

    def batch(self, data: Sequence[bytes], w: ViewVectors) -> list[list[torch.Tensor]]:
        """Crops and position maps of a batch, collated."""
        with self.timed("whole"):
            samples = [self.sample(*arguments) for arguments in zip(data, w.geo, w.pho, strict=True)]
            with self.timed("collation"):
                collated: list[list[torch.Tensor]] = default_collate(samples)
            return collated

    def sample(self, data: bytes, geo: np.ndarray, pho: np.ndarray) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Crops and position maps of one image."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        with self.timed("drawing"):
            for view in range(len(geo)):
                peer_draws(image, self.config, view)
        crops = []
        for view_geo, view_pho in zip(geo, pho, strict=True):
            crop = peer_photometric(peer_geometric(image, view_geo), view_pho, self.config)
            crops.append(
                transforms.normalize(transforms.to_tensor(crop), list(self.config.mean), list(self.config.std))
            )
        with self.timed("position maps"):
            maps = [peer_positions(self.grid, image.height, image.width, view_geo) for view_geo in geo]
        return crops, maps

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the processor time of the block to a part."""
        started = time.process_time()
        yield
        self.seconds[part] += time.process_time() - started


def ours(data: Sequence[bytes], config: AugmentConfig, where: Literal["worker", "device"]) -> dict[str, np.ndarray]:
    """A unit as the stream makes it."""
    sizes = np.array([header_size(content) for content in data])
    views = ViewBatch(config, 0, 0, np.arange(len(data)), sizes, where)
    for row, content in enumerate(data):
        views.crop(row, row, decode(content, MAX_PIXELS))
    return views.arrays()


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0


def agreement(data: Sequence[bytes], w: ViewVectors, config: AugmentConfig) -> tuple[list[float], list[float]]:
    """Decibels of every crop against the peer's: after G, and after P on the CPU."""
    cropped, finished = ours(data, config, "device"), ours(data, config, "worker")
    geometric, full = [], []
    for index, content in enumerate(data):
        image = Image.open(io.BytesIO(content)).convert("RGB")
        view = 0
        for group, (_, num_views) in enumerate(config.groups):
            for position in range(num_views):
                crop = peer_geometric(image, w.geo[index, view])
                geometric.append(decibels(np.asarray(crop), cropped[f"crops_{group}"][index, position]))
                crop = peer_photometric(crop, w.pho[index, view], config)
                full.append(decibels(np.asarray(crop), finished[f"crops_{group}"][index, position]))
                view += 1
    return geometric, full


def seconds(side: Callable[[slice], object], units: Sequence[slice]) -> float:
    """Processor time that a side takes for the units, after one that is not timed."""
    side(units[0])
    started = time.process_time()
    for unit in units:
        side(unit)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs, searched below too")
    parser.add_argument("--preset", default="paper", help="whose crops and photometrics")
    parser.add_argument("--num_images", type=int, default=64, help="images a pass")
    parser.add_argument("--unit_size", type=int, default=32, help="images of a batch")
    parser.add_argument("--passes", type=int, default=9)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    config = load_config(arguments.preset).augment
    paths = sorted(
        path for path in arguments.images.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"} and path.is_file()
    )[: arguments.num_images]
    if not paths:
        raise SystemExit(f"{arguments.images} has no JPEG")
    data = [path.read_bytes() for path in paths]
    sizes = np.array([Image.open(path).size[::-1] for path in paths])
    w = sample_views(config, 0, 0, np.arange(len(data)), sizes)

    checked = data[: arguments.unit_size]
    geometric, full = agreement(checked, ViewVectors(*(part[: len(checked)] for part in w)), config)
    p5 = float(np.percentile(geometric, 5))
    print(f"G against Pillow, same w: {np.mean(geometric):.1f} dB mean, {p5:.1f} dB p5, {min(geometric):.1f} dB min")
    print(f"P after G, all on the CPU: {np.mean(full):.1f} dB mean, {np.percentile(full, 5):.1f} dB p5")
    if p5 < GEOMETRIC_P5_DB or np.mean(full) < FULL_MEAN_DB:
        raise SystemExit(f"the sides disagree: {GEOMETRIC_P5_DB} dB (p5) and {FULL_MEAN_DB} dB (mean) are asked for")

    peer = Peer(config)
    units = [slice(start, start + arguments.unit_size) for start in range(0, len(data), arguments.unit_size)]

    def run_peer(unit: slice) -> None:
        peer.batch(data[unit], ViewVectors(w.geo[unit], w.pho[unit]))

    def run_ours(unit: slice, where: Literal["worker", "device"]) -> None:
        ours(data[unit], config, where)

    sides = (run_peer, partial(run_ours, where="device"), partial(run_ours, where="worker"))
    times = np.array([[seconds(side, units) for side in sides] for _ in range(arguments.passes)])  # (passes, sides)

    rates = len(data) / np.median(times, axis=0)
    whole, *parts = peer.seconds.items()
    shares = ", ".join(f"{part} {100 * spent / whole[1]:.0f} %" for part, spent in parts)
    print(f"peer: {rates[0]:.1f} images/s; of its time {shares}")
    for side, name in ((1, "photometrics left to the device"), (2, "all on the CPU")):
        ratios = times[:, 0] / times[:, side]
        print(
            f"ours, {name}: {rates[side]:.1f} images/s, x{statistics.median(ratios):.1f} "
            f"(x{ratios.min():.1f} to x{ratios.max():.1f} over {arguments.passes} passes)"
        )
    pixels = sum(size * size * num_views for size, num_views in config.groups)
    theirs = pixels * (3 + 2) * 4
    travelling = pixels * 3 + w.geo[0].nbytes + w.pho[0].nbytes
    print(f"bytes an image: {travelling} against {theirs}, x{theirs / travelling:.1f} fewer")
    median = [int(side) for side in np.median(sizes, axis=0)]
    print(
        f"{len(data)} JPEGs, median {median[1]} x {median[0]}, {sum(map(len, data)) / len(data) / 1e3:.0f} KB; "
        f"preset {arguments.preset}; one thread of {processor()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Pillow {Image.__version__}, OpenCV {cv2.__version__}"
    )


def processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
