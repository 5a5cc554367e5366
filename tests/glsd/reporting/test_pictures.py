"""The figures of an evaluation show what their captions say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glsd.config import Config
from glsd.data.index import build_index
from glsd.data.samples import alike
from glsd.data.splits import LabelledImages
from glsd.encoder.encoder import untrained_encoder
from glsd.reporting.pictures import picture_features, picture_nearest
from tests.images import CLASSES, labelled_folder


def test_the_nearest_images_are_looked_for_among_all_that_vote(tmp_path: Path) -> None:
    index = build_index(labelled_folder(tmp_path / "photos", 8), Config().data)
    encoder = untrained_encoder(Config().with_overrides({"model.backbone": "test_resnet", "model.drop_path": 0.0}))
    num_anchors, nearest_row = 2001, 1001
    anchors = LabelledImages(index, np.zeros(num_anchors, np.int64), np.zeros(num_anchors, np.int64))
    z_bar = torch.eye(2)[[0] * num_anchors]
    z_bar[nearest_row] = torch.tensor([0.0, 1.0])
    queries = LabelledImages(index, np.array([3]), np.array([1]))
    anchors.labels[nearest_row] = 1
    picture_nearest(encoder, (anchors, z_bar), (queries, torch.tensor([[0.0, 2.0]])), list(CLASSES), tmp_path, 1)
    drawn = (tmp_path / "neighbours.svg").read_text()
    assert f"✓ {CLASSES[1]}  1.00" in drawn
    assert drawn.count(f"✗ {CLASSES[0]}  0.00") == 4


def test_pairs_are_of_classes_in_turn_and_an_image_that_is_alone_in_its_class_is_not_even_read(tmp_path: Path) -> None:
    for name, shades in {"alone": (10,), "broken": (20, 21), "one": (30, 31), "other": (40, 41)}.items():
        (tmp_path / name).mkdir()
        for shade in shades:
            Image.new("L", (8, 8), shade).save(tmp_path / name / f"{shade}.png")
    (tmp_path / "broken/21.png").write_bytes(b"nothing")
    limits = Config().data
    index = build_index(tmp_path, limits)
    (tmp_path / "alone/10.png").unlink()
    found = [{int(image.max()) for image in pair} for pair in alike(index, np.arange(len(index)), limits, 5)]
    assert sorted(map(sorted, found[:2])) == [[30, 31], [40, 41]]
    assert found[2:] == [*found[:2], found[0]]
    assert alike(index, np.arange(3), limits, 5) == []


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 5])
def test_a_map_of_a_few_images_is_left_out_and_costs_no_evaluation(tmp_path: Path, num_images: int) -> None:
    features = np.random.default_rng(0).normal(size=(num_images, 8)).astype(np.float32)
    picture_features(features, None, None, tmp_path)
    assert (tmp_path / "feature_map.png").exists() == (num_images == 5)
