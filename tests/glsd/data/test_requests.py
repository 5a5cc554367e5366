"""The requests that a training is said to make, held to those that servers see."""

from pathlib import Path

import numpy as np
import pytest

from glsd.config import DataConfig
from glsd.data.index import Index, build_index
from glsd.data.requests import Reading, reading_cost, readings
from glsd.data.tars import write_tar
from tests.glsd.storage.google_store import REQUESTS, google_store
from tests.glsd.storage.object_store import object_store
from tests.images import labelled_folder

ALL = np.arange(40)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty images in files, and in one tar."""
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    photos, shards = labelled_folder(tmp_path / "store/bucket/photos"), tmp_path / "store/bucket/shards"
    shards.mkdir()
    with (shards / "0.tar").open("wb") as stream:
        write_tar(stream, ((path.name, path.read_bytes()) for path in sorted(photos.rglob("*.*"))))
    return tmp_path / "store"


def read_all(index: Index) -> None:
    for image_id in ALL.tolist():
        index.read(image_id)


@pytest.mark.parametrize(("kind", "per_image", "num_tars"), [("photos", 2, 0), ("shards", 1, 1)])
def test_an_epoch_asks_s3_twice_for_an_image_in_a_file_of_its_own_and_once_for_one_in_a_tar(
    store: Path, kind: str, per_image: int, num_tars: int
) -> None:
    asked = list[str]()
    with object_store(store, asked) as address:
        index = build_index(f"s3://bucket/{kind}?endpoint_override={address}&scheme=http", DataConfig())
        asked.clear()
        read_all(index)
    assert readings(index, ALL, 40) == [Reading("s3://", 40, 40 * per_image)]
    assert len(asked) == 40 * per_image + num_tars
    assert readings(index, ALL[:10], 8) == [Reading("s3://", 8, 8 * per_image)]


def test_an_epoch_asks_google_once_for_an_image_in_a_file_of_its_own(store: Path) -> None:
    with google_store(store) as address:
        options = f"?endpoint_override={address}&scheme=http&retry_limit_seconds=1"
        index = build_index(f"gs://anonymous@bucket/photos{options}", DataConfig())
        before = len((store / REQUESTS).read_text().splitlines())
        read_all(index)
    assert readings(index, ALL, 40) == [Reading("gs://", 40, 40)]
    assert len((store / REQUESTS).read_text().splitlines()) - before == 40


def test_local_images_cost_no_request_and_those_of_a_store_beside_them_do(store: Path) -> None:
    assert reading_cost(build_index(store / "bucket/photos", DataConfig()), ALL, 40, 300, 0) == []
    with object_store(store) as address:
        sources = [str(store / "bucket/photos"), f"s3://bucket/photos?endpoint_override={address}&scheme=http"]
        index = build_index(sources, DataConfig())
    assert readings(index, np.arange(80), 80) == [Reading("s3://", 40, 80)]


def test_what_a_cache_and_tars_would_save_is_said(store: Path) -> None:
    with object_store(store) as address:
        options = f"?endpoint_override={address}&scheme=http"
        files, tars = (build_index(f"s3://bucket/{kind}{options}", DataConfig()) for kind in ("photos", "shards"))
    num_bytes = int(files.lengths.sum())
    price = "at $0.40 per million"
    assert reading_cost(files, ALL, 1_281_167, 300, 0) == [
        f"reading s3://: 2,562,334 requests per epoch, 768,700,200 in 300 epochs, about $307 {price}",
        "  --cache_gib 1 keeps all images on each node's disk: 2,562,334 requests of each node in all, about $1.02",
        "  in tars (glsd pack): 384,350,100 requests in 300 epochs, about $154",
    ]
    first = "reading s3://: 1,000,000 requests in the first epoch of a node"
    assert reading_cost(tars, ALL, 1_000_000, 300, num_bytes) == [
        f"{first}, 0 in each later one, 1,000,000 in 300 epochs, about $0.40 {price}"
    ]
    quarter, all_kept = reading_cost(tars, ALL, 1_000_000, 301, num_bytes // 4)
    later, total = (int(part.split()[0].replace(",", "")) for part in quarter.removeprefix(first).split(", ")[1:3])
    assert later == pytest.approx(750_000, abs=10)
    assert total == 1_000_000 + 300 * later
    assert "--cache_gib 1 keeps all images" in all_kept
