import numpy as np
import torch

from glsd.augment.distributions import sample_views
from glsd.augment.multicrop import ViewBatch, multicrop, multicrop_batch
from glsd.augment.photometric import photometric_device, photometric_worker
from glsd.config import AugmentConfig
from tests.glsd.augment.images import SMALL, decibels, photograph, pillow_geometric

IMAGES = [photograph(50, 70, 0), photograph(90, 40, 1), photograph(1, 1, 2)]
IDS = np.array([4, 2, 9])


def test_batch_holds_every_group_of_crops_with_its_w() -> None:
    config = AugmentConfig(global_size=32, local_sizes=(16, 8), num_local_crops=(3, 1))
    batch = multicrop_batch(IMAGES, config, 0, 0, IDS, "device")
    assert {name: array.shape for name, array in batch.items()} == {
        "crops_0": (3, 2, 32, 32, 3),
        "crops_1": (3, 3, 16, 16, 3),
        "crops_2": (3, 1, 8, 8, 3),
        "geo": (3, 6, 7),
        "pho": (3, 6, 12),
    }
    assert {str(array.dtype) for name, array in batch.items() if name.startswith("crops")} == {"uint8"}
    assert batch["geo"].dtype == batch["pho"].dtype == np.float32


def test_batch_without_local_crops() -> None:
    config = AugmentConfig(global_size=32, local_sizes=(), num_local_crops=())
    batch = multicrop_batch(IMAGES, config, 0, 0, IDS, "worker")
    assert sorted(batch) == ["crops_0", "geo", "pho"]


def test_multicrop_is_the_batch_of_one_image() -> None:
    batch = multicrop_batch(IMAGES, SMALL, 5, 6, IDS, "worker")
    for index, (image, image_id) in enumerate(zip(IMAGES, IDS.tolist(), strict=True)):
        views = multicrop(image, SMALL, seed=5, epoch=6, image_id=image_id)
        np.testing.assert_array_equal(views.global_crops, batch["crops_0"][index])
        assert len(views.local_crops) == 1
        np.testing.assert_array_equal(views.local_crops[0], batch["crops_1"][index])
        np.testing.assert_array_equal(views.geo, batch["geo"][index])
        np.testing.assert_array_equal(views.pho, batch["pho"][index])


def test_views_have_their_own_w_applied() -> None:
    batch = multicrop_batch(IMAGES, SMALL, 0, 1, IDS, "device")
    w = sample_views(SMALL, 0, 1, IDS, np.array([image.shape[:2] for image in IMAGES]))
    np.testing.assert_array_equal(batch["geo"], w.geo)
    np.testing.assert_array_equal(batch["pho"], w.pho)
    for index, image in enumerate(IMAGES):
        crops = [*batch["crops_0"][index], *batch["crops_1"][index]]
        for crop, geo in zip(crops, w.geo[index], strict=True):
            assert decibels(crop, pillow_geometric(image, geo)) >= 50


def test_photometrics_left_to_the_device_are_those_of_the_worker() -> None:
    cropped = multicrop_batch(IMAGES, SMALL, 0, 1, IDS, "device")
    finished = multicrop_batch(IMAGES, SMALL, 0, 1, IDS, "worker")
    np.testing.assert_array_equal(cropped["pho"], finished["pho"])
    for name, views in (("crops_0", slice(0, 2)), ("crops_1", slice(2, 5))):
        pho = cropped["pho"][:, views]
        np.testing.assert_array_equal(photometric_worker(cropped[name], pho, SMALL), finished[name])
        on_device = photometric_device(
            torch.from_numpy(cropped[name]).flatten(0, 1), torch.from_numpy(pho).flatten(0, 1), SMALL
        )
        worker = torch.from_numpy(finished[name]).flatten(0, 1).permute(0, 3, 1, 2)
        assert decibels(255 * on_device.numpy(), worker.numpy()) >= 38


def test_crops_of_another_epoch_are_others() -> None:
    first, second = (multicrop_batch(IMAGES[:2], SMALL, 0, epoch, IDS[:2], "worker") for epoch in (0, 1))
    assert all(np.any(first["crops_0"][index] != second["crops_0"][index]) for index in range(2))
    assert np.any(first["geo"] != second["geo"])


def test_images_of_other_sizes_or_ids_than_expected_have_the_w_of_what_they_are() -> None:
    turned, smaller, another = (70, 50), (90, 39), (1, 1)  # sizes of IMAGES but for the first two
    views = ViewBatch(SMALL, 5, 6, np.array([4, 2, 8]), np.array([turned, smaller, another]), "worker")
    for row, (image_id, image) in enumerate(zip(IDS.tolist(), IMAGES, strict=True)):
        views.crop(row, image_id, image)
    for name, array in multicrop_batch(IMAGES, SMALL, 5, 6, IDS, "worker").items():
        np.testing.assert_array_equal(views.arrays()[name], array, err_msg=name)
