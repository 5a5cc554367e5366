"""Small folders of labelled images, each class a texture under noise, that tests make for themselves."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("checks", "noise", "rings", "stripes")


def picture(kind: str, seed: int) -> np.ndarray:
    """An image of a class, (H, W, 3) uint8; shape, place and colour differ from seed to seed."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(72, 120, 2)
    y, x = np.mgrid[:height, :width] + rng.uniform(0, 40, 2)[:, None, None]
    values = {
        "checks": (x // 8 + y // 8) % 2,
        "noise": rng.uniform(size=(height, width)),
        "rings": np.sin(np.hypot(x - 60, y - 60) / 4) / 2 + 0.5,
        "stripes": x // 6 % 2,
    }[kind]
    noisy = values[..., None] * rng.uniform(20, 80, 3) + rng.normal(100, 60, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def labelled_folder(root: Path, num_images: int = 40, num_corrupt: int = 0) -> Path:
    """A folder with a folder for each class of JPEGs and PNGs in turn; the first images of all are cut short."""
    for number in range(num_images):
        kind = CLASSES[number % len(CLASSES)]
        suffix = "jpg" if number // len(CLASSES) % 2 else "png"
        path = root / kind / f"{number:03d}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(kind, number)).save(path)
        if number < num_corrupt:
            path.write_bytes(path.read_bytes()[:100])
    return root
