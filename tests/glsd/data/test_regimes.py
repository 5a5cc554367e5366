from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.data.regimes import regime, subset, write_subset
from tests.glsd.data.encoding import write_jpegs

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(lambda labels: np.array(labels, np.int64))


@settings(deadline=None)
@given(labels=label_lists, seed=st.integers(-5, 5))
def test_images_per_class_are_balanced_and_nested(labels: np.ndarray, seed: int) -> None:
    smallest = np.unique(labels, return_counts=True)[1].min()
    smaller: set[int] = set()
    for images_per_class in range(1, smallest + 1):
        image_ids = subset(labels, DataConfig(images_per_class=images_per_class, subset_seed=seed))
        assert image_ids.dtype == np.int64
        assert image_ids.tolist() == sorted(set(image_ids.tolist()))
        for label in set(labels.tolist()):
            assert (labels[image_ids] == label).sum() == images_per_class
        assert smaller < set(image_ids.tolist())
        smaller = set(image_ids.tolist())


@settings(deadline=None)
@given(labels=label_lists, percents=st.lists(st.integers(1, 100), min_size=2, max_size=5))
def test_fractions_are_nested_and_rounded_up_in_every_class(labels: np.ndarray, percents: list[int]) -> None:
    smaller: set[int] = set()
    for percent in sorted(percents):
        image_ids = set(subset(labels, DataConfig(fraction=percent / 100)).tolist())
        for label in set(labels.tolist()):
            count = int((labels == label).sum())
            chosen = int((labels[sorted(image_ids)] == label).sum())
            assert chosen == (percent * count + 99) // 100
        assert smaller <= image_ids
        smaller = image_ids


def test_a_tenth_of_thirty_images_is_three() -> None:
    assert len(subset(30, DataConfig(fraction=0.1))) == 3


def test_without_labels_a_fraction_is_of_all_images() -> None:
    assert len(subset(101, DataConfig(fraction=0.5))) == 51


def test_without_a_regime_all_images_are_chosen() -> None:
    assert subset(7, DataConfig()).tolist() == list(range(7))
    assert subset(np.array([1, 0, 1]), DataConfig()).tolist() == [0, 1, 2]


def test_a_class_has_the_same_images_whichever_other_class_ids_there_are(tmp_path: Path) -> None:
    write_jpegs(tmp_path, *(f"{number:02d}.jpg" for number in range(20)))

    def chosen(other: int) -> list[int]:
        rows = "".join(f"{number:02d}.jpg,{7 if number < 10 else other}\n" for number in range(20))
        (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
        config = DataConfig(images_per_class=4)
        return [row for row in regime(build_index(tmp_path / "list.csv", config), config).tolist() if row < 10]

    assert chosen(0) == chosen(8) == chosen(-1) == chosen(12345)
    labels = np.repeat([7, 8], 10)
    assert chosen(8) == subset(labels, DataConfig(images_per_class=4))[:4].tolist()


def test_seeds_choose_different_images() -> None:
    labels = np.repeat(np.arange(3), 50)
    chosen = {tuple(subset(labels, DataConfig(images_per_class=10, subset_seed=seed))) for seed in range(10)}
    assert len(chosen) == 10


def test_the_subset_does_not_change_between_versions() -> None:
    # Recorded when the regimes were first written: a subset's name stands for the same images in later versions.
    assert subset(1000, DataConfig(fraction=0.005)).tolist() == [78, 94, 110, 147, 261]


def test_more_images_than_the_smallest_class_has_are_refused() -> None:
    labels = np.array([0, 0, 0, 2, 2, 1, 1, 1])
    with pytest.raises(ValueError, match=r"images_per_class is 3, but class 'newt' has only 2 images"):
        subset(labels, DataConfig(images_per_class=3), ["frog", "toad", "newt"])


def test_images_per_class_need_labels() -> None:
    with pytest.raises(ValueError, match=r"data\.images_per_class 3 needs labels .* data\.fraction"):
        subset(10, DataConfig(images_per_class=3))


def test_a_subset_is_written_as_a_list_that_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "bilder, große"
    write_jpegs(folder, *(f"{name}/{number}.jpg" for name in ("Käfer", "ant, red") for number in range(6)))
    config = DataConfig(images_per_class=2, label_column="species")
    index = build_index(folder, config, tmp_path / "cache")
    assert index.labels is not None
    image_ids = subset(index.labels, config, index.classes)
    write_subset(tmp_path / "subset.csv", index, image_ids, config.label_column)
    again = build_index(tmp_path / "subset.csv", config, tmp_path / "cache")
    assert again.classes == index.classes == ["Käfer", "ant, red"]
    assert again.labels is not None
    assert again.labels.tolist() == index.labels[image_ids].tolist()
    assert [again.uri(row) for row in range(4)] == [index.uri(image_id) for image_id in image_ids.tolist()]
    assert [again.read(row) for row in range(4)] == [index.read(image_id) for image_id in image_ids.tolist()]
