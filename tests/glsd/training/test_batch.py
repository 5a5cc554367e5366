"""A unit as the tensors that a step trains on: each view finished by its own w, then normalised."""

import numpy as np
import pytest
import torch

from glsd.augment.multicrop import multicrop_batch
from glsd.augment.photometric import photometric_device
from glsd.config import AugmentConfig
from glsd.training.batch import Unit, to_device
from tests.glsd.augment.images import photograph

CPU = torch.device("cpu")
CONFIG = AugmentConfig(
    global_size=32, local_sizes=(16, 8), num_local_crops=(3, 1), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)
)


@pytest.fixture
def unit() -> Unit:
    """Two images with two sizes of local crops, their photometrics left to the device."""
    images, ids = [photograph(50, 70, 0), photograph(90, 40, 1)], np.array([4, 2])
    return {"unit": np.zeros(2, np.int64), "image_id": ids, **multicrop_batch(images, CONFIG, 0, 0, ids, "device")}


def test_each_view_of_two_sizes_of_local_crops_gets_its_own_photometrics_and_is_then_normalised(unit: Unit) -> None:
    batch = to_device(unit, CONFIG, CPU)
    assert [tuple(crops.shape) for crops in batch.crops] == [(2, 2, 3, 32, 32), (2, 3, 3, 16, 16), (2, 1, 3, 8, 8)]
    places = [(group, place) for group, (_, num_views) in enumerate(CONFIG.groups) for place in range(num_views)]
    for image in range(2):
        for view, (group, place) in enumerate(places):
            crop, pho = torch.from_numpy(unit[f"crops_{group}"][image, place]), torch.from_numpy(unit["pho"])
            (finished,) = photometric_device(crop[None], pho[image, view][None], CONFIG)
            for channel in range(3):
                expected = (finished[channel] - CONFIG.mean[channel]) / CONFIG.std[channel]
                found = batch.crops[group][image, place, channel]
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(batch.geo.numpy(), unit["geo"])
    assert batch.image_ids.tolist() == [4, 2]


def test_a_unit_whose_photometrics_the_worker_did_is_normalised_as_it_came(unit: Unit) -> None:
    batch = to_device({name: array for name, array in unit.items() if name != "pho"}, CONFIG, CPU)
    for group, crops in enumerate(batch.crops):
        for channel in range(3):
            values = unit[f"crops_{group}"][..., channel].astype(np.float64) / 255
            expected = (values - CONFIG.mean[channel]) / CONFIG.std[channel]
            np.testing.assert_allclose(crops[:, :, channel].numpy(), expected, rtol=0, atol=1e-5)
