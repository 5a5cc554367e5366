"""Rows of Parquet files that are read where they lie, held to plain pyarrow and to the same rows in tars."""

import csv
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glsd.config import DataConfig
from glsd.data.image_cache import ImageCache
from glsd.data.index import Index, build_index
from glsd.data.packs import claim_pack, index_shards, write_shard
from glsd.data.parquet import MOST_FILES, runs
from glsd.data.regimes import same_subset, write_subset
from glsd.data.requests import Reading, readings
from glsd.storage.counts import counted
from glsd.storage.folder import Folder
from tests.glsd.data.encoding import jpeg, padded
from tests.glsd.storage.object_store import object_store

CONFIG = DataConfig()
KINDS = ("binary", "large_binary", "struct")
LABELS = ("numbers", "names", "none")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def column(images: list[bytes], kind: str) -> Any:
    if kind == "struct":
        return [{"path": None, "bytes": data} for data in images]
    return pa.array(images, kind)


def write(path: Path, images: list[bytes], labels: Any = None, *, groups: list[int], kind: str = "binary", **how: Any):
    """The images as rows in groups of these sizes, with another column before and behind."""
    table = pa.table({"number": list(range(len(images))), "image": column(images, kind), "note": ["x"] * len(images)})
    if labels is not None:
        table = table.append_column("label", [labels])
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema, **how) as writer:
        for start, end in zip(np.cumsum([0, *groups]).tolist(), np.cumsum(groups).tolist(), strict=False):
            writer.write_table(table.slice(start, end - start))
    assert pq.ParquetFile(path).num_row_groups == len(groups)


def rows(path: Path) -> Iterator[tuple[bytes, Any]]:
    """The oracle: image and label of each row, by pyarrow in plain loops."""
    for row in pq.read_table(path).to_pylist():
        image = row["image"]
        yield image["bytes"] if isinstance(image, dict) else image, row.get("label")


def contents(index: Index) -> list[bytes]:
    return [index.read(image_id) for image_id in range(len(index))]


def named_labels(index: Index) -> list[str | None]:
    if index.labels is None or index.classes is None:
        return [None] * len(index)
    return [index.classes[label] for label in index.labels.tolist()]


@pytest.mark.parametrize("seed", range(12))
def test_rows_that_are_read_in_place_are_those_that_would_be_packed(tmp_path: Path, cache: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kind, labelled = KINDS[seed % 3], LABELS[seed // 3 % 3]
    how = {
        "compression": rng.choice(["none", "snappy", "zstd"]),
        "use_dictionary": bool(rng.integers(2)),
        "data_page_version": rng.choice(["1.0", "2.0"]),
        "data_page_size": int(rng.choice([1_000, 1_000_000])),
    }
    for name in ("b/2", "b/10", "a/1"):
        images = [jpeg(int(rng.integers(99))) + rng.bytes(rng.integers(60_000, 120_000)) for _ in range(20)]
        images[3:5] = [b"", images[0]]
        labels = {"numbers": rng.integers(-1, 4, 20), "names": rng.choice(["Käfer", "7", "frog "], 20)}.get(labelled)
        groups = list[int]()
        while sum(groups) < 20:
            groups.append(min(20 - sum(groups), int(rng.integers(1, 9))))
        write(tmp_path / f"here/data/{name}.parquet", images, labels, groups=groups, kind=kind, **how)
        write(tmp_path / f"there/data/{name}.parquet", images, labels, groups=[20], kind=kind, **how)
    here = build_index(tmp_path / "here/data", CONFIG, cache)
    there = build_index(tmp_path / "there/data", CONFIG, cache)
    assert (here.packed, len(there.packed)) == ([], 1)
    assert (here.has_rows, there.has_rows) == (True, False)
    assert here.digest == there.digest
    assert contents(here) == contents(there)
    assert here.lengths.tolist() == there.lengths.tolist() == [len(data) for data in contents(here)]
    assert (here.classes, named_labels(here)) == (there.classes, named_labels(there))
    members = [[index.place(row).member for row in range(60)] for index in (here, there)]
    assert members[0] == members[1]

    expected = {
        f"{path}#{path.relative_to(tmp_path / 'here/data')}/{row:09d}": (
            data,
            None if label is None else str(label).strip(),
        )
        for path in (tmp_path / "here").rglob("*.parquet")
        for row, (data, label) in enumerate(rows(path))
    }
    found = zip(contents(here), named_labels(here), strict=True)
    assert {here.uri(row).rpartition(".")[0]: facts for row, facts in enumerate(found)} == expected


def test_several_sources_have_the_order_and_the_digest_that_they_have_in_tars(tmp_path: Path, cache: Path) -> None:
    images = [padded(jpeg(number)) for number in range(4)]
    for number, name in enumerate(("b", "a", "c")):
        write(tmp_path / f"here/{name}.parquet", images[number : number + 2], groups=[1, 1])
        write(tmp_path / f"there/{name}.parquet", images[number : number + 2], groups=[2])
    indexes = [
        build_index([tmp_path / place / f"{name}.parquet" for name in order], CONFIG, cache)
        for place in ("here", "there") for order in ("bac", "cba")
    ]  # fmt: skip
    assert len({index.digest for index in indexes}) == 1
    assert all(contents(index) == contents(indexes[0]) for index in indexes)
    with pytest.raises(ValueError, match=r"a\.parquet is named twice"):
        build_index([tmp_path / "here/a.parquet"] * 2, CONFIG, cache)


def test_a_source_is_read_in_place_if_each_row_group_has_a_mebibyte_of_images_or_only_one(
    tmp_path: Path, cache: Path
) -> None:
    small, large = bytes(100), bytes(1 << 21)
    for images, groups, is_small in (
        ([small] * 9, [9], True),
        ([large] * 2, [1, 1], True),
        ([large, small, small], [1, 2], True),
        ([large, small, small], [2, 1], False),
    ):
        write(tmp_path / "a.parquet", images, groups=groups)
        size = (tmp_path / "a.parquet").stat().st_size
        assert all(run.is_small for run in runs(str(tmp_path / "a.parquet"), size, CONFIG)) == is_small
        write(tmp_path / "data/a.parquet", images, groups=groups)
        write(tmp_path / "data/b.parquet", [small] * 3, groups=[3])
        assert (build_index(tmp_path / "data", CONFIG, cache).packed == []) == is_small


def test_more_files_than_a_process_keeps_the_footers_of_are_packed(tmp_path: Path, cache: Path) -> None:
    images = [jpeg(number) for number in range(MOST_FILES + 1)]
    for number, image in enumerate(images[:-1]):
        write(tmp_path / f"data/{number:03d}.parquet", [image], groups=[1])
    in_place = build_index(tmp_path / "data", CONFIG, cache)
    assert (in_place.packed, contents(in_place)) == ([], images[:-1])
    write(tmp_path / f"data/{MOST_FILES:03d}.parquet", images[-1:], groups=[1])
    packed = build_index(tmp_path / "data", CONFIG, cache)
    assert (len(packed.packed), contents(packed)) == (1, images)


def test_nobody_is_asked_where_to_pack_what_is_read_in_place(tmp_path: Path, cache: Path) -> None:
    asked = list[str]()

    def packed_in() -> Folder:
        asked.append("")
        return Folder(tmp_path / "beside")

    write(tmp_path / "small.parquet", [jpeg(1), jpeg(2)], groups=[2])
    write(tmp_path / "large.parquet", [padded(jpeg(1)), jpeg(2)], groups=[2])
    for _ in range(2):
        build_index(tmp_path / "small.parquet", CONFIG, cache, packed_in=packed_in)
        assert not asked
    for number in range(2):
        index = build_index(
            [tmp_path / "small.parquet", tmp_path / "large.parquet"], CONFIG, cache, packed_in=packed_in
        )
        assert len(asked) == number + 1
    assert [Path(folder).parent for folder in index.packed] == [tmp_path / "beside"]
    places = [Path(index.place(row).uri).name for row in range(4)]
    assert places == ["000000.tar", "000000.tar", "small.parquet", "small.parquet"]
    assert contents(index) == [padded(jpeg(1)), jpeg(2), jpeg(1), jpeg(2)]


def test_a_column_of_labels_that_only_some_files_have_is_refused(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "data/a.parquet", [jpeg(1)], [1], groups=[1])
    write(tmp_path / "data/b.parquet", [jpeg(1)], groups=[1])
    with pytest.raises(ValueError, match=r"b\.parquet/000000000\.jpg in .*data/b\.parquet has no label; label all"):
        build_index(tmp_path / "data", CONFIG, cache)


@pytest.mark.parametrize("kind", [*KINDS, "binary_view"])
def test_an_image_that_a_group_names_many_times_is_not_made_many_times(tmp_path: Path, cache: Path, kind: str) -> None:
    images = [bytes([number]) * 100_000 for number in (1, 2)] * 300
    write(tmp_path / "a.parquet", images, groups=[600], kind=kind)
    index = build_index(tmp_path / "a.parquet", CONFIG, cache)
    assert index.packed == []
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    try:
        assert [index.read(row) for row in (0, 401)] == images[:2]
    finally:
        pa.set_memory_pool(usual)
    assert 0 < counting.max_memory() < 2_000_000


def test_a_footer_may_be_long(tmp_path: Path, cache: Path) -> None:
    images = [bytes([number % 256]) * number for number in range(300)]
    write(tmp_path / "a.parquet", images, groups=[1] * 300)
    assert pq.read_metadata(tmp_path / "a.parquet").serialized_size > 1 << 16
    index = build_index(tmp_path / "a.parquet", CONFIG, cache)
    assert [index.read(row) for row in (0, 1, 299)] == [images[row] for row in (0, 1, 299)]


def test_threads_read_rows_side_by_side(tmp_path: Path, cache: Path) -> None:
    images = [[jpeg(100 * file + number) for number in range(40)] for file in range(4)]
    for file in range(4):
        write(tmp_path / f"data/{file}.parquet", images[file], groups=[7, 1, 12, 20], kind="struct")
    index = build_index(tmp_path / "data", CONFIG, cache)
    image_ids = np.random.default_rng(0).integers(0, 160, 2_000).tolist()
    with ThreadPoolExecutor(32) as readers:
        found = list(readers.map(index.read, image_ids))
    assert found == [images[image_id // 40][image_id % 40] for image_id in image_ids]


def test_a_file_that_is_gone_changed_or_broken_is_named(tmp_path: Path, cache: Path) -> None:
    path, copy = tmp_path / "a.parquet", tmp_path / "copy.parquet"
    write(path, [jpeg(1), jpeg(2)], groups=[1, 1], compression="none")
    shutil.copyfile(path, copy)
    for is_read_before in (False, True):
        index = build_index(path, CONFIG, cache / str(is_read_before))
        if is_read_before:
            assert contents(index) == [jpeg(1), jpeg(2)]
        path.write_bytes(copy.read_bytes() + b"more")
        with pytest.raises(ValueError, match=r"a\.parquet#.* has changed since .*\(a file of \d+ bytes, not .*rerun"):
            index.read(1)
        path.unlink()
        with pytest.raises(ValueError, match=r"a\.parquet#a\.parquet/000000001\.jpg is gone since the index was made"):
            index.read(1)
        shutil.copyfile(copy, path)
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet, row 0: the file has changed, or is broken"):
        index.read(0)


def test_a_file_that_was_written_anew_in_the_same_size_is_not_read_at_the_old_places(
    tmp_path: Path, cache: Path
) -> None:
    images, sizes = [b"a" * 1_000, b"b" * 1_100], set[int]()
    for _ in range(2):
        images.reverse()
        write(tmp_path / "a.parquet", images, groups=[1, 1], compression="none")
        sizes.add((tmp_path / "a.parquet").stat().st_size)
        assert contents(build_index(tmp_path / "a.parquet", CONFIG, cache)) == images
    assert len(sizes) == 1


def test_a_subset_of_rows_is_a_list_that_can_be_read(tmp_path: Path, cache: Path) -> None:
    images = [padded(jpeg(number)) for number in range(6)]
    write(tmp_path / "rows/a.parquet", images[:4], ["frog", "toad"] * 2, groups=[1, 1, 1, 1])
    write(tmp_path / "tars/a.parquet", images[:4], ["frog", "toad"] * 2, groups=[4])
    write(tmp_path / "packed/b.parquet", images[4:], ["newt"] * 2, groups=[2])
    index = build_index([tmp_path / "rows/a.parquet", tmp_path / "packed"], CONFIG, cache)
    image_ids = np.array([0, 2, 3, 5])
    write_subset(tmp_path / "subset.csv", index, image_ids)
    again = build_index(tmp_path / "subset.csv", CONFIG, cache)
    assert sorted(contents(again)) == sorted(index.read(image_id) for image_id in image_ids.tolist())
    assert sorted(map(str, named_labels(again))) == sorted(str(named_labels(index)[row]) for row in image_ids)
    assert again.packed == []
    with (tmp_path / "subset.csv").open() as file:
        assert {row["image_column"] for row in csv.DictReader(file)} == {"image", ""}

    lists = {}
    for name in ("rows", "tars"):
        write_subset(tmp_path / "list.csv", build_index(tmp_path / name, CONFIG, cache), np.array([1, 3]))
        lists[name] = (tmp_path / "list.csv").read_bytes()
        write_subset(tmp_path / "list.csv", build_index(tmp_path / name, CONFIG, cache), np.array([1, 2]))
        lists[f"other {name}"] = (tmp_path / "list.csv").read_bytes()
    assert same_subset(lists["tars"], lists["rows"])
    assert same_subset(lists["rows"], lists["rows"])
    assert not same_subset(lists["tars"], lists["other rows"])
    assert not same_subset(lists["rows"], lists["other rows"])


def test_rows_that_a_list_names_wrongly_are_told(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "a.parquet", [jpeg(1), jpeg(2)], groups=[2])
    for line, message in (
        ("a.parquet,2,9,image", r"a\.parquet has no row 2, but 2 rows"),
        ("a.parquet,0,9,photo", "no column 'photo'"),
        ("a.parquet,0,9,note", "column 'note' is of type string"),
        ("a.parquet,0,9,image", rf"has {len(jpeg(1))} bytes, not 9; put it back, or rerun"),
    ):
        (tmp_path / "list.csv").write_text(f"path,offset,length,image_column\n{line}\n")
        index = build_index(tmp_path / "list.csv", CONFIG, cache)
        with pytest.raises(ValueError, match=message):
            index.read(0)
    (tmp_path / "list.csv").write_text("path,offset,length,image_column\na.parquet,-1,9,image\n")
    with pytest.raises(ValueError, match="line 2: there is no row -1; rows are counted from 0"):
        build_index(tmp_path / "list.csv", CONFIG, cache)
    (tmp_path / "list.csv").write_text("path,image_column\na.parquet,image\n")
    with pytest.raises(ValueError, match="a column 'image_column' and no 'offset'; name both"):
        build_index(tmp_path / "list.csv", CONFIG, cache)


def test_rows_are_packed_into_shards_as_other_images(tmp_path: Path, cache: Path) -> None:
    images = [jpeg(number) for number in range(6)]
    write(tmp_path / "a.parquet", images, [1, 0, 1, 0, 1, 0], groups=[4, 2])
    index, out = build_index(tmp_path / "a.parquet", CONFIG, cache), Folder(tmp_path / "shards")
    shards = index_shards(index, 5_000)
    claim_pack(out, index, shards)
    for shard in shards:
        write_shard(shard, index, out)
    packed = build_index(tmp_path / "shards", CONFIG, cache)
    assert contents(packed) == images
    assert named_labels(packed) == named_labels(index)


def test_a_row_costs_a_store_one_request_and_none_once_it_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    images, asked = [jpeg(number) for number in range(12)], list[str]()
    write(tmp_path / "bucket/data/a.parquet", images, groups=[5, 5, 2])
    with object_store(tmp_path, asked) as address:
        index = build_index(f"s3://bucket/data?endpoint_override={address}&scheme=http", CONFIG)
        assert readings(index, np.arange(12), 12) == [Reading("s3://", 12, 12)]
        index.read(0)
        asked.clear()
        before = counted()
        assert contents(index) == images
        assert len(asked) == 12
        assert counted()["requests"] - before["requests"] == 12
        keeping = ImageCache(index, None, 1 << 20)
        for _ in range(2):
            assert [keeping.read(row) for row in range(12)] == images
        assert len(asked) == 24
