"""An object store whose answers go wrong: what is read and written is right, or there is an error after some time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.data.tars import write_tar
from glsd.runs.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from glsd.storage.columns import texts
from glsd.storage.files import open_file, open_stream, read
from glsd.storage.folder import Folder
from glsd.storage.listing import stat_files, walk
from tests.glsd.storage.object_store import Fault, Faults, object_store
from tests.images import labelled_folder

NUM_IMAGES = 24
PATIENCE = 31
"""Answers to one request that go wrong until pyarrow's client gives it up."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a bucket with images in files and in a tar."""
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    bucket = tmp_path / "store/bucket"
    paths = sorted(labelled_folder(bucket / "photos", NUM_IMAGES).glob("*/*"))
    (bucket / "shards").mkdir()
    with (bucket / "shards/0.tar").open("wb") as stream:
        write_tar(stream, ((path.name, path.read_bytes()) for path in paths))
    return tmp_path / "store"


def options(address: str) -> str:
    return f"?endpoint_override={address}&scheme=http"


@pytest.mark.parametrize(("rate", "kinds"), [(0.3, ("reset", "500", "503", "half")), (0.1, get_args(Fault))])
def test_images_have_all_of_their_bytes_however_many_answers_go_wrong(
    store: Path, tmp_path: Path, rate: float, kinds: Sequence[Fault]
) -> None:
    contents = [path.read_bytes() for path in sorted((store / "bucket/photos").glob("*/*"))]
    faults = Faults(rate, kinds)
    with object_store(store, faults=faults) as address, ThreadPoolExecutor(16) as pool:
        for folder in ("photos", "shards"):
            index = build_index(f"s3://bucket/{folder}{options(address)}", DataConfig(), tmp_path)
            assert list(pool.map(index.read, [*range(NUM_IMAGES)] * 2)) == contents * 2
    assert faults.injected.keys() == set(kinds)


def whole_file(address: str) -> bytes:
    return read(f"s3://bucket/shards/0.tar{options(address)}")[0]


def part_of_a_file(address: str) -> bytes:
    return read(f"s3://bucket/shards/0.tar{options(address)}", 5000, 100)[0]


def open_file_to_its_end(address: str) -> bytes:
    with open_file(f"s3://bucket/shards/0.tar{options(address)}") as file:
        file.seek(5000)
        return file.read()


def stream(address: str) -> bytes:
    with open_stream(f"s3://bucket/shards/0.tar{options(address)}") as file:
        return file.read()


def listing(address: str) -> list[int]:
    return walk(f"s3://bucket/photos{options(address)}", (".jpg", ".png"), lambda _: None).sizes.tolist()


def size(address: str) -> list[int]:
    return stat_files(texts([f"s3://bucket/shards/0.tar{options(address)}"]), lambda _: None).sizes.tolist()


def written_file(address: str) -> dict[str, int]:
    folder = Folder(f"s3://bucket/notes{options(address)}")
    folder.write("a.txt", b"content")
    with folder.replacing("b.txt") as file:
        file.write(b"more")
    return folder.sizes()


def checkpoint(address: str) -> list[dict[str, int]]:
    run = f"s3://bucket/run{options(address)}"
    save_checkpoint(run, 1, {"step": 1}, {})
    return [load_checkpoint(path) for path in checkpoints(run).values()]


@pytest.mark.slow
@pytest.mark.parametrize("begin", [0, 1, 2])
def test_a_while_in_which_all_answers_go_wrong_is_waited_out(store: Path, begin: int) -> None:
    """From the first, second or third request, for longer than pyarrow's client is patient."""

    def during_an_outage(act: Callable[[str], object]) -> tuple[object, int]:
        faults = Faults(1, ("503", "half"), spared=begin, most=PATIENCE + 5)
        with object_store(store, faults=faults) as address:
            result = act(address)
        return result, faults.injected.total()

    acts = [whole_file, part_of_a_file, open_file_to_its_end, stream, listing, size, written_file, checkpoint]
    with object_store(store) as address:
        expected = [act(address) for act in acts]
    with ThreadPoolExecutor(len(acts)) as pool:
        for act, result, (found, num_faults) in zip(acts, expected, pool.map(during_an_outage, acts), strict=True):
            assert found == result, act.__name__
            assert num_faults in (0, PATIENCE + 5), act.__name__


@pytest.mark.slow
def test_a_store_that_never_answers_as_it_should_is_an_error_that_says_how_often_it_was_asked(store: Path) -> None:
    def failure(kind: Fault) -> tuple[str, int]:
        faults = Faults(1, (kind,))
        with object_store(store, faults=faults) as address, pytest.raises(OSError) as error:
            read(f"s3://bucket/photos/rings/002.png{options(address)}")
        return error.value.strerror, faults.injected.total()

    kinds: list[Fault] = ["reset", "500", "503", "half"]
    with ThreadPoolExecutor(len(kinds)) as pool:
        for message, num_faults in pool.map(failure, kinds):
            assert message.startswith("reading s3://bucket/photos/rings/002.png?")
            assert " failed 3 times: " in message
            assert num_faults >= 3 * PATIENCE
