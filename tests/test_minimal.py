"""MINIMAL.md does what the library does: the block is taken from the page and trained beside it on the same crops."""

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glsd.config import Config
from glsd.training.batch import Batch, to_device
from glsd.training.schedules import Schedule, schedule
from glsd.training.state import TrainState, initial_state
from glsd.training.step import train_step
from tests.glsd.training.small import small_config, units
from tests.images import labelled_folder

CPU = torch.device("cpu")
PAGE = Path(__file__).parents[1] / "MINIMAL.md"
NAMES = {
    "backbone.model": "f",
    "heads.global": "h_bar",
    "heads.dense": "h",
    "last_layer.weight_g": "g",
    "last_layer.weight_v": "v",
}
"""Of the library and of the page."""


@pytest.fixture(scope="module")
def minimal() -> SimpleNamespace:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert sum(bool(line.strip()) for line in block.splitlines()) <= 125
    names: dict[str, Any] = {"__name__": "minimal"}
    exec(compile(block, PAGE.name, "exec"), names)
    return SimpleNamespace(**names)


def on_the_page(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def started(minimal: SimpleNamespace, config: Config) -> tuple[TrainState, tuple[Any, Any, Any]]:
    """The library and the page with equal weights."""
    state = initial_state(config, CPU)
    student, teacher, optimizer = minimal.build("test_convnext", 24, 32, 16)
    weights = {on_the_page(name): value for name, value in state.student.state_dict().items()}
    student.load_state_dict(weights)
    teacher.load_state_dict(weights)
    return state, (student, teacher, optimizer)


def batches(config: Config) -> list[Batch]:
    return [to_device(unit, config.augment, CPU) for unit, _ in zip(units(config), range(3), strict=False)]


def test_three_steps_give_the_losses_centres_and_weights_of_the_library(minimal: SimpleNamespace) -> None:
    config = small_config(**{"data.unit_size": 4})
    state, networks = started(minimal, config)
    centers = [torch.zeros(24), torch.zeros(24)]
    for step, batch in enumerate(batches(config)):
        now = Schedule(0.002, 0.04 * (step + 1), 0.9, 0.04 + 0.01 * step, step == 0, 1.0)
        losses = train_step(state, [batch], now, config).losses
        views = [view for group in batch.crops for view in group.unbind(1)]
        found = minimal.step(*networks, centers, views, batch.geo, *now[:5])
        assert found == pytest.approx(losses[1:3].tolist(), rel=1e-6)
    # The weights move by up to 6e-3, and differ by up to 8e-7: both sum in float32, in other orders.
    for network, expected in zip(networks, (state.student, state.teacher), strict=False):
        weights = network.state_dict()
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(weights[on_the_page(name)], value, rtol=0, atol=3e-6, msg=name)
    for center, expected_center in zip(centers, state.centers.values(), strict=True):
        torch.testing.assert_close(center, expected_center, rtol=0, atol=1e-7)


def test_the_schedules_are_the_papers(minimal: SimpleNamespace) -> None:
    config = Config()
    for step in (0, 1, 24, 49, 50, 51, 149, 150, 700, 1499):
        expected = schedule(step, config, 5)[:5]
        assert minimal.schedule(step, 5, config.optim.epochs, config.optim.batch_size) == pytest.approx(
            expected, rel=1e-12
        )


def test_the_page_trains_on_a_folder_of_images(
    minimal: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = labelled_folder(tmp_path / "photos", 5)
    shape = ("test_convnext", 24, 32, 16)
    teacher = minimal.main(folder, shape, sizes=(64, 32), num_local=2, batch=2, epochs=2, workers=0)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert all(0 < float(loss) < 2 / 0.1 + math.log(24) for line in lines for loss in line[1:])
    assert all(value.isfinite().all() for value in teacher.state_dict().values())
