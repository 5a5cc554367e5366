"""What is in the cache, and that clearing it deletes nothing that is in use or not ours."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.storage.cache import is_kept, kept, remove, use
from ray_jobs.cli.caching import clear, entries
from ray_jobs.cli.main import main
from tests.glsd.data.encoding import padded

STORE = "features-" + "0123456789abcdef" * 2
FOREIGN = ("notes.txt", "features-of-mine", "packed-0", "index-0.arrow", "linear/mine")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with an index, packed Parquet, a store of representations, a linear layer, and files of someone else."""
    cache, photos = tmp_path / "cache", tmp_path / "photos"
    monkeypatch.setenv("GLSD_CACHE", str(cache))
    photos.mkdir()
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(encoded, "PNG")
    (photos / "black.png").write_bytes(encoded.getvalue())
    pq.write_table(pa.table({"image": [padded(encoded.getvalue())] * 3}), tmp_path / "images.parquet")
    build_index(photos, DataConfig())
    build_index(tmp_path / "images.parquet", DataConfig())
    (cache / STORE).mkdir()
    (cache / STORE / "values.npy").write_bytes(bytes(200_000))
    (cache / STORE / "about.json").write_text(json.dumps({"about": "z̄ by resnet50 of 5 images of /photos"}))
    for name in FOREIGN:
        (cache / name).mkdir(parents=True)
    (cache / "linear" / "0123456789abcdef0123").mkdir()
    return cache


@pytest.fixture
def other_process() -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that a test starts; they end with it."""
    started = list["subprocess.Popen[str]"]()
    yield started
    for process in started:
        process.communicate("\n", timeout=60)


def holding(statement: str, started: list["subprocess.Popen[str]"]) -> None:
    """Another process that has run the statement, and lives until the test ends."""
    code = f"from pathlib import Path\nfrom glsd.storage.cache import _lock, use\n{statement}"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint('ready', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def test_what_is_in_the_cache_is_listed_with_its_size_its_age_and_what_it_is_for(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hour_ago = time.time() - 3600
    for file in (cache / STORE).iterdir():
        os.utime(file, (hour_ago, hour_ago))
    main(["cache"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{cache}: 5 entries, ")
    assert [line.split()[0] for line in lines] == ["representations", "packed", "indexes", "indexes", "layers"]
    assert "0.2 MB" in lines[0]
    assert "1:00:0" in lines[0]
    assert lines[0].endswith("z̄ by resnet50 of 5 images of /photos")
    assert lines[1].endswith(f"3 images of {tmp_path / 'images.parquet'}")
    assert {line.rpartition("  ")[2] for line in lines[2:4]} == {
        f"3 images of {tmp_path / 'images.parquet'}", f"1 images of {tmp_path / 'photos'}",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["representations", "packed", "indexes", "layers", "all"])
def test_one_kind_is_cleared_or_all_and_nothing_that_is_not_ours(
    cache: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {entry.path: entry.kind for entry in entries()}
    main(["cache", "--clear", kind])
    left = {entry.path for entry in entries()}
    assert left == {path for path, of in before.items() if kind not in (of, "all")}
    assert capsys.readouterr().out.startswith(f"deleted {len(before) - len(left)} entries, ")
    assert all((cache / name).is_dir() for name in FOREIGN)


def test_what_a_clearing_that_was_killed_left_is_cleared(cache: Path) -> None:
    for name in (STORE, "linear/0123456789abcdef0123"):
        (cache / f"{name}.unfinished").mkdir(parents=True)
    clear("all")
    assert not list(cache.rglob("*.unfinished"))


def test_what_was_cleared_is_made_again(cache: Path, tmp_path: Path) -> None:
    clear("packed")
    index = build_index(tmp_path / "images.parquet", DataConfig())
    assert len(index.read(2)) > 0
    clear("all")
    assert build_index(tmp_path / "images.parquet", DataConfig()).digest == index.digest


def test_what_another_process_uses_or_makes_stays(
    cache: Path, other_process: list["subprocess.Popen[str]"], capsys: pytest.CaptureFixture[str]
) -> None:
    store = cache / STORE
    (packed,) = (entry.path for entry in entries() if entry.kind == "packed")
    holding(f"use(Path({str(store)!r}))", other_process)
    holding(
        f"from glsd.storage.replacing import alone\na = alone(_lock(Path({str(packed)!r}), 'lock')); a.__enter__()",
        other_process,
    )
    main(["cache", "--clear", "all"])
    assert {entry.path for entry in entries()} == {store, packed}
    said = capsys.readouterr().out
    assert "left 2 entries, " in said
    assert "which running processes use" in said
    assert "z̄ by resnet50" in said
    for process in other_process:
        process.communicate("\n", timeout=60)
    other_process.clear()
    main(["cache", "--clear", "all"])
    assert entries() == []


def test_a_process_may_remove_what_it_alone_uses(cache: Path) -> None:
    use(cache / STORE)
    assert remove(cache / STORE)
    assert not (cache / STORE).exists()
    assert remove(cache / STORE), "what is gone is gone"


def test_what_is_kept_is_measured_once_for_the_same_facts(cache: Path) -> None:
    measured = list[int]()

    def measure() -> dict[str, float]:
        measured.append(1)
        return {"top1": 1 / 3}

    for facts, count in (([1, "a"], 1), ([1, "a"], 1), ([2, "a"], 2)):
        assert kept("k-NN", facts, measure) == {"top1": 1 / 3}
        assert len(measured) == count
    assert is_kept("k-NN", [2, "a"])
    assert not is_kept("another", [2, "a"])
    assert [entry.purpose for entry in entries() if entry.kind == "representations"][1:] == ["k-NN", "k-NN"]
    clear("representations")
    assert not is_kept("k-NN", [2, "a"])
