"""The pretrain job on a cluster: what a run leaves behind, what it refuses, what the number of workers may change."""

import _thread
import json
import math
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from PIL import Image

from glsd.config import Config, DataConfig
from glsd.data.index import build_index
from glsd.encoder.encoder import load_encoder
from glsd.experiments import load_config
from glsd.runs.checkpoints import load_checkpoint, manifest
from glsd.training.loop import NonFiniteLoss
from ray_jobs.pretraining.job import Run, pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.settings import JobSettings
from tests.images import labelled_folder
from tests.ray_jobs.runs import (
    EPOCHS,
    KNN_EVERY_EPOCHS,
    STEPS_PER_EPOCH,
    TOTAL_STEPS,
    brief_run,
    check_same_training,
    complete_checkpoints,
    json_lines,
    leaves,
    small_run,
)

pytestmark = pytest.mark.ray
KNN_STEPS = list(range(0, TOTAL_STEPS + 1, KNN_EVERY_EPOCHS * STEPS_PER_EPOCH))


def test_a_run_logs_every_step_once_and_the_k_nn_of_the_teacher_from_before_training_to_the_end(
    uninterrupted: Run,
) -> None:
    metrics = json_lines(Path(uninterrupted.out) / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(TOTAL_STEPS + 1))
    assert [line["step"] for line in metrics if "knn" in line] == KNN_STEPS
    assert all(math.isfinite(line["loss"]) for line in metrics[1:])
    assert {line["requests"] for line in metrics[1:]} == {0}  # local images, so no cache of them either
    assert all(0 <= line["units_waiting"] <= line["units_ahead"] for line in metrics[1:])
    assert not any({"cache_hit_rate", "gpu_bytes"} & line.keys() for line in metrics)
    assert {line["workers"] for line in metrics} == {1}
    assert {line["skipped"] for line in metrics if line["step"] > STEPS_PER_EPOCH} == {1}  # the corrupt one, once
    summary = uninterrupted.summary
    assert summary.steps == TOTAL_STEPS
    assert summary.images_seen == TOTAL_STEPS * 8
    assert (summary.knn_untrained, summary.knn) == (metrics[0]["knn"], metrics[-1]["knn"])
    assert summary.knn_majority is not None
    assert 0 < summary.knn_majority < 1


def test_a_corrupt_image_is_replaced_and_listed_once_with_its_reason(uninterrupted: Run, forty: Path) -> None:
    (skipped,) = json_lines(Path(uninterrupted.out) / "skipped.jsonl")
    assert skipped["image_id"] == 0
    assert Path(skipped["uri"]) == forty / "checks" / "000.png"
    assert "truncated" in skipped["reason"]


def test_a_run_directory_holds_its_settings_last_and_best_checkpoint_backbone_and_pictures(uninterrupted: Run) -> None:
    out = Path(uninterrupted.out)
    assert Config.model_validate(yaml.safe_load((out / "config.yaml").read_text("utf-8"))) == small_run()
    assert json.loads((out / "data.json").read_bytes())["images"] == 40
    assert json.loads((out / "summary.json").read_bytes()) == uninterrupted.summary.json_values()
    assert not (out / "lease.json").exists()
    assert list((out / "tensorboard").iterdir())
    for name in ("crops", "matchings", "neighbours"):
        with Image.open(out / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 300

    assert Path(uninterrupted.checkpoint).resolve() == (out / "checkpoints" / f"step_{TOTAL_STEPS:08d}").resolve()
    measured = {
        line["step"]: line["knn"] for line in json_lines(out / "metrics.jsonl") if "knn" in line and line["step"]
    }
    best = max(measured, key=lambda step: (measured[step], step))
    assert complete_checkpoints(out) == sorted({best, TOTAL_STEPS})
    assert manifest(uninterrupted.checkpoint).metrics["knn"] == measured[TOTAL_STEPS]


def test_the_lines_that_a_run_prints_load_the_backbone_of_the_trained_teacher_in_timm(uninterrupted: Run) -> None:
    names = {"images": torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))}
    encoder = load_encoder(uninterrupted.out).eval()
    with torch.no_grad():
        exec(uninterrupted.summary.timm, names)
        difference = (names["z_bar"] - encoder(names["images"])[0]).abs().max().item()
    assert difference <= 1e-5
    assert uninterrupted.summary.timm_difference <= 1e-5


def test_a_finished_run_started_again_says_so_and_changes_nothing(
    uninterrupted: Run, forty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(uninterrupted.out).rglob("*") if path.is_file()}

    before = written()
    assert pretrain(small_run(), str(forty), uninterrupted.out) == uninterrupted
    assert written() == before
    said = capsys.readouterr().err
    assert "is finished" in said
    assert "Ray" not in said


def test_a_finished_run_is_that_of_its_images_elsewhere_and_one_of_an_earlier_version_of_unchanged_ones(
    uninterrupted: Run, forty: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(forty, tmp_path / "node local", copy_function=shutil.copyfile)
    summary = pretrain(small_run(), str(moved), uninterrupted.out).summary
    assert summary == uninterrupted.summary
    former = shutil.copytree(uninterrupted.out, tmp_path / "run")
    data = json.loads((former / "data.json").read_bytes())
    (former / "data.json").write_text(json.dumps(data | {"digest": build_index(forty, DataConfig()).key}))
    assert pretrain(small_run(), str(forty), str(former)).summary == summary
    with pytest.raises(ValueError, match=r'digest of all names and sizes: "\w+" there, "\w+" now\n'):
        pretrain(small_run(), str(moved), str(former))


@pytest.mark.usefixtures("cluster")
def test_a_run_that_was_begun_on_images_elsewhere_ends_as_it_would_have_there(
    uninterrupted: Run, forty: Path, tmp_path: Path
) -> None:
    moved, out = shutil.copytree(forty, tmp_path / "node local"), tmp_path / "run"
    out.mkdir()
    for name in ("config.yaml", "data.json", "environment.json"):
        shutil.copy(Path(uninterrupted.out) / name, out)
    ended = pretrain(small_run(), str(moved), str(out), PretrainOptions(figures=False))
    assert ended.summary.loss == uninterrupted.summary.loss
    assert json.loads((out / "data.json").read_bytes())["sources"] == [str(forty)]


def test_a_run_directory_refuses_other_settings_and_other_data_by_name(
    uninterrupted: Run, forty: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"other settings:\n  optim\.epochs: 4 there, 5 now\n"):
        pretrain(small_run(**{"optim.epochs": 5}), str(forty), uninterrupted.out)
    more = shutil.copytree(forty, tmp_path / "photos")
    shutil.copy(more / "rings" / "002.png", more / "rings" / "another.png")
    given = {key: value for key, value in small_run().flat().items() if key != "optim.epochs"}
    for config in (small_run(), load_config("small_data", given)):  # other epochs would follow from other images
        with pytest.raises(ValueError, match=r"other data:\n(.*\n)*  images: 40 there, 41 now\n"):
            pretrain(config, str(more), uninterrupted.out)


def test_two_workers_learn_from_the_same_batches_what_one_learns(
    uninterrupted: Run, forty: Path, tmp_path: Path
) -> None:
    two = pretrain(
        small_run(), str(forty), str(tmp_path / "run"), PretrainOptions(figures=False), JobSettings(workers=2)
    )
    check_same_training(Path(uninterrupted.out), Path(two.out))
    assert json_lines(tmp_path / "run" / "skipped.jsonl") == json_lines(Path(uninterrupted.out) / "skipped.jsonl")
    assert {line["workers"] for line in json_lines(tmp_path / "run" / "metrics.jsonl")} == {2}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("overrides", "job", "message"),
    [
        ({}, {"workers": 3}, r"3 workers cannot share a step of 2 units .*; use one of \[1, 2\] workers"),
        (
            {},
            {"workers": 2, "cpus_per_worker": 2},
            r"2 workers of 2 CPUs leave 0 of the cluster's 4 CPUs for the stream",
        ),
        (
            {},
            {"workers": 2, "gpu": True},
            r"2 workers of 1 GPUs each .* the 0 GPUs of this cluster; use --workers 1 --gpu False",
        ),
        (
            {"augment.global_size": 2048, "augment.local_sizes": (), "augment.num_local_crops": ()},
            {},
            r"data\.unit_size 4 makes units of 96 MiB, and the stream takes 64 MiB; use data\.unit_size 2",
        ),
        ({"optim.batch_size": 44}, {}, r"40 images do not fill a batch of 44; use optim\.batch_size 40"),
        ({"model.backbone": "test_convnexxt"}, {}, r"test_convnexxt.*test_convnext"),
        ({"augment.local_sizes": (16,)}, {}, r"backbone test_convnext cannot take crops of 16 px; it takes 32 px"),
        ({"data.images_per_class": 11}, {}, r"images_per_class is 11, but class 'checks' has only 10 images"),
    ],
)
def test_what_cannot_run_is_refused_before_any_worker_starts_and_the_message_says_what_can(
    overrides: dict[str, Any], job: dict[str, Any], message: str, forty: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain(small_run(**overrides), str(forty), str(tmp_path / "run"), job=JobSettings(**job))
    assert not {"lease.json", "metrics.jsonl", "checkpoints"} & {path.name for path in tmp_path.glob("run/*")}


def test_a_checkpoint_of_another_run_is_not_gone_on_from(uninterrupted: Run, forty: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "run", small_run(seed=1, **{"optim.epochs": 2 * EPOCHS})
    shutil.copytree(Path(uninterrupted.out) / "checkpoints", out / "checkpoints")
    shutil.copy(Path(uninterrupted.out) / "data.json", out)
    (out / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(
        ValueError,
        match=r"step_00000020 has other settings \(seed, optim\.epochs\), so it is not",
    ):
        pretrain(config, str(forty), str(out))


@pytest.mark.usefixtures("cluster")
def test_a_batch_that_leaves_many_images_out_is_warned_of_with_a_better_one(forty: Path, tmp_path: Path) -> None:
    with (
        pytest.warns(
            UserWarning, match=r"leaves 12 of 40 images \(30%\) out of each epoch; optim\.batch_size \d+ leaves"
        ),
        pytest.raises(ValueError, match="2 workers cannot share"),
    ):
        pretrain(small_run(**{"optim.batch_size": 28}), str(forty), str(tmp_path / "run"), job=JobSettings(workers=2))


@pytest.mark.usefixtures("cluster")
def test_a_loss_that_is_not_finite_stops_the_run_by_step_and_images_and_keeps_the_last_good_checkpoint(
    forty: Path, tmp_path: Path
) -> None:
    config = brief_run(**{"optim.base_lr": 1e30, "checkpoint_every_steps": 1, "evaluation.knn_every_epochs": 0})
    with pytest.raises(
        NonFiniteLoss, match=r"not finite at step \d+ \(loss .*Images since the last reading: \[\d+, "
    ) as stop:
        pretrain(
            config, str(forty), str(tmp_path), job=JobSettings(max_failures=1)
        )  # a worker that is started again says the same
    metrics = json_lines(tmp_path / "metrics.jsonl")
    (last_good,) = complete_checkpoints(tmp_path)
    assert f"at step {last_good + 1} " in str(stop.value)
    assert metrics[-1]["step"] == last_good
    state = leaves(load_checkpoint(str(tmp_path / "checkpoints" / f"step_{last_good:08d}")))
    assert all(value.isfinite().all() for value in state.values() if isinstance(value, torch.Tensor))


@pytest.mark.usefixtures("cluster")
def test_ctrl_c_stops_the_workers_and_is_a_keyboard_interrupt(
    cluster: None, interruptible: None, forty: Path, tmp_path: Path
) -> None:
    out, total = tmp_path / "run", ray.cluster_resources()["CPU"]

    def interrupt() -> None:
        while not json_lines(out / "metrics.jsonl"):
            time.sleep(0.05)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pretrain(brief_run(**{"optim.epochs": 1000}), str(forty), str(out))
    end = time.monotonic() + 300
    while ray.available_resources().get("CPU", 0) < total and time.monotonic() < end:
        time.sleep(0.5)
    assert ray.available_resources()["CPU"] == total
    assert not (out / "summary.json").exists()


def test_more_undecodable_images_than_the_allowed_share_stop_the_run_with_a_list_of_them(tmp_path: Path) -> None:
    photos = labelled_folder(tmp_path / "photos", num_images=40, num_corrupt=10)
    message = r"of the \d+ images read so far could not be decoded, more than data\.max_skipped 10%; .*skipped\.jsonl"
    with pytest.raises(ValueError, match=message):
        pretrain(brief_run(), str(photos), str(tmp_path / "run"))
    skipped = json_lines(tmp_path / "run" / "skipped.jsonl")
    assert {Path(line["uri"]).stem for line in skipped} <= {f"{number:03d}" for number in range(10)}
    assert len(skipped) == len({line["image_id"] for line in skipped}) > 4
    assert all(line["reason"] for line in skipped)
    assert not (tmp_path / "run" / "summary.json").exists()
