import hashlib
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glsd.config import DataConfig
from glsd.data.index import Index, build_index
from glsd.data.memory import check_memory
from tests.glsd.data.encoding import jpeg, padded, write_jpegs, write_tar

CONFIG = DataConfig()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jpegs(tmp_path / "data", "frog/1.jpg", "frog/2.jpg", "toad/1.jpg")
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_an_unchanged_folder_is_indexed_once(data: Path, cache: Path) -> None:
    first = build_index(data, CONFIG, cache)
    made = first.path.stat().st_mtime_ns
    again = build_index(str(data) + "/", CONFIG, cache)
    assert again.path == first.path
    assert again.digest == first.digest
    assert first.path.stat().st_mtime_ns == made


def test_a_changed_folder_has_another_digest(data: Path, cache: Path) -> None:
    digests = [build_index(data, CONFIG, cache).digest]
    write_jpegs(data, "toad/2.jpg")
    digests.append(build_index(data, CONFIG, cache).digest)
    (data / "toad/2.jpg").write_bytes(jpeg(0) + b"longer")
    digests.append(build_index(data, CONFIG, cache).digest)
    (data / "toad/2.jpg").rename(data / "toad/3.jpg")
    digests.append(build_index(data, CONFIG, cache).digest)
    (data / "toad/3.jpg").unlink()
    assert len(set(digests)) == 4
    assert build_index(data, CONFIG, cache).digest == digests[0]


def test_a_file_of_another_time_has_another_index_of_the_same_digest(data: Path, cache: Path) -> None:
    before = build_index(data, CONFIG, cache)
    os.utime(data / "toad/1.jpg", ns=(1, 1))
    after = build_index(data, CONFIG, cache)
    assert after.digest == before.digest
    assert after.key != before.key
    assert after.path != before.path


def several_kinds(root: Path) -> dict[str, list[str]]:
    """Sources of every kind, by what is special about them; paths are relative to root."""
    write_jpegs(root, "folder/toad/1.jpg", "folder/frog/1.jpg", "folder/frog/1.jpg.jpg", "flat/b.jpg", "flat/a.jpg")
    (root / "list.csv").write_text("path,label\nflat/b.jpg,1\nflat/a.jpg,2\n")
    for shard in range(3):
        write_tar(
            root / f"tars/{shard}.tar", {"a.jpg": jpeg(shard), "a.cls": b"%d" % shard, "b.jpg": jpeg(5), "b.cls": b"1"}
        )
        write_tar(root / f"gz/{shard}.tar.gz", {"a.jpg": jpeg(shard), "b.jpg": jpeg(5)}, "w:gz")
        (root / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [jpeg(10 * shard), jpeg(shard)]}), root / f"parquet/{shard}.parquet")
        (root / "packed").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [padded(jpeg(10 * shard)), jpeg(shard)]}), root / f"packed/{shard}.parquet")
    (root / "absolute.txt").write_text(f"{root}/flat/a.jpg\n{root}/folder/toad/1.jpg\n")
    return {
        "a folder": ["folder"],
        "a list": ["list.csv"],
        "a list of absolute paths": ["absolute.txt"],
        "one image": ["flat/a.jpg"],
        "a folder of tars": ["tars"],
        "tars": ["tars/{0..2}.tar"],
        "a folder of Parquet files": ["parquet"],
        "Parquet files": ["parquet/{0..2}.parquet"],
        "a folder of Parquet files that are packed": ["packed"],
        "compressed tars": ["gz/0.tar.gz", "gz/1.tar.gz", "gz/2.tar.gz"],
        "several": ["flat", "folder/frog", "parquet/0.parquet", "packed/1.parquet", "tars"],
    }


@pytest.mark.filterwarnings("ignore:the labels of some sources are not used")
def test_a_copy_elsewhere_has_the_same_digest_and_the_same_images_in_the_same_order(tmp_path: Path) -> None:
    sources, before = several_kinds(tmp_path / "data"), dict[str, Index]()
    for kind, names in sources.items():
        before[kind] = build_index([tmp_path / "data" / name for name in names], CONFIG, tmp_path / "cache")
    moved = tmp_path / "zz/another name"
    shutil.copytree(tmp_path / "data", moved, copy_function=shutil.copyfile)
    (moved / "absolute.txt").write_text((moved / "absolute.txt").read_text().replace(f"{tmp_path}/data", str(moved)))
    for kind, names in sources.items():
        after = build_index([moved / name for name in names], CONFIG, tmp_path / "another cache")
        assert after.digest == before[kind].digest, kind
        images = [[index.read(row) for row in range(len(index))] for index in (before[kind], after)]
        assert images[0] == images[1], kind
        assert after.key != before[kind].key
    assert len({index.digest for kind, index in before.items() if kind not in ("tars", "Parquet files")}) == 9
    assert before["tars"].digest == before["a folder of tars"].digest


def digest_of_format_2(root: Path, names: list[str], kind: str) -> str:
    """What an index of format 2 had as digest, and runs have in their data.json."""
    files = [root / name for name in names]
    digest = hashlib.sha256(b"2")
    for text in (kind, str(root), "", *map(str, files)):
        digest.update(text.encode() + b"\0")
    for facts in ([file.stat().st_size for file in files], [file.stat().st_mtime_ns for file in files]):
        digest.update(struct.pack(f"<{len(files)}q", *facts))
    return digest.hexdigest()[:32]


def test_an_index_also_has_the_digest_of_format_2_while_the_data_stay_where_they_are(data: Path, cache: Path) -> None:
    former = digest_of_format_2(data, ["toad/1.jpg", "frog/1.jpg", "frog/2.jpg"], "images")  # in the order of the walk
    index = build_index(data, CONFIG, cache)
    assert index.has_digest(former)
    assert index.has_digest(index.digest)
    assert not index.has_digest(None)
    data.rename(data.with_name("moved"))
    moved = build_index(data.with_name("moved"), CONFIG, cache)
    assert not moved.has_digest(former)
    assert moved.has_digest(index.digest)


def test_an_index_has_the_digest_of_format_2_only_if_its_images_have_the_same_order(
    tmp_path: Path, cache: Path
) -> None:
    several_kinds(tmp_path / "data")
    kept = []
    for shards in permutations(range(3)):
        sources = [tmp_path / f"data/packed/{shard}.parquet" for shard in shards]
        index = build_index(sources, CONFIG, cache)
        packed = [index.place(row).uri for row in range(len(index))]  # by which format 2 sorted
        assert index.has_digest(index.key) == (packed == sorted(packed))
        kept.append(index.digest)
    assert len(set(kept)) == 1


def test_a_changed_list_has_another_digest(cache: Path, tmp_path: Path) -> None:
    write_jpegs(tmp_path, "1.jpg")
    digests = []
    for label in ("a", "b", "a"):
        (tmp_path / "list.csv").write_text(f"path,label\n1.jpg,{label}\n")
        digests.append(build_index(tmp_path / "list.csv", CONFIG, cache).digest)
    assert digests[0] == digests[2] != digests[1]


def test_settings_that_do_not_matter_do_not_change_the_digest(data: Path, cache: Path) -> None:
    other = DataConfig(image_column="x", unit_size=8, fraction=0.5)
    assert build_index(data, CONFIG, cache).digest == build_index(data, other, cache).digest


def test_an_index_is_pickled_by_its_path(data: Path, cache: Path) -> None:
    index = build_index(data, CONFIG, cache)
    assert index.labels is not None
    sent = pickle.dumps(index)
    assert len(sent) < 300
    received: Index = pickle.loads(sent)
    assert [received.read(row) for row in range(3)] == [index.read(row) for row in range(3)]
    assert (received.digest, received.classes, len(received)) == (index.digest, ["frog", "toad"], 3)
    assert Index.open(index.path).labels is not None


def test_the_index_is_an_arrow_file(data: Path, cache: Path) -> None:
    table = pa.ipc.open_file(build_index(data, CONFIG, cache).path).read_all()
    assert table.column_names == ["uri", "member", "offset", "length", "file_size", "image_column", "label"]
    assert table["offset"].to_pylist() == [-1, -1, -1]
    sizes = [path.stat().st_size for path in sorted(data.rglob("*.jpg"))]
    assert table["length"].to_pylist() == table["file_size"].to_pylist() == sizes
    assert table["label"].to_pylist() == [0, 0, 1]


def test_the_cache_folder_is_the_users_or_named_by_the_environment(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLSD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build_index(data, CONFIG).path.parent == tmp_path / "xdg/glsd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build_index(data, CONFIG).path.parent == tmp_path / "home/.cache/glsd"
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "named"))
    assert build_index(data, CONFIG).path.parent == tmp_path / "named"
    assert build_index(data, CONFIG, tmp_path / "given").path.parent == tmp_path / "given"


def digest_in_plain_words(index: Index, names: list[str]) -> str:
    """SHA-256 of classes, then names, members, offsets, lengths, sizes and labels of the images in their order."""
    places = [index.place(image_id) for image_id in range(len(index))]
    digest = hashlib.sha256(json.dumps(["3", index.classes]).encode())
    for texts in (names, [place.member or "" for place in places]):
        digest.update("\0".join(texts).encode() + b"\0\0")
    labels = [-1] * len(places) if index.labels is None else index.labels.tolist()
    for numbers in (
        [place.offset for place in places],
        [place.length for place in places],
        [place.file_size for place in places],
        labels,
    ):
        digest.update(struct.pack(f"<{len(places)}q", *numbers))
    return digest.hexdigest()[:32]


def test_the_digest_of_a_long_list_is_that_of_its_images_one_by_one(tmp_path: Path, cache: Path) -> None:
    num_images, num_shards = 70_000, 7  # more than are looked at at once
    for shard in range(num_shards):
        (tmp_path / f"shard-{shard}.bin").write_bytes(bytes(100_000))
    rows = [(number % num_shards, number // num_shards * 9) for number in range(num_images)]
    text = "".join(f"shard-{shard}.bin,{offset},9,{offset % 5}\n" for shard, offset in rows)
    (tmp_path / "list.csv").write_text(f"path,offset,length,label\n{text}")
    index = build_index(tmp_path / "list.csv", CONFIG, cache)
    rows.sort()
    assert [index.place(k)[:3] for k in range(0, num_images, 999)] == [
        (f"{tmp_path}/shard-{shard}.bin", None, offset) for shard, offset in rows[::999]
    ]
    assert index.labels is not None
    assert index.labels.tolist() == [offset % 5 for _, offset in rows]
    assert index.digest == digest_in_plain_words(index, [f"shard-{shard}.bin" for shard, _ in rows])


def test_a_list_in_parquet_is_the_list_in_csv(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.bin").write_bytes(jpeg(1) + jpeg(2))
    write_jpegs(tmp_path, "b.jpg")
    places = [(0, len(jpeg(1))), (len(jpeg(1)), len(jpeg(2))), (-1, 0)]
    columns = {
        "path": ["a.bin", "a.bin", "b.jpg"],
        "offset": [offset for offset, _ in places],
        "length": [length for _, length in places],
        "label": ["frog", "toad", "frog"],
    }
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    rows = "".join(",".join(map(str, row)) + "\n" for row in zip(*columns.values(), strict=True))
    (tmp_path / "list.csv").write_text(f"path,offset,length,label\n{rows}")
    lists = [build_index(tmp_path / f"list.{kind}", CONFIG, cache) for kind in ("csv", "parquet")]
    assert lists[0].digest == lists[1].digest
    assert [lists[1].read(k) for k in range(3)] == [jpeg(1), jpeg(2), jpeg(0)]
    pq.write_table(pa.table({"path": ["b.jpg", "gone.jpg"]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"list\.parquet, row 1: .*gone\.jpg is not a file that exists"):
        build_index(tmp_path / "list.parquet", CONFIG, cache)


def test_files_whose_sizes_a_list_tells_are_not_looked_at_before_they_are_read(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path,file_size\na.jpg,{len(jpeg(0))}\nb.jpg,7\n")
    index = build_index(tmp_path / "list.csv", CONFIG, cache)
    write_jpegs(tmp_path, "a.jpg", "b.jpg")
    assert index.read(0) == jpeg(0)
    with pytest.raises(ValueError, match=r"b\.jpg has changed since the index was made \(a file of \d+ bytes, not 7\)"):
        index.read(1)
    for rows, message in (
        ("a.jpg,9.5,0,1\n", r"line 2: the file_size '9\.5' is not a whole number of bytes"),
        ("a.jpg,-9,0,1\n", "line 2: a file_size below 0"),
        ("a.jpg,9,0,1\na.jpg,8,1,1\n", "line 2: another file_size than in another row"),
    ):
        (tmp_path / "list.csv").write_text(f"path,file_size,offset,length\n{rows}")
        with pytest.raises(ValueError, match=message):
            build_index(tmp_path / "list.csv", CONFIG, cache)


def test_an_index_that_would_not_fit_into_memory_is_refused_with_the_remedy() -> None:
    check_memory(10**7, 5 * 10**8, 8e9)
    with pytest.raises(ValueError, match=r"1,000,000,000 files takes about 200\.0 GB .* 8\.0 GB; `glsd pack`"):
        check_memory(10**9, 5 * 10**10, 8e9)


def test_an_impossible_cache_folder_is_named_with_the_remedy(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"the cache folder .*file/cache cannot be made: .*; set GLSD_CACHE"):
        build_index(data, CONFIG, tmp_path / "file/cache")


def test_a_broken_index_is_named_with_the_remedy(data: Path, cache: Path) -> None:
    path = build_index(data, CONFIG, cache).path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"index-.*\.arrow is not an index, or is broken: .*; delete it"):
        Index.open(path)
    with pytest.raises(ValueError, match="is not an index"):
        Index.open(cache / "nowhere.arrow")


def test_progress_counts_up_to_the_number_of_images(data: Path, cache: Path) -> None:
    counts: list[int] = []
    build_index(data, CONFIG, cache, counts.append)
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_progress_is_told_within_a_large_folder_and_a_long_list(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{number}.jpg" for number in range(2500)]
    for name in names:
        (folder / name).write_bytes(b"\xff\xd8\xff")
    (folder / "list.txt").write_text("\n".join(names))
    for source in (folder, folder / "list.txt"):
        counts: list[int] = []
        build_index(source, CONFIG, cache, counts.append)
        assert sorted(set(counts)) == [1000, 2000, 2500]


def test_a_file_that_is_gone_or_changed_says_what_to_do(data: Path, cache: Path) -> None:
    index = build_index(data, CONFIG, cache)
    (data / "frog/1.jpg").unlink()
    message = r"frog/1\.jpg is gone since the index was made; put it back, or rerun the command"
    with pytest.raises(ValueError, match=message):
        index.read(0)
    (data / "frog/2.jpg").write_bytes(b"short")
    message = r"frog/2\.jpg has changed since the index was made \(a file of 5 bytes, not \d+\); put it back"
    with pytest.raises(ValueError, match=message):
        index.read(1)


def test_a_tar_that_was_written_anew_is_not_read_at_the_old_places(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(1), "2.jpg": jpeg(2)})
    index = build_index(tmp_path / "a.tar", CONFIG, cache)
    write_tar(tmp_path / "a.tar", {f"{number}.jpg": jpeg(number) for number in range(30)})
    with pytest.raises(ValueError, match=r"a\.tar#1\.jpg has changed since the index was made"):
        index.read(0)


def test_a_read_error_that_passes_is_retried(data: Path, cache: Path) -> None:
    index = build_index(data, CONFIG, cache)
    image = data / "frog/1.jpg"
    image.rename(data / "kept")
    image.symlink_to(image)  # reading a link to itself is an error of the system

    def mend() -> None:
        time.sleep(0.1)
        (data / "kept").replace(image)

    thread = threading.Thread(target=mend)
    thread.start()
    assert index.read(0) == jpeg(0)
    thread.join()


def test_a_read_error_that_stays_names_the_file(data: Path, cache: Path) -> None:
    index = build_index(data, CONFIG, cache)
    (data / "frog/1.jpg").unlink()
    (data / "frog/1.jpg").symlink_to(data / "frog/1.jpg")
    with pytest.raises(OSError, match=r"reading .*frog/1\.jpg failed 3 times: .*symbolic links"):
        index.read(0)


KILLED_AT = """
import sys, time
from glsd.config import DataConfig
from glsd.data.index import build_index

def progress(count):
    if count >= int(sys.argv[3]):
        print("there", flush=True)
        time.sleep(600)

build_index(sys.argv[1], DataConfig(), sys.argv[2], progress)
"""


def kill_at(count: int, data: Path, cache: Path) -> None:
    arguments = [sys.executable, "-c", KILLED_AT, str(data), str(cache), str(count)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGKILL)


def test_a_kill_while_listing_leaves_no_index(data: Path, cache: Path) -> None:
    kill_at(2, data, cache)
    assert not list(cache.glob("*.arrow"))
    assert len(build_index(data, CONFIG, cache)) == 3


def test_a_kill_while_packing_leaves_nothing_that_is_used(tmp_path: Path, cache: Path) -> None:
    images = [padded(jpeg(number)) for number in range(20)]
    pq.write_table(pa.table({"image": images, "label": list(range(20))}), tmp_path / "a.parquet")
    kill_at(7, tmp_path / "a.parquet", cache)
    assert not list(cache.glob("*.arrow"))
    assert [path.suffix for path in cache.glob("packed*/")] == [".parts"]
    index = build_index(tmp_path / "a.parquet", CONFIG, cache)
    assert [index.read(row) for row in range(20)] == images
    assert not list(cache.rglob("*.parts"))


def test_an_index_that_was_half_written_is_written_again(data: Path, cache: Path) -> None:
    path = build_index(data, CONFIG, cache).path
    path.with_suffix(".unfinished").write_bytes(path.read_bytes()[:50])
    path.unlink()
    assert len(build_index(data, CONFIG, cache)) == 3
    assert not list(cache.glob("*.unfinished"))


def test_two_processes_at_once_make_one_index(tmp_path: Path, cache: Path) -> None:
    pq.write_table(pa.table({"image": [padded(jpeg(number)) for number in range(50)]}), tmp_path / "a.parquet")
    script = (
        "import sys; from glsd.config import DataConfig; from glsd.data.index import build_index; "
        "index = build_index(sys.argv[1], DataConfig(), sys.argv[2]); print(len(index), index.digest)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.parquet"), str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(said) == 1
    assert said.pop().startswith("50 ")
    assert len(list(cache.glob("packed*/"))) == 1
