"""The figures of an evaluation show what their captions say."""

from pathlib import Path

import numpy as np
import torch

from glsd.config import Config
from glsd.data import build_index
from glsd.evaluation import untrained_encoder
from ray_jobs.labelled import LabelledImages
from ray_jobs.picturing import picture_nearest
from tests.ray.images import CLASSES, labelled_folder


def test_the_nearest_images_are_looked_for_among_all_that_vote(tmp_path: Path) -> None:
    index = build_index(labelled_folder(tmp_path / "photos", 8), Config().data)
    encoder = untrained_encoder(Config().with_overrides({"model.backbone": "test_resnet", "model.drop_path": 0.0}))
    num_anchors, nearest_row = 2001, 1001
    anchors = LabelledImages(index, np.zeros(num_anchors, np.int64), np.zeros(num_anchors, np.int64))
    z_bar = torch.eye(2)[[0] * num_anchors]
    z_bar[nearest_row] = torch.tensor([0.0, 1.0])
    queries = LabelledImages(index, np.array([3]), np.array([1]))
    anchors.labels[nearest_row] = 1
    picture_nearest(encoder, (anchors, z_bar), (queries, torch.tensor([[0.0, 2.0]])), list(CLASSES), tmp_path)
    drawn = (tmp_path / "neighbours.svg").read_text()
    assert f"✓ {CLASSES[1]}  1.00" in drawn
    assert drawn.count(f"✗ {CLASSES[0]}  0.00") == 4
