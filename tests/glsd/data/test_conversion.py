import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glsd.config import DataConfig
from glsd.data.index import Index, build_index
from glsd.storage.folder import Folder
from tests.glsd.data.encoding import jpeg
from tests.glsd.storage.object_store import object_store

CONFIG = DataConfig()


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    """Three compressed tars of two images each."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        write_compressed(folder / f"{number}.tar.gz", 2 * number)
    return folder


def write_compressed(path: Path, seed: int) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in ((f"{seed}.jpg", jpeg(seed)), (f"{seed + 1}.jpg", jpeg(seed + 1))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def contents(index: Index) -> list[bytes]:
    return [index.read(image_id) for image_id in range(len(index))]


def test_tars_that_are_there_are_not_written_again(compressed: Path, tmp_path: Path) -> None:
    out = Folder(tmp_path / "packed")
    whole = build_index(compressed, CONFIG, tmp_path / "cache", packed_in=lambda: out)
    (folder,) = whole.packed
    written = {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}
    assert sorted(written) == ["000000.tar", "000001.tar", "000002.tar"]
    (Path(folder) / "000001.tar").unlink()
    whole.path.unlink()
    again = build_index(compressed, CONFIG, tmp_path / "cache", packed_in=lambda: out)
    assert contents(again) == [jpeg(seed) for seed in range(6)]
    now = {path.name: path.stat().st_mtime_ns for path in Path(folder).iterdir()}
    assert {name for name in written if now[name] == written[name]} == {"000000.tar", "000002.tar"}


def test_where_images_are_packed_changes_neither_their_order_nor_the_digest(
    compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.setenv(name, "true")
    (tmp_path / "bucket").mkdir()
    here = build_index(compressed, CONFIG, tmp_path / "cache")
    with object_store(tmp_path) as address:
        out = Folder(f"s3://bucket/runs/one?endpoint_override={address}&scheme=http")
        there = build_index(compressed, CONFIG, tmp_path / "cache", packed_in=lambda: out.beside(".packed"))
        assert there.packed[0].startswith("s3://bucket/runs/one.packed/packed-")
        assert contents(there) == contents(here)
        assert there.digest == here.digest
        assert there.path != here.path
        tars = sorted((tmp_path / "bucket/runs").rglob("*.tar"))
        assert len(tars) == 3
        for tar in tars:
            tar.unlink()
        again = build_index(compressed, CONFIG, tmp_path / "cache", packed_in=lambda: out.beside(".packed"))
        assert contents(again) == contents(here), "tars that are gone are written again"


def test_a_large_parquet_file_becomes_tars_of_some_row_groups_each(tmp_path: Path) -> None:
    noise = [bytes([number]) * 1000 + jpeg(number) for number in range(7)]  # undecodable, and told apart
    large = pa.table({"image": [data * 60_000 for data in noise], "label": list(range(7))})
    pq.write_table(large, tmp_path / "a.parquet", row_group_size=2)
    index = build_index(tmp_path / "a.parquet", CONFIG, tmp_path / "cache")
    assert len(list(Path(index.packed[0]).iterdir())) > 1
    assert [index.read(row)[:2000] for row in range(7)] == [data[:1000] + data[1000:2000] for data in map(first, noise)]
    assert [str(index.place(row).member) for row in range(7)] == [f"a.parquet/{row:09d}.jpg" for row in range(7)]
    assert index.labels is not None
    assert index.labels.tolist() == list(range(7))


def test_a_parquet_file_without_rows_holds_no_image(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet holds no image"):
        build_index(tmp_path / "a.parquet", CONFIG, tmp_path / "cache")


def first(data: bytes) -> bytes:
    return (data * 2)[:2000]
