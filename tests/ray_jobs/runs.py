"""A run small enough for a test, and what is looked at in what it leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from glsd.config import Config
from glsd.runs.checkpoints import load_checkpoint

STEPS_PER_EPOCH = 5
EPOCHS = 4
KNN_EVERY_EPOCHS = 2
TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH


def small_run(**overrides: object) -> Config:
    """Four epochs of five steps of two units on forty images; no batch norm, which would see units and not batches.

    A checkpoint of 60 MB and a k-NN at 512 px take long enough for a kill to fall into them.
    """
    return Config().with_overrides(
        {
            "model.backbone": "test_convnext",
            "model.drop_path": 0.2,
            "model.hidden_dim": 1024,
            "model.bottleneck_dim": 64,
            "model.num_prototypes": 8192,
            "augment.global_size": 64,
            "augment.local_sizes": (32,),
            "augment.num_local_crops": (2,),
            "optim.batch_size": 8,
            "optim.epochs": EPOCHS,
            "optim.warmup_epochs": 1,
            "optim.base_lr": 0.01,
            "evaluation.knn_every_epochs": KNN_EVERY_EPOCHS,
            "evaluation.k": 5,
            "evaluation.resize": 512,
            "evaluation.crop": 512,
            "data.unit_size": 4,
            "log_every_steps": 1,
            **overrides,
        }
    )


def brief_run(**overrides: object) -> Config:
    """A small run with small heads and a k-NN of small images, for tests in which nothing has to take long."""
    settings: dict[str, object] = {
        "model.hidden_dim": 16,
        "model.num_prototypes": 32,
        "evaluation.resize": 64,
        "evaluation.crop": 64,
    }
    return small_run(**settings | overrides)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that may not be there and may be growing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def complete_checkpoints(out: Path) -> list[int]:
    """Steps of the run's complete checkpoints."""
    return sorted(int(path.parent.name.removeprefix("step_")) for path in out.glob("checkpoints/step_*/manifest.json"))


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """Every tensor and value of nested dictionaries and lists, by its dotted name."""
    if not isinstance(tree, dict | list | tuple):
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: leaf for part, child in items for key, leaf in leaves(child, f"{name}.{part}".strip(".")).items()}


def check_same_training(one: Path, other: Path) -> None:
    """Two run directories hold the same losses, k-NN and weights, but for the order of sums."""
    for ones, others in zip(*(json_lines(out / "metrics.jsonl") for out in (one, other)), strict=True):
        same = {"step", "loss", "loss_global", "loss_local", "matched", "lr", "epoch"} & ones.keys()
        same |= {"knn", "knn_majority", "knn_anchors", "knn_queries"} & ones.keys()
        assert {name: others[name] for name in same} == pytest.approx({name: ones[name] for name in same}, rel=1e-4)
    last = f"checkpoints/step_{TOTAL_STEPS:08d}"
    weights, other_weights = (leaves(load_checkpoint(str(out / last))) for out in (one, other))
    assert weights.keys() == other_weights.keys()
    for name, value in weights.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                other_weights[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            assert other_weights[name] == value, name
