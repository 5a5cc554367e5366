"""Lists that were indexed before: known by their content and their files, and never when any of it has changed."""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glsd.config import DataConfig
from glsd.data.index import build_index
from tests.glsd.data.encoding import jpeg, write_jpegs

CONFIG = DataConfig()
SIZE = len(jpeg(0))
NUM_IMAGES = 3


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def a_list(folder: Path, kind: str, **changed: list[str | int]) -> Path:
    """Two images in one file, and one by itself whose size is told by nobody."""
    (folder / "two.bin").write_bytes(jpeg(0) * 2)
    write_jpegs(folder, "one.jpg")
    columns = {"path": ["two.bin", "two.bin", "one.jpg"], "offset": [0, SIZE, -1], "length": [SIZE, SIZE, 0]}
    columns |= {"label": ["a", "b", "a"], "kind": ["x", "x", "y"], **changed}
    path = folder / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    else:
        rows = [list(columns), *zip(*columns.values(), strict=True)]
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_known_list_is_found_again_at_once(tmp_path: Path, cache: Path, kind: str) -> None:
    told = list[int]()
    path = a_list(tmp_path, kind)
    first = build_index(path, CONFIG, cache)
    first.path.with_name(first.path.name.replace(first.key, "0" * 32)).write_bytes(b"what is left of another index")
    assert build_index([path], CONFIG, cache, told.append).path == first.path
    assert told == [NUM_IMAGES]  # not the files that it names, one after the other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: a_list(folder, "csv", label=["a", "b", "b"]), None),
        (lambda folder: os.utime(folder / "one.jpg", ns=(7, 7)), None),
        (lambda folder: (folder / "two.bin").write_bytes(jpeg(0) * 3), None),
        (lambda folder: (folder / "two.bin").write_bytes(jpeg(0)), "do not lie within the file"),
        (lambda folder: (folder / "one.jpg").unlink(), r"one\.jpg is not a file that exists"),
        (lambda folder: (folder / "list.csv").unlink(), r"list\.csv does not exist"),
    ],
)
def test_a_list_of_which_anything_has_changed_is_indexed_again(
    tmp_path: Path, cache: Path, change: Callable[[Path], object], message: str | None
) -> None:
    path = a_list(tmp_path, "csv")
    first = build_index(path, CONFIG, cache)
    change(tmp_path)
    if message is None:
        assert build_index(path, CONFIG, cache).path != first.path
    else:
        with pytest.raises(ValueError, match=message):
            build_index(path, CONFIG, cache)


def test_other_columns_of_a_known_list_are_another_index(tmp_path: Path, cache: Path) -> None:
    path = a_list(tmp_path, "csv")
    classes = [build_index(path, DataConfig(label_column=name), cache).classes for name in ("label", "kind", "label")]
    assert classes == [["a", "b"], ["x", "y"], ["a", "b"]]


def test_a_known_list_beside_a_folder_does_not_hide_that_the_folder_has_changed(tmp_path: Path, cache: Path) -> None:
    path = a_list(tmp_path, "csv", label=["a", "b", "a"])
    folder = tmp_path / "photos"
    write_jpegs(folder, "a/1.jpg", "b/2.jpg")
    assert len(build_index([path, folder], CONFIG, cache)) == NUM_IMAGES + 2
    write_jpegs(folder, "b/3.jpg")
    assert len(build_index([path, folder], CONFIG, cache)) == NUM_IMAGES + 3
