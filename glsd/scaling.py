"""Settings that follow from the number of images, for sets smaller than ImageNet: the preset `small_data`.

The paper's settings are for 1.28 million images. `small_data` changes those that do not suit a small set. As the set
grows they reach the paper's values, except the epochs, of which a large set gets a hundred. The reason for each rule
stands beside it. They are rules of thumb.
"""

import math


def small_data(
    num_images: int,
    batch_size: int | None = None,
    epochs: int | None = None,
    keep_every_epochs: int | None = None,
) -> dict[str, int | float]:
    """The settings for that many images by their dotted keys; they follow the batch size and the epochs that are given.

    >>> small_data(2000, epochs=60)["optim.warmup_epochs"]
    2
    """
    if batch_size is None:
        # 16 steps per epoch or more, so that few images are left out of one; at most the paper's 512.
        batch_size = _power_of_two(num_images / 16, 32, 512)
    if epochs is None:
        # Small sets lack steps, not epochs: 1.5 million images seen, within 100 and 800 epochs.
        epochs = min(800, max(100, round(1.5e6 / num_images)))
    # Devices wait for seconds while a checkpoint is written: 100 steps between two, but at most ten epochs.
    every = [e for e in (1, 2, 5, 10) if e <= epochs and not (keep_every_epochs and keep_every_epochs % e)]
    steps_per_epoch = max(1, num_images // batch_size)
    return {
        "optim.batch_size": batch_size,
        "optim.epochs": epochs,
        # The paper's share, 10 epochs of 300.
        "optim.warmup_epochs": math.ceil(epochs / 30),
        # The teacher remembers 1 / (1 - lambda) steps: an epoch, within 50 and the paper's 250 steps.
        "optim.teacher_momentum": round(1 - 1 / min(250, max(50, num_images / batch_size)), 4),
        # More prototypes than images would leave some without any; at most the paper's 65536.
        "model.num_prototypes": _power_of_two(num_images, 1024, 65536),
        # A flat teacher has little to say, and a small set has few steps to learn from it: as sharp as the paper's
        # first epoch up to 10,000 images, the paper's 0.07 from 100,000 on.
        "objective.teacher_temperature": round(0.04 + 0.03 * min(1.0, max(0.0, math.log10(num_images / 10_000))), 4),
        # The paper's share, 30 epochs of 300.
        "objective.teacher_temperature_warmup_epochs": math.ceil(epochs / 10),
        "checkpoint_every_epochs": next((e for e in every if e * steps_per_epoch >= 100), every[-1]),
    }


def _power_of_two(at_most: int | float, low: int, high: int) -> int:
    return int(min(high, max(low, 2 ** math.floor(math.log2(at_most)))))
