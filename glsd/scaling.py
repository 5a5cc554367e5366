"""Settings that follow from the number of images, for sets smaller than ImageNet: the preset `small_data`.

The paper's settings are for 1.28 million images. `scaled` moves those that a small set cannot bear; as the set grows it
reaches the paper's values, but for the epochs, of which a large set gets a hundred. Every rule stands beside its
reason. They are rules of thumb, to begin with.
"""

import math
from typing import Any

from glsd.config import SCALED, Config


def scaled(config: Config, num_images: int) -> Config:
    """The configuration with the settings named in `auto` derived from the number of images, and `auto` empty.

    Settings depend on each other as they then are: with `optim.epochs` given, the warm-ups follow it.

    Raises:
        ValueError: the result is no possible configuration.
    """
    values = config.flat()
    for key in SCALED:
        if key in config.auto:
            values[key] = _derived(key, num_images, values)
    return config.with_overrides({key: values[key] for key in config.auto} | {"auto": ()})


def _derived(key: str, num_images: int, values: dict[str, Any]) -> int | float:
    batch_size, epochs = int(values["optim.batch_size"]), int(values["optim.epochs"])
    match key:
        case "optim.batch_size":
            # Sixteen steps an epoch or more, so that few images are left out of one; the paper's 512 at most.
            return _power_of_two(num_images / 16, 32, 512)
        case "optim.epochs":
            # Small sets lack steps, not epochs: 1.5 million images seen, within 100 and 800 epochs.
            return min(800, max(100, round(1.5e6 / num_images)))
        case "optim.warmup_epochs":
            # The paper's share, 10 epochs of 300.
            return math.ceil(epochs / 30)
        case "optim.teacher_momentum":
            # The teacher remembers 1 / (1 - lambda) steps: an epoch, within 50 and the paper's 250 steps.
            return round(1 - 1 / min(250, max(50, num_images / batch_size)), 4)
        case "model.num_prototypes":
            # More prototypes than images would leave some without any; the paper's 65536 at most.
            return _power_of_two(num_images, 1024, 65536)
        case "objective.teacher_temperature":
            # A flat teacher has little to say, and a small set has few steps to learn from it: as sharp as the paper's
            # first epoch up to 10,000 images, the paper's 0.07 from 100,000 on.
            share = min(1.0, max(0.0, math.log10(num_images / 10_000)))
            return round(0.04 + 0.03 * share, 4)
        case "objective.teacher_temperature_warmup_epochs":
            # The paper's share, 30 epochs of 300.
            return math.ceil(epochs / 10)
        case "checkpoint_every_epochs":
            # Devices wait for seconds while a checkpoint is written: 100 steps between two, but ten epochs at most.
            keep, steps = values["keep_every_epochs"], max(1, num_images // batch_size)
            possible = [every for every in (1, 2, 5, 10) if every <= epochs and not (keep and keep % every)]
            return next((every for every in possible if every * steps >= 100), possible[-1])
    raise AssertionError(key)


def _power_of_two(at_most: int | float, low: int, high: int) -> int:
    return int(min(high, max(low, 2 ** math.floor(math.log2(at_most)))))
