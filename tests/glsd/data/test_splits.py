"""Labelled images: which of them vote, which are tested, and in whose classes they count."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from glsd.config import Config
from glsd.data.index import Index, build_index
from glsd.data.samples import value_range_note
from glsd.data.splits import LabelledImages, has_classes, labelled_split
from glsd.encoder.encoder import untrained_encoder
from glsd.weights.timm import export_backbone
from ray_jobs.evaluation.job import evaluate
from ray_jobs.evaluation.options import EvaluateOptions
from ray_jobs.pretraining.job import pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.progress import ProgressLine
from tests.glsd.data.encoding import jpeg, tiff, write_jpegs, write_tar
from tests.glsd.training.small import small_config

CONFIG = Config()


def of(folder: Path, *names: str) -> Index:
    write_jpegs(folder, *names)
    return build_index(folder, CONFIG.data)


def pets(folder: Path, kinds: str, num_each: int) -> Index:
    """A folder of images for each kind."""
    return of(folder, *(f"{kind}/{number}.jpg" for kind in kinds.split() for number in range(num_each)))


def paths(images: LabelledImages) -> list[Path]:
    return [Path(images.index.uri(image_id)) for image_id in images.image_ids.tolist()]


@pytest.mark.parametrize("names", [("cats/0.jpg",), ("cats/0.jpg", "cats/1.jpg")])
def test_images_of_one_class_can_neither_vote_nor_be_tested(tmp_path: Path, names: tuple[str, ...]) -> None:
    index = of(tmp_path / "pets", *names)
    with pytest.raises(ValueError, match=r"cats/0\.jpg, \.\.\.\) are of one class, cats; "):
        labelled_split(index, None, CONFIG.evaluation)


def test_images_have_classes_if_they_have_labels_and_not_all_the_same(tmp_path: Path) -> None:
    assert not has_classes(of(tmp_path / "flat", "0.jpg", "1.jpg"))
    assert not has_classes(of(tmp_path / "one", "cats/0.jpg", "cats/1.jpg"))
    assert has_classes(of(tmp_path / "two", "cats/0.jpg", "dogs/1.jpg"))


@pytest.mark.parametrize("kinds", ["dogs birds", "ants cats"])
def test_tested_images_of_some_of_the_classes_count_in_those_of_the_images_that_vote(
    tmp_path: Path, kinds: str
) -> None:
    train, test = pets(tmp_path / "train", "ants birds cats dogs", 3), pets(tmp_path / "test", kinds, 2)
    split = labelled_split(train, test, CONFIG.evaluation)
    assert split.classes == ["ants", "birds", "cats", "dogs"]
    for images, num_images in ((split.anchors, 12), (split.queries, 4)):
        named = [split.classes[label] for label in images.labels.tolist()]
        assert named == [path.parent.name for path in paths(images)]
        assert len(named) == num_images


def test_only_classes_that_a_tested_image_has_must_be_among_those_of_the_images_that_vote(tmp_path: Path) -> None:
    def shards(name: str, ids: str, classes: list[str]) -> Index:
        members = {f"{number}.cls": label.encode() for number, label in enumerate(ids)}
        write_tar(tmp_path / name / "0.tar", members | {f"{number}.jpg": jpeg(number) for number in range(len(ids))})
        (tmp_path / name / "classes.json").write_text(json.dumps(classes))
        return build_index(tmp_path / name, CONFIG.data)

    train, test = shards("train", "0101", ["ants", "cats"]), shards("test", "12", ["mice", "cats", "ants"])
    split = labelled_split(train, test, CONFIG.evaluation)
    assert [split.classes[label] for label in split.queries.labels] == ["cats", "ants"]
    with pytest.raises(ValueError, match=r"classes that no voting image has: \['mice'\]"):
        labelled_split(train, shards("other", "10", ["mice", "cats", "ants"]), CONFIG.evaluation)


@pytest.mark.parametrize("is_tested_apart", [False, True])
def test_no_more_than_max_images_vote_and_are_tested(tmp_path: Path, is_tested_apart: bool) -> None:
    train = pets(tmp_path / "train", "ants birds cats dogs", 5)
    test = pets(tmp_path / "test", "birds cats", 5) if is_tested_apart else None
    evaluation = CONFIG.evaluation.model_copy(update={"holdout": 0.4})
    every = labelled_split(train, test, evaluation)
    some = labelled_split(train, test, evaluation.model_copy(update={"max_images": 6}))
    for chosen, all_of_them in ((some.anchors, every.anchors), (some.queries, every.queries)):
        assert len(chosen.image_ids) == len(chosen.labels) == 6 < len(all_of_them.image_ids)
        assert set(paths(chosen)) < set(paths(all_of_them))
    assert not set(paths(every.anchors)) & set(paths(every.queries))


def of_highest(folder: Path, *highest: int) -> Path:
    """A folder of 16-bit images with these highest values."""
    folder.mkdir()
    for number, high in enumerate(highest):
        (folder / f"{number}.tif").write_bytes(tiff(np.array([[0, high]], np.uint16)))
    return folder


def test_images_of_12_bits_in_files_of_16_are_told_of_where_no_value_range_is_set(tmp_path: Path) -> None:
    dim = build_index(of_highest(tmp_path / "dim", *range(4000, 4090)), CONFIG.data)
    full = build_index(of_highest(tmp_path / "full", 60_000), CONFIG.data)
    jpegs = of(tmp_path / "jpegs", "0.jpg", "1.jpg")
    assert "Pretrain with data.value_range [0, 4095]" in (value_range_note([dim, None], CONFIG.data) or "")
    assert "Pretrain with data.value_range [0, 4095]" in (value_range_note([jpegs, dim], CONFIG.data) or "")
    for indexes in ([full], [jpegs], [dim, full]):
        assert value_range_note(indexes, CONFIG.data) is None
    assert value_range_note([dim], CONFIG.with_overrides({"data.value_range": (0.0, 4095.0)}).data) is None


def test_the_looked_at_images_are_some_from_all_over_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_index(of_highest(tmp_path / "dim", *range(4000, 4200)), CONFIG.data)
    read, seen = Index.read, list[int]()
    monkeypatch.setattr(Index, "read", lambda self, image_id: (seen.append(image_id), read(self, image_id))[1])
    value_range_note([index], CONFIG.data)
    assert len(seen) == 16
    assert (min(seen), max(seen)) == (0, 199)
    assert max(np.diff(seen)) <= 14


def test_pretraining_and_evaluation_say_once_that_a_value_range_is_missing(tmp_path: Path) -> None:
    dim, other = of_highest(tmp_path / "dim", *range(4000, 4008)), of_highest(tmp_path / "other", 4000)
    said = io.StringIO()
    with pytest.raises(ValueError, match="have no labels"):
        pretrain(
            small_config(),
            str(dim),
            str(tmp_path / "run"),
            PretrainOptions(knn_data=(str(other),)),
            line=ProgressLine(said),
        )
    assert said.getvalue().count("Pretrain with data.value_range [0, 4095]") == 1
    model, told = tmp_path / "model", io.StringIO()
    export_backbone(untrained_encoder(small_config()), model)
    with pytest.raises(ValueError, match="have no labels"):
        evaluate(str(model), str(dim), EvaluateOptions(test=(str(other),)), line=ProgressLine(told))
    assert told.getvalue().count("Pretrain with data.value_range [0, 4095]") == 1
