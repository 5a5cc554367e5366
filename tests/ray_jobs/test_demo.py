"""The demo's lists of photographs, and what a run says when it has ended."""

import csv
import sys
from pathlib import Path

import pytest

from glsd.reporting.console import closing_words
from glsd.runs.records import Summary
from ray_jobs.demo import photograph_lists

PROBABILITIES = {
    "functional": "0.0",
    "possibly defective": "0.3333333333333333",
    "likely defective": "0.6666666666666666",
    "defective": "1.0",
}
PHOTOGRAPHS = {"functional": 41, "possibly defective": 13, "likely defective": 7, "defective": 22}
TESTED = {"functional": 8, "possibly defective": 3, "likely defective": 1, "defective": 4}


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Paths and classes of the photographs of an installed package elpv_dataset."""
    folder = tmp_path / "elpv_dataset" / "data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    names = [name for name, count in PHOTOGRAPHS.items() for _ in range(count)]
    found = {f"images/cell{number:04}.png": name for number, name in enumerate(names, 1)}
    (folder / "labels.csv").write_text("".join(f"{path} {PROBABILITIES[name]}  mono\n" for path, name in found.items()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    return {str(folder / path): name for path, name in found.items()}


def read(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def test_every_photograph_is_in_one_list_under_the_class_of_its_probability(photographs):
    train, test = map(read, photograph_lists())
    assert train.keys().isdisjoint(test)
    assert train | test == photographs


def test_a_fifth_of_every_class_is_tested_to_the_nearest_whole(photographs):
    tested = list(read(photograph_lists()[1]).values())
    assert {name: tested.count(name) for name in PHOTOGRAPHS} == TESTED


def test_the_lists_are_the_same_whenever_they_are_made(photographs):
    first = [path.read_bytes() for path in photograph_lists()]
    for path in photograph_lists():
        path.unlink()
    assert [path.read_bytes() for path in photograph_lists()] == first


def test_without_the_photographs_the_demo_says_how_to_install_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"install it with: pip install 'glsd\[demo\]'"):
        photograph_lists()


SUMMARY = Summary(
    config_digest="89ef",
    steps=390,
    images_seen=12_480,
    loss=5.4321,
    timm="import timm\nmodel = ...",
    timm_difference=0.0,
)
KNN = {
    "knn": 0.705,
    "knn_untrained": 0.684,
    "knn_majority": 0.575,
    "knn_k": 20,
    "num_anchors": 2099,
    "num_queries": 525,
}
PLACES = """
backbone  runs/demo/backbone
config    runs/demo/config.yaml
metrics   runs/demo/metrics.jsonl, and tensorboard --logdir runs/demo/tensorboard
pictures  runs/demo/figures

import timm
model = ..."""


def test_a_run_ends_with_its_knn_beside_the_untrained_and_the_majority_and_says_where_all_lies():
    assert closing_words("runs/demo", SUMMARY.model_copy(update=KNN)) == (
        "390 steps, 12,480 images seen; loss 5.432\n"
        "k-NN 70.5 %   +- 2.0 (k = 20; 2,099 images vote on 525 others)\n"
        "     68.4 %   the same backbone at random initialisation\n"
        "     57.5 %   always the most frequent class\n" + PLACES
    )


def test_a_run_that_began_from_a_model_compares_with_that():
    assert "     68.4 %   before training, as in timm:resnet18\n" in closing_words(
        "runs/demo", SUMMARY.model_copy(update=KNN | {"init_from": "timm:resnet18"})
    )


def test_a_run_without_labels_ends_without_knn():
    assert closing_words("runs/demo", SUMMARY) == "390 steps, 12,480 images seen; loss 5.432\n" + PLACES


def test_a_run_without_figures_names_no_pictures():
    text = closing_words("runs/demo", SUMMARY.model_copy(update={"figures": False}))
    assert text.endswith(PLACES.replace("pictures  runs/demo/figures\n", ""))
