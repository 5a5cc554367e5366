"""The linear probe on a cluster: what it learns, however many workers there are and whatever happens to them."""

import math
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch

from glsd.config import LinearConfig
from glsd.data.images import decode
from glsd.data.index import build_index
from glsd.data.splits import LabelledSplit, labelled_split
from glsd.data.undecodable import UndecodableImage
from glsd.encoder.encoder import Encoder, embed, untrained_encoder
from glsd.evaluation.linear import linear_crop
from glsd.evaluation.linear_units import LinearSource
from glsd.evaluation.online_knn import embedded, preprocessed
from glsd.runs.checkpoints import checkpoints, load_checkpoint
from glsd.runs.directory import RunDirectory
from glsd.runs.records import LinearFound
from glsd.storage.folder import Folder
from ray_jobs.cluster.start import cluster as connected
from ray_jobs.evaluation.linear import LinearPlan, linear_probe, linear_worker
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from tests.glsd.storage.object_store import object_store
from tests.images import CLASSES, labelled_folder
from tests.ray_jobs.pretraining.test_kill import Start
from tests.ray_jobs.runs import leaves, small_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# An untrained ResNet's representations differ by a hundredth, hence the learning rate; a larger one is chaotic.
PROTOCOL = LinearConfig(epochs=12, batch_size=16, base_lr=25.0, scale=(0.3, 1.0))
STEPS_PER_EPOCH = 6
CORRUPT = 0


class Probed(NamedTuple):
    """What a probe says and what it leaves behind, in a local folder or that of a bucket."""

    scores: LinearFound
    folder: Path

    @property
    def layer(self) -> dict[str, torch.Tensor]:
        """The weights after the last step, and the optimiser's state."""
        (location,) = (self.folder / "linear").iterdir()
        return leaves(load_checkpoint(checkpoints(str(location))[PROTOCOL.epochs * STEPS_PER_EPOCH]))


@cache
def encoder() -> Encoder:
    """An untrained network, which tells textures apart by its convolutions alone."""
    return untrained_encoder(
        small_run(**{"model.backbone": "resnet10t", "evaluation.resize": 64, "evaluation.crop": 64})
    )


def split_of(photos: Path) -> LabelledSplit:
    """Ninety-six images that train, one of them corrupt, and sixty-four that are tested."""
    config = encoder().config
    return labelled_split(build_index(photos, config.data), None, config.evaluation.model_copy(update={"holdout": 0.4}))


def probe(photos: Path, folder: Path | str, protocol: LinearConfig = PROTOCOL, **job: Any) -> LinearFound:
    """What a probe of the untrained network on the photos says."""
    split, settings = split_of(photos), JobSettings(**job)
    tested = embedded(encoder(), preprocessed(encoder(), split.queries, 1))
    with connected(settings), ProgressLine() as line:
        return linear_probe(encoder(), split, protocol, tested, settings, Folder(folder), line)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("probing") / "photos", num_images=160, num_corrupt=1)


@pytest.fixture(scope="module")
def undisturbed(cluster: None, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """A probe by one worker that nothing disturbed."""
    folder = tmp_path_factory.mktemp("one")
    return Probed(probe(photos, folder), folder)


@pytest.fixture(scope="module")
def source(cluster: None, photos: Path) -> LinearSource:
    """The units of that probe, in halves."""
    anchors = split_of(photos).anchors
    return LinearSource(PROTOCOL, encoder().config.data, 64, 8, anchors.index, anchors.image_ids, anchors.labels)


def test_the_layer_tells_textures_apart_that_a_guess_would_not(undisturbed: Probed, photos: Path) -> None:
    scores = undisturbed.scores
    chance, num_tested = 1 / len(CLASSES), len(split_of(photos).queries.image_ids)
    assert scores.top1 > chance + 3 * math.sqrt(chance * (1 - chance) / num_tested)
    assert (scores.top5, scores.num_top) == (1.0, len(CLASSES))
    assert scores.epochs == PROTOCOL.epochs
    assert LinearConfig.model_validate(scores.settings) == PROTOCOL


def test_a_finished_probe_called_again_tests_its_layer_and_trains_nothing(
    undisturbed: Probed, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in undisturbed.folder.rglob("*") if path.is_file()}

    before = written()
    assert probe(photos, undisturbed.folder) == undisturbed.scores
    assert written() == before
    assert capsys.readouterr().err == ""


def test_two_workers_learn_the_layer_of_one_also_on_an_object_store(
    undisturbed: Probed, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "bucket").mkdir()
    with object_store(tmp_path) as address:
        uri = f"s3://bucket/mine?endpoint_override={address}&scheme=http&region=us-east-1"
        two = Probed(probe(photos, uri, workers=2), tmp_path / "bucket/mine")
    assert two.scores == undisturbed.scores
    for name, value in undisturbed.layer.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                two.layer[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            assert two.layer[name] == value, name


def test_a_probe_killed_after_some_epochs_ends_bit_for_bit_as_one_that_was_never_killed(
    undisturbed: Probed, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, log = tmp_path / "out", tmp_path / "log"
    code = f"import pathlib, sys; from {__name__} import probe; probe(*map(pathlib.Path, sys.argv[1:]))"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(photos), str(folder)],
            stdout=stream,
            stderr=stream,
            env=environment,
            start_new_session=True,
        )
    start = Start(process, log)
    try:
        start.wait_until(lambda: saved(folder))
    finally:
        start.kill_all()
    num_done = saved(folder) // STEPS_PER_EPOCH
    assert num_done < PROTOCOL.epochs
    resumed = Probed(probe(photos, folder), folder)
    first_reported = re.search(r"^linear epoch +(\d+)/", capsys.readouterr().err, re.MULTILINE)
    assert first_reported is not None
    assert int(first_reported[1]) == num_done + 1, "it does not begin anew"
    assert resumed.scores == undisturbed.scores
    for name, value in undisturbed.layer.items():
        found = resumed.layer[name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


def saved(folder: Path) -> int:
    """Step of the newest checkpoint of the only probe in the folder; 0 where there is none."""
    return max((step for location in (folder / "linear").glob("*") for step in checkpoints(str(location))), default=0)


def test_a_layer_that_another_process_trains_is_not_trained_there_as_well(
    undisturbed: Probed, photos: Path, tmp_path: Path
) -> None:
    (location,) = (undisturbed.folder / "linear").iterdir()
    with RunDirectory(tmp_path / "linear" / location.name).lease(), pytest.raises(ValueError, match="is in use by"):
        probe(photos, tmp_path)


def test_a_worker_that_does_not_reach_the_drivers_folder_trains_nothing(source: LinearSource, tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "driver").lease() as token:
        run, nothing = RunDirectory(tmp_path / "worker"), cast(Any, None)
        plan = LinearPlan(nothing, 512, len(CLASSES), source, run, token, nothing, None)
        with pytest.raises(ValueError, match=r"does not find .*; name an --out that all nodes reach"):
            linear_worker(plan, iter(()))
    assert not (tmp_path / "worker").exists()


def test_the_layer_is_that_of_sgd_with_momentum_on_a_cosine_over_the_crops_of_the_source(
    undisturbed: Probed, source: LinearSource
) -> None:
    weight = torch.empty(len(CLASSES), 512).normal_(0, 0.01, generator=torch.Generator().manual_seed(PROTOCOL.seed))
    layer, velocity = torch.cat([weight, torch.zeros(len(CLASSES), 1)], 1).double(), torch.zeros(len(CLASSES), 513)
    num_steps = PROTOCOL.epochs * STEPS_PER_EPOCH
    for step in range(num_steps):
        units = [source.made(source.read(2 * step)), source.made(source.read(2 * step + 1))]
        z_bar = embed(encoder(), [torch.from_numpy(unit["crops"]) for unit in units])
        inputs = torch.cat([z_bar, torch.ones(len(z_bar), 1)], 1).double()
        targets = torch.eye(len(CLASSES))[[label for unit in units for label in unit["label"].tolist()]]
        gradient = ((inputs @ layer.T).softmax(1) - targets).T @ inputs / len(inputs)
        velocity = PROTOCOL.momentum * velocity + gradient
        rate = PROTOCOL.base_lr * PROTOCOL.batch_size / 256 * (1 + math.cos(math.pi * step / num_steps)) / 2
        layer -= rate * velocity
    torch.testing.assert_close(undisturbed.layer["layer.weight"].double(), layer[:, :-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(undisturbed.layer["layer.bias"].double(), layer[:, -1], rtol=1e-3, atol=1e-3)


def test_every_crop_of_an_epoch_is_that_of_another_image_and_brings_its_label(
    source: LinearSource, photos: Path
) -> None:
    anchors = split_of(photos).anchors
    assert CORRUPT in anchors.image_ids
    labels = dict(zip(anchors.image_ids.tolist(), anchors.labels.tolist(), strict=True))
    epoch, trained = 1, []
    expected = {}
    for image_id in labels:
        try:
            image = decode(anchors.index.read(image_id), source.limits.max_pixels, None)
        except UndecodableImage:
            continue
        expected[linear_crop(image, 64, PROTOCOL, epoch, image_id).tobytes()] = image_id
    for k in range(source.order.units_per_epoch, 2 * source.order.units_per_epoch):
        unit = source.made(source.read(k))
        for crop, label in zip(unit["crops"], unit["label"].tolist(), strict=True):
            trained.append(expected[crop.tobytes()])
            assert label == labels[trained[-1]]
        blank = source.blank(k)
        assert {name: (array.shape, array.dtype) for name, array in unit.items()} == {
            name: (array.shape, array.dtype) for name, array in blank.items()
        }
    # All but the corrupt one, in whose place one of the others comes a second time.
    assert len(trained) == len(labels)
    assert set(trained) == labels.keys() - {CORRUPT}


@pytest.mark.parametrize(
    ("batch_size", "workers", "message"),
    [
        (100, 1, "96 training images do not fill a batch of 100; use linear.batch_size 96"),
        (20, 3, "3 workers cannot share a batch of 20 images; use linear.batch_size 21"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_with_one_that_can(
    cluster: None, photos: Path, tmp_path: Path, batch_size: int, workers: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        probe(photos, tmp_path, PROTOCOL.model_copy(update={"batch_size": batch_size}), workers=workers)
