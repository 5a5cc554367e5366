"""Images of an object store on a node's disk: read once, bounded, and making way for other data sets."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from glsd.config import DataConfig
from glsd.data.image_cache import ImageCache
from glsd.data.index import Index, build_index
from tests.glsd.storage.object_store import object_store
from tests.images import labelled_folder

ASKED = list[str]
EVERYTHING = 2**30


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Index, ASKED]]:
    """The index of 40 images in an object store, and what the store is asked for."""
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    labelled_folder(tmp_path / "store/bucket/photos", num_images=40)
    asked = ASKED()
    with object_store(tmp_path / "store", asked) as address:
        yield build_index(f"s3://bucket/photos?endpoint_override={address}&scheme=http", DataConfig()), asked


def read_all(cache: ImageCache, index: Index) -> list[bytes]:
    return [cache.read(image_id) for image_id in range(len(index))]


def num_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("images-*/*/*"))


def folders(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("images-*") if path.is_dir()}


def test_an_image_of_an_object_store_is_asked_for_once_and_then_read_from_this_disk(
    stored: tuple[Index, ASKED], tmp_path: Path
) -> None:
    index, asked = stored
    images = read_all(ImageCache(index, None, EVERYTHING), index)
    assert images == [index.read(image_id) for image_id in range(40)]
    asked.clear()
    assert read_all(ImageCache(index, None, EVERYTHING), index) == images
    assert asked == []
    assert num_bytes(tmp_path / "cache") == index.lengths.sum()


def test_a_file_of_the_cache_that_was_cut_is_read_from_the_store_again(
    stored: tuple[Index, ASKED], tmp_path: Path
) -> None:
    index, _ = stored
    cache = ImageCache(index, None, EVERYTHING)
    images = read_all(cache, index)
    for path in (tmp_path / "cache").glob("images-*/*/*"):
        path.write_bytes(path.read_bytes()[:-1])
    assert read_all(cache, index) == images
    assert num_bytes(tmp_path / "cache") == index.lengths.sum()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_what_is_kept_stays_below_the_bound_near_it_and_the_same_in_every_epoch(
    stored: tuple[Index, ASKED], tmp_path: Path, share: float
) -> None:
    index, asked = stored
    most = int(share * index.lengths.sum())
    read_all(ImageCache(index, None, most), index)
    kept = num_bytes(tmp_path / "cache")
    assert most - index.lengths.max() < kept <= most
    asked.clear()
    read_all(ImageCache(index, None, most), index)
    num_kept = len(list((tmp_path / "cache").glob("images-*/*/*")))
    assert asked.count("GET") == 40 - num_kept
    assert num_bytes(tmp_path / "cache") == kept


def test_a_lower_bound_deletes_what_is_beyond_it(stored: tuple[Index, ASKED], tmp_path: Path) -> None:
    index, _ = stored
    read_all(ImageCache(index, None, EVERYTHING), index)
    most = int(index.lengths.sum() // 2)
    ImageCache(index, None, most)
    assert most - index.lengths.max() < num_bytes(tmp_path / "cache") <= most


def test_a_data_set_that_no_process_uses_makes_way_and_one_in_use_stays(
    stored: tuple[Index, ASKED], tmp_path: Path
) -> None:
    index, _ = stored
    most = int(index.lengths.sum())
    fill = (
        "import sys, numpy as np\nfrom glsd.data.image_cache import ImageCache\nfrom glsd.data.index import Index\n"
        f"cache = ImageCache(Index({str(index.path)!r}), np.arange(30), {most})\n"
        "for image_id in range(30): cache.read(image_id)\n"
    )
    code = f"{fill}print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        (theirs,) = folders(tmp_path / "cache")
        read_all(ImageCache(index, None, most), index)  # what the other has left
        assert theirs in folders(tmp_path / "cache")
        assert num_bytes(tmp_path / "cache") <= most
        other.communicate("\n")
    read_all(ImageCache(index, None, most), index)
    assert theirs not in folders(tmp_path / "cache")
    assert num_bytes(tmp_path / "cache") == most


def test_a_cache_that_stays_open_takes_the_room_that_another_data_set_leaves(
    stored: tuple[Index, ASKED], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glsd.data.image_cache._CLAIM_S", 0.0)
    index, _ = stored
    most = int(index.lengths.sum())
    code = (
        "import numpy as np\nfrom glsd.data.image_cache import ImageCache\nfrom glsd.data.index import Index\n"
        f"ImageCache(Index({str(index.path)!r}), np.arange(30), {most}); print('ready', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        cache = ImageCache(index, None, most)
        read_all(cache, index)
        assert num_bytes(tmp_path / "cache") < most
        other.communicate("\n")
    read_all(cache, index)
    assert num_bytes(tmp_path / "cache") == most


def test_local_files_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    index = build_index(labelled_folder(tmp_path / "photos", num_images=8), DataConfig())
    cache = ImageCache(index, np.array([1, 3]), EVERYTHING)
    assert [cache.read(image_id) for image_id in (1, 3)] == [index.read(image_id) for image_id in (1, 3)]
    assert num_bytes(tmp_path / "cache") == 0
