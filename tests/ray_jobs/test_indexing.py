import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glsd.config import Config, DataConfig
from glsd.data.index import Index, build_index
from glsd.storage.folder import Folder
from ray_jobs.cluster.pieces import each_on, over_cluster
from ray_jobs.indexing import adopt, indexed
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from tests.glsd.data.encoding import jpeg, padded, write_tar

CONFIG, JOB = DataConfig(), JobSettings(gpu=False)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twenty tars, too many for threads, of one to three labelled images."""
    for number in range(20):
        members = {f"{k}.jpg": jpeg(10 * number + k) for k in range(1 + number % 3)}
        labels = {f"{k}.cls": f"{number % 4}".encode() for k in range(len(members))}
        write_tar(tmp_path / f"data/{number:02d}.tar", {**members, **labels, "notes.heic": b"-"})
    return tmp_path / "data"


def facts(index: Index) -> tuple[object, ...]:
    assert index.labels is not None
    return index.digest, index.labels.tolist(), [index.place(image_id) for image_id in range(len(index))]


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_an_index_made_by_tasks_is_the_one_made_by_threads(shards: Path, tmp_path: Path) -> None:
    counts: list[int] = []
    with pytest.warns(UserWarning, match=r"also holds 20 files of kinds that are not read: \.heic 20"):
        by_threads = build_index(shards, CONFIG, tmp_path / "one")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        by_tasks = build_index(shards, CONFIG, tmp_path / "other", counts.append, each_on(JOB))
    assert any("also holds 20 files of kinds that are not read: .heic 20" in str(one.message) for one in told)
    assert facts(by_tasks) == facts(by_threads)
    assert counts == sorted(counts)
    assert counts[-1] >= len(by_tasks)

    (shards / "07.tar").write_bytes(b"no tar at all " * 100)
    with pytest.raises(ValueError, match=r"07\.tar is not a plain tar, or is broken"):
        build_index(shards, CONFIG, tmp_path / "other", each=each_on(JOB))
    assert len(list((tmp_path / "other").glob("*.arrow"))) == 1


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_tasks_pack_parquet_as_threads_do_and_only_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(20):
        table = pa.table({"image": [padded(jpeg(2 * number)), jpeg(2 * number + 1)], "label": [number % 3, 1]})
        pq.write_table(table, tmp_path / f"data/{number:02d}.parquet")
    out = Folder(tmp_path / "out.packed")
    here = build_index(tmp_path / "data", CONFIG, tmp_path / "cache")
    there = build_index(tmp_path / "data", CONFIG, tmp_path / "cache", each=each_on(JOB), packed_in=lambda: out)
    assert there.digest == here.digest
    images = [jpeg(seed) if seed % 2 else padded(jpeg(seed)) for seed in range(40)]
    assert [there.read(image_id) for image_id in range(40)] == images
    tars = sorted((tmp_path / "out.packed").rglob("*.tar"))
    assert len(tars) == 20
    tars[3].unlink()
    there.path.unlink()
    before = {tar: tar.stat().st_mtime_ns for tar in tars if tar.exists()}
    build_index(tmp_path / "data", CONFIG, tmp_path / "cache", each=each_on(JOB), packed_in=lambda: out)
    assert {tar: tar.stat().st_mtime_ns for tar in before} == before
    assert tars[3].exists()


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_every_piece_is_done_once_and_an_error_of_one_is_told() -> None:
    assert dict(over_cluster(len, ["", "a", "bb"])) == {0: 0, 1: 1, 2: 2}
    with pytest.raises(ValueError, match="invalid literal for int"):
        list(over_cluster(int, ["1", "two", "3"]))


def test_a_trial_does_not_list_the_data_that_its_sweep_has_listed(shards: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="heic"):
        index = build_index(shards, CONFIG, tmp_path / "cache")
    sources = [str(tmp_path / "nowhere")]
    with ProgressLine() as line:
        with pytest.raises(ValueError, match=r"--data: .*nowhere does not exist"):
            indexed(sources, Config(), line, JOB)
        adopt(sources, index)
        assert indexed(tuple(sources), Config(), line, JOB) is index
