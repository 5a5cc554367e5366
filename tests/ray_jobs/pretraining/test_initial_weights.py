"""A run that starts from a given backbone: what it starts with, and that it keeps to it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from glsd.config import Config
from glsd.encoder.encoder import model_digest, untrained_encoder
from glsd.models.student_teacher import build_student_teacher
from glsd.runs.checkpoints import load_checkpoint
from glsd.weights.timm import export_backbone
from ray_jobs.pretraining.job import Run, pretrain
from ray_jobs.pretraining.options import PretrainOptions
from tests.ray_jobs.runs import brief_run

pytestmark = pytest.mark.ray


def still(**overrides: object) -> Config:
    """An epoch in which no weight moves, so the end shows what the run started from."""
    settings: dict[str, object] = {
        "optim.epochs": 1,
        "optim.base_lr": 0.0,
        "optim.min_lr": 0.0,
    }
    return brief_run(**settings | overrides)


def given_backbone(folder: Path, **overrides: object) -> dict[str, torch.Tensor]:
    """A backbone of another seed in a folder, and its weights."""
    encoder = untrained_encoder(still(seed=5, **overrides))
    export_backbone(encoder, folder)
    return dict(encoder.backbone.state_dict())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone to start from; it is gone when the run has started."""
    return tmp_path_factory.mktemp("source") / "given"


@pytest.fixture(scope="module")
def weights(source: Path) -> dict[str, torch.Tensor]:
    """The weights of the source."""
    return given_backbone(source)


@pytest.fixture(scope="module")
def run(
    cluster: None, forty: Path, source: Path, weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A finished run that started from the source, which then was deleted."""
    out = str(tmp_path_factory.mktemp("from") / "run")
    run = pretrain(still(), str(forty), out, PretrainOptions(init_from=str(source), figures=False))
    shutil.rmtree(source)
    return run


def test_student_and_teacher_start_from_the_given_backbone_with_fresh_heads(
    run: Run, source: Path, weights: dict[str, torch.Tensor]
) -> None:
    fresh = build_student_teacher(still())[0].state_dict()
    heads = {key: value for key, value in fresh.items() if not key.startswith("backbone.")}
    state = load_checkpoint(run.checkpoint)
    for network in ("student", "teacher"):
        assert all(torch.equal(state[network][f"backbone.{key}"], value) for key, value in weights.items())
        assert all(torch.equal(state[network][key], value) for key, value in heads.items())
        assert len(state[network]) == len(weights) + len(heads)
    facts = json.loads((Path(run.out) / "data.json").read_bytes())
    assert facts["init_from"] == str(source)
    assert facts["init_digest"] == model_digest(untrained_encoder(still(seed=5)))


def test_a_run_that_was_killed_before_its_first_checkpoint_resumes_without_the_source(
    run: Run, source: Path, weights: dict[str, torch.Tensor], forty: Path, tmp_path: Path
) -> None:
    killed = shutil.copytree(run.out, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "summary.json"))
    assert not source.exists()
    resumed = pretrain(still(), str(forty), str(killed), PretrainOptions(init_from=str(source), figures=False))
    state = load_checkpoint(resumed.checkpoint)
    assert all(torch.equal(state["teacher"][f"backbone.{key}"], value) for key, value in weights.items())


def test_a_run_keeps_to_what_it_started_from(run: Run, forty: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other data:\n  init_from: \".*given\" there, null now\n  init_digest"):
        pretrain(still(), str(forty), run.out)
    given_backbone(tmp_path / "other")
    with pytest.raises(ValueError, match=r"  init_from: \".*given\" there, \".*other\" now\nChoose another --out"):
        pretrain(still(), str(forty), run.out, PretrainOptions(init_from=str(tmp_path / "other")))


def test_a_backbone_of_another_kind_is_refused_before_anything_is_written(forty: Path, tmp_path: Path) -> None:
    given_backbone(tmp_path / "given", **{"model.backbone": "test_vit", "model.drop_path": 0.0})
    with pytest.raises(ValueError, match=r"is a test_vit, and model\.backbone is test_convnext; set model\.backbone"):
        pretrain(still(), str(forty), str(tmp_path / "run"), PretrainOptions(init_from=str(tmp_path / "given")))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_that_normalises_images_otherwise_than_its_backbone_says_so(forty: Path, tmp_path: Path) -> None:
    given_backbone(tmp_path / "given", **{"augment.mean": (0.5, 0.5, 0.5)})
    with (
        pytest.warns(UserWarning, match=r"takes images of augment\.mean \[0\.5, 0\.5, 0\.5\]"),
        pytest.raises(ValueError),
    ):
        pretrain(
            still(),
            str(tmp_path / "nothing"),
            str(tmp_path / "run"),
            PretrainOptions(init_from=str(tmp_path / "given")),
        )
