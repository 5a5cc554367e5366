import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.data.packs import plan_shards
from glsd.data.regimes import regime
from glsd.storage.folder import Folder
from ray_jobs.packing import Packed, pack
from ray_jobs.packing_options import PackOptions

SHARD_BYTES = 40_960
SMALL = PackOptions(shard_mib=1)
"""Five of the images below fill a shard."""


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty-three images of two classes, one of them broken and one with the wrong suffix."""
    folder = tmp_path / "photos"
    for name in ("grüne Äpfel", "pears"):
        (folder / name).mkdir(parents=True)
    for seed in range(21):
        (folder / ("pears" if seed % 3 else "grüne Äpfel") / f"{seed:02d}.png").write_bytes(png(seed))
    (folder / "pears" / "broken.jpg").write_bytes(b"not an image")
    (folder / "pears" / "mislabelled.jpg").write_bytes(png(99))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_packing_keeps_every_image_its_label_and_its_image_id_and_goes_on_after_a_kill(
    photos: Path, tmp_path: Path
) -> None:
    news, out, cache = list[tuple[str, ...]](), tmp_path / "shards", tmp_path / "cache"
    packed = pack(photos, str(out), SMALL, lambda *said: news.append(said), cache)
    before, after = build_index(photos, DataConfig(), cache), build_index(out, DataConfig(), cache)
    assert [after.read(k) for k in range(len(after))] == [before.read(k) for k in range(len(before))]
    assert before.labels is not None
    assert after.labels is not None
    assert after.labels.tolist() == before.labels.tolist()
    assert after.classes == before.classes
    assert json.loads((out / "classes.json").read_bytes()) == before.classes
    assert packed == Packed(
        str(out), 23, len(list(out.glob("*.tar"))), sum(p.stat().st_size for p in out.glob("*.tar")), 0
    )
    assert packed.num_shards > 2
    assert news[-1] == ("packing", "23/23 images")

    first = contents(out)
    (out / "000001.tar").unlink()
    (out / "000000.tar").write_bytes(b"cut off")
    with pytest.raises(
        ValueError, match=r"of which 2 are missing or of another size, such as 000000\.tar: the pack is not"
    ):
        build_index(out, DataConfig(), cache)
    again = pack(photos, str(out), SMALL, cache_dir=cache)
    assert again.num_shards_kept == packed.num_shards - 2
    assert contents(out) == first

    store = Folder("bucket/shards", pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem()))
    pack(photos, store, SMALL, cache_dir=cache)
    assert contents(tmp_path / "bucket" / "shards") == first

    with pytest.raises(ValueError, match=r"holds shards of another size \(\d+ shards, now 1\)"):
        pack(photos, str(out), PackOptions(shard_mib=1024), cache_dir=cache)
    (photos / "pears" / "00.png").write_bytes(png(7))
    with pytest.raises(ValueError, match=r"holds shards of other data \(23 images, now 24\)"):
        pack(photos, str(out), SMALL, cache_dir=cache)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("texts", [("7", "-3", "12"), ("01", "1", "12")])
def test_packing_keeps_class_ids_that_are_numbers_and_names_that_only_look_like_them(
    photos: Path, tmp_path: Path, texts: tuple[str, str, str]
) -> None:
    paths = sorted(path for path in photos.rglob("*.png"))
    rows = "".join(f"{path},{texts[number % 3]}\n" for number, path in enumerate(paths))
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}", encoding="utf-8")
    out, cache, config = tmp_path / "shards", tmp_path / "cache", DataConfig(images_per_class=3)
    pack(tmp_path / "list.csv", str(out), SMALL, cache_dir=cache)
    before, after = build_index(tmp_path / "list.csv", config, cache), build_index(out, config, cache)
    assert (after.classes, after.class_ids) == (before.classes, before.class_ids)
    assert before.labels is not None
    assert after.labels is not None
    assert after.labels.tolist() == before.labels.tolist()
    assert regime(after, config).tolist() == regime(before, config).tolist()
    assert (out / "classes.json").exists() == (before.class_ids is None)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_pack_is_completed_from_a_copy_and_one_of_an_earlier_version_from_unchanged_files(
    photos: Path, tmp_path: Path
) -> None:
    out, cache = tmp_path / "shards", tmp_path / "cache"
    pack(photos, str(out), SMALL, cache_dir=cache)
    first = contents(out)
    (out / "000001.tar").unlink()
    pack(shutil.copytree(photos, tmp_path / "copy"), str(out), SMALL, cache_dir=cache)
    assert contents(out) == first
    plan = json.loads(first["pack.json"]) | {"digest": build_index(photos, DataConfig(), cache).key}
    (out / "pack.json").write_text(json.dumps(plan))
    (out / "000001.tar").unlink()
    pack(photos, str(out), SMALL, cache_dir=cache)
    assert {**contents(out), "pack.json": first["pack.json"]} == first


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_an_image_that_is_gone_stops_the_packing_in_words(photos: Path, tmp_path: Path) -> None:
    def remove(subject: str, detail: str) -> None:
        if subject == "packing" and detail.startswith("0/"):
            (photos / "pears" / "01.png").unlink()

    with pytest.raises(ValueError, match=r"^00000\d\.tar was not written: .*01\.png is gone since the index was made"):
        pack(photos, str(tmp_path / "shards"), SMALL, remove, tmp_path / "cache")


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_shard_that_was_written_and_is_not_in_the_folder_is_missed_in_the_end(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.packing.SHOWN_LATE_S", 1.0)

    def lose(subject: str, detail: str) -> None:  # as a worker does that writes to a disk of its own
        if (subject, detail) == ("packing", "23/23 images"):
            (tmp_path / "shards" / "000001.tar").unlink()

    with pytest.raises(
        ValueError, match=r"^1 of \d+ shards .* are not in .*shards, such as 000001\.tar; .* all nodes share"
    ):
        pack(photos, str(tmp_path / "shards"), SMALL, lose, tmp_path / "cache")


@pytest.mark.ray
def test_a_folder_within_the_images_is_refused_and_not_made(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"photos/shards lies within .*photos"):
        pack([tmp_path / "others", photos], str(photos / "shards"), cache_dir=tmp_path / "cache")
    assert not (photos / "shards").exists()


@pytest.mark.ray
def test_a_folder_with_other_files_is_refused(photos: Path, tmp_path: Path) -> None:
    (photos / "grüne Äpfel").rename(tmp_path / "apples")
    with pytest.raises(ValueError, match=r"holds pears but no pack\.json; name a new or an empty folder"):
        pack(tmp_path / "apples", str(photos), cache_dir=tmp_path / "cache")


@pytest.mark.ray
@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 10**6)), min_size=1, max_size=30), st.booleans())
def test_planned_sizes_are_those_of_the_tars_and_every_image_is_in_one(
    images: list[tuple[int, int]], labelled: bool
) -> None:
    lengths, labels = (np.array(column) for column in zip(*images, strict=True))
    shards = plan_shards(lengths, labels if labelled else None, SHARD_BYTES)
    assert [k for shard in shards for k in range(shard.first, shard.last)] == list(range(len(images)))
    for shard in shards:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for length, label in images[shard.first : shard.last]:
                for size in (length, *([len(str(label))] if labelled else [])):
                    member = tarfile.TarInfo("000000000.jpg")
                    member.size = size
                    tar.addfile(member, io.BytesIO(bytes(size)))
        assert shard.num_bytes == len(content.getvalue())
        assert shard.num_bytes <= SHARD_BYTES or shard.last == shard.first + 1
