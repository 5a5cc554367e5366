"""What a training gives to which nothing happens: in this process, without Ray."""

from pathlib import Path

import pytest
import torch

from glsd.config import Config
from glsd.data.index import build_index
from glsd.data.units import UnitSource, made_in_turn
from glsd.runs.checkpoints import load_checkpoint
from glsd.training.loop import steps
from glsd.training.state import initial_state
from tests.ray_jobs.runs import json_lines, leaves


def check_as_alone(out: Path, config: Config, photos: Path) -> None:
    """A run directory holds the losses and weights of such a training, but for the order of sums."""
    source = UnitSource(config, build_index(photos, config.data), None, "worker")
    device = torch.device("cpu")
    state, units = initial_state(config, device), made_in_turn(source, range(source.num_units))
    readings = [reading.metrics for reading in steps(state, units, config, source.order.steps_per_epoch, device)]
    lines = json_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(len(readings) + 1))
    for line, reading in zip(lines[1:], readings, strict=True):
        same = ("step", "loss", "loss_global", "loss_local", "matched", "lr")
        assert {name: line[name] for name in same} == pytest.approx({name: reading[name] for name in same}, rel=1e-4)
    saved = leaves(load_checkpoint(str(out / f"checkpoints/step_{len(readings):08d}")))
    for name, value in leaves(state.state_dict()).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                saved[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
