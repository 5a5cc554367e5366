import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms.v2 import functional as torchvision

from glsd.config import LinearConfig
from glsd.evaluation.linear import (
    LinearProbe,
    initial_probe,
    linear_accuracy,
    linear_crop,
    linear_learning_rate,
    linear_step,
)
from glsd.runs.records import Accuracy
from tests.processes import run_in_two

CPU = torch.device("cpu")
CONFIG = LinearConfig(batch_size=128, base_lr=0.5)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(num: int, dim: int = 3, num_classes: int = 4, num_images: int = 5) -> list[tuple[Tensor, Tensor]]:
    return [
        (normal(num_images, dim, seed=seed), torch.arange(num_images).mul(seed + 1) % num_classes)
        for seed in range(num)
    ]


def steps(probe: LinearProbe, some: list[tuple[Tensor, Tensor]], total_steps: int) -> list[float]:
    return [float(linear_step(probe, probe.layer, z, y, len(y), total_steps, CONFIG)) for z, y in some]


def oracle_steps(
    weight: list[list[float]], bias: list[float], some: list[tuple[Tensor, Tensor]], total_steps: int
) -> list[float]:
    """SGD with momentum 0.9 in plain loops, changing weight and bias; the mean cross entropy before each step."""
    num_classes, dim = len(weight), len(weight[0])
    velocity = [[0.0] * (dim + 1) for _ in weight]  # of the weights and, last, of the bias
    losses = []
    for step, (z, labels) in enumerate(some):
        gradient = [[0.0] * (dim + 1) for _ in weight]
        loss = 0.0
        for x, label in zip(z.tolist(), labels.tolist(), strict=True):
            logits = [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
            total = sum(math.exp(logit) for logit in logits)
            loss -= (logits[label] - math.log(total)) / len(z)
            for c in range(num_classes):
                error = (math.exp(logits[c]) / total - (c == label)) / len(z)
                for d, value in enumerate([*x, 1.0]):
                    gradient[c][d] += error * value
        losses.append(loss)
        lr = 0.5 * 128 / 256 * (1 + math.cos(math.pi * step / total_steps)) / 2
        for c in range(num_classes):
            for d in range(dim + 1):
                velocity[c][d] = 0.9 * velocity[c][d] + gradient[c][d]
                if d < dim:
                    weight[c][d] -= lr * velocity[c][d]
                else:
                    bias[c] -= lr * velocity[c][d]
    return losses


def test_steps_are_momentum_sgd_without_decay() -> None:
    probe = initial_probe(3, 4, CONFIG, CPU)
    weight, bias = probe.layer.weight.tolist(), probe.layer.bias.tolist()
    expected_losses = oracle_steps(weight, bias, batches(3), total_steps=4)
    assert steps(probe, batches(3), total_steps=4) == pytest.approx(expected_losses, rel=1e-5)
    torch.testing.assert_close(probe.layer.weight.detach(), torch.tensor(weight))
    torch.testing.assert_close(probe.layer.bias.detach(), torch.tensor(bias))
    assert probe.step == 3


def test_the_layer_starts_from_small_keyed_weights_and_zero_biases() -> None:
    layer = initial_probe(500, 100, CONFIG, CPU).layer
    assert abs(layer.weight.std().item() / 0.01 - 1) < 0.02
    assert not layer.bias.any()
    assert torch.equal(layer.weight, initial_probe(500, 100, CONFIG, CPU).layer.weight)
    other_seed = CONFIG.model_copy(update={"seed": 1})
    assert not torch.equal(layer.weight, initial_probe(500, 100, other_seed, CPU).layer.weight)


def test_a_resumed_probe_goes_on_as_if_never_interrupted() -> None:
    whole, interrupted = initial_probe(3, 4, CONFIG, CPU), initial_probe(3, 4, CONFIG, CPU)
    steps(whole, batches(6), total_steps=6)
    steps(interrupted, batches(6)[:4], total_steps=6)
    resumed = initial_probe(3, 4, CONFIG.model_copy(update={"seed": 7}), CPU)
    resumed.load_state_dict(interrupted.state_dict())
    steps(resumed, batches(6)[4:], total_steps=6)
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    assert torch.equal(resumed.layer.bias, whole.layer.bias)


def shares_of_workers(rank: int, store: str, results: str) -> None:
    """Worker `rank` of two has one image of the first step's five and four of the second's, or none and all."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    probe = initial_probe(3, 4, CONFIG, CPU)
    layer = DistributedDataParallel(probe.layer)
    losses = []
    for (z, y), first in zip(batches(2), ([0, 1, 5], [0, 0, 5]), strict=True):
        mine = slice(first[rank], first[rank + 1])
        losses.append(linear_step(probe, layer, z[mine], y[mine], 5, 4, CONFIG))
    total = torch.stack(losses)
    torch.distributed.all_reduce(total)
    torch.distributed.destroy_process_group()
    torch.save({"weight": probe.layer.weight.detach(), "losses": total}, f"{results}{rank}")


@pytest.mark.slow
def test_workers_with_unequal_shares_learn_what_one_worker_learns(tmp_path: Path) -> None:
    alone = initial_probe(3, 4, CONFIG, CPU)
    losses = steps(alone, batches(2), total_steps=4)
    run_in_two(shares_of_workers, str(tmp_path / "store"), str(tmp_path / "result"))
    for rank in range(2):
        result = torch.load(tmp_path / f"result{rank}")
        torch.testing.assert_close(result["weight"], alone.layer.weight.detach())
        torch.testing.assert_close(result["losses"], torch.tensor(losses))


def test_the_learning_rate_falls_on_a_cosine_from_its_scaled_peak_to_zero() -> None:
    config = LinearConfig(base_lr=1e-3, batch_size=1024)
    rates = [linear_learning_rate(step, 8, config) for step in range(9)]
    assert (rates[0], rates[4]) == pytest.approx((4e-3, 2e-3))
    assert rates[8] == pytest.approx(0, abs=1e-18)
    assert rates == sorted(rates, reverse=True)


@settings(max_examples=40, deadline=None)
@given(num_classes=st.integers(1, 9), num_images=st.integers(1, 12), seed=st.integers(0, 1000))
def test_accuracy_counts_classes_in_the_order_of_their_logits(num_classes: int, num_images: int, seed: int) -> None:
    logits = normal(num_images, num_classes, seed=seed).mul(2).round()  # with ties
    labels = torch.randint(num_classes, (num_images,), generator=torch.Generator().manual_seed(seed))
    right = {1: 0, 5: 0}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranking = sorted(range(num_classes), key=lambda c, row=row: (-row[c], c))
        for top in right:
            right[top] += label in ranking[:top]
    found = linear_accuracy(logits, labels, num_classes)
    assert found == Accuracy(top1=right[1] / num_images, top5=right[5] / num_images, num_top=min(5, num_classes))


def test_logits_that_are_not_finite_are_no_accuracy() -> None:
    with pytest.raises(ValueError, match=r"not finite.* lower base_lr"):
        linear_accuracy(torch.tensor([[0.0, math.nan]]), torch.tensor([1]), 2)


def test_labels_outside_the_classes_and_no_images_are_errors() -> None:
    with pytest.raises(ValueError, match=r"labels are in \[0, 2\], but 2 classes are numbered 0 to 1"):
        linear_accuracy(torch.zeros(2, 2), torch.tensor([0, 2]), 2)
    with pytest.raises(ValueError, match="labels are empty"):
        linear_accuracy(torch.zeros(0, 2), torch.tensor([], dtype=torch.long), 2)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(image: np.ndarray, top: int, left: int, height: int, width: int, size: int) -> np.ndarray:
    """Torchvision's crop of this box."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    return (
        torchvision.resized_crop(pixels, top, left, height, width, [size, size], antialias=True)
        .permute(1, 2, 0)
        .numpy()
    )


def test_a_crop_of_the_whole_image_is_torchvisions_resize_of_it_or_its_mirror() -> None:
    # A square image, all of its area: the first draws of the aspect ratio that fit are those near 1, or else the crop
    # is central and whole.
    image, config = noise(8, 8), LinearConfig(scale=(1.0, 1.0))
    expected = resized(image, 0, 0, 8, 8, 5)
    mirrored = 0
    for image_id in range(60):
        crop = linear_crop(image, 5, config, 0, image_id)
        flipped = np.array_equal(crop, expected[:, ::-1])
        assert flipped or np.array_equal(crop, expected)
        mirrored += flipped
    assert 15 < mirrored < 45


@pytest.mark.parametrize("size", [7, 40])
def test_a_strip_gives_its_central_crop(size: int) -> None:
    # 10 x 400: a box of 8 % of the area or more and an aspect ratio up to 4/3 is at least 15 rows high.
    image = noise(10, 400)
    expected = resized(image, 0, (400 - 13) // 2, 10, 13, size)
    crop = linear_crop(image, size, LinearConfig(), 3, 11)
    assert np.array_equal(crop, expected) or np.array_equal(crop, expected[:, ::-1])


def ramps(side: int) -> np.ndarray:
    """An image whose first two channels are x and y."""
    y, x = np.mgrid[:side, :side].astype(np.uint8)
    return np.stack([x, y, np.zeros_like(x)], -1)


def test_boxes_have_the_areas_aspects_and_flips_of_a_random_resized_crop() -> None:
    size, side = 64, 256
    config = LinearConfig(scale=(0.2, 0.5))
    crops = np.stack([linear_crop(ramps(side), size, config, 1, image_id) for image_id in range(400)]).astype(float)
    # Pixel centres are (i + 1/2) / size of the box, so the middle half of the crop spans half of the box.
    width = 2 * (crops[:, 32, 48, 0] - crops[:, 32, 16, 0])
    height = 2 * (crops[:, 48, 32, 1] - crops[:, 16, 32, 1])
    area, aspect = np.abs(width) * height / side**2, np.abs(width) / height
    assert (width < 0).mean() == pytest.approx(0.5, abs=0.08)
    assert area.min() > 0.19
    assert area.max() < 0.51
    assert np.quantile(area, [0.25, 0.5, 0.75]) == pytest.approx([0.275, 0.35, 0.425], abs=0.03)
    assert aspect.min() > 0.72
    assert aspect.max() < 1.39
    assert np.quantile(np.log(aspect), [0.25, 0.5, 0.75]) == pytest.approx([-0.144, 0, 0.144], abs=0.04)


def test_a_crop_is_a_function_of_seed_epoch_and_image() -> None:
    image = noise(50, 60)

    def crop(seed: int, epoch: int, image_id: int) -> bytes:
        return linear_crop(image, 16, LinearConfig(seed=seed), epoch, image_id).tobytes()

    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({crop(*key) for key in keys}) == 4
    assert [crop(*key) for key in keys] == [crop(*key) for key in keys]


@pytest.mark.parametrize("scale", [(0.5, 2.0), (0.5, 0.1)])
def test_a_crop_has_at_most_the_images_area(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"linear\.scale must be \[low, high\] with 0 < low <= high <= 1"):
        LinearConfig(scale=scale)
