"""A checkpoint is whole, or it does not count."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest
import torch

from glsd.runs.checkpoints import (
    checkpoints,
    load_checkpoint,
    manifest,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from tests.glsd.storage.google_store import google_store
from tests.glsd.storage.object_store import object_store


@pytest.fixture(params=["local", "s3", "gs"])
def run(request, tmp_path, monkeypatch) -> Iterator[str]:
    """A run's directory, whose files lie in `tmp_path / "bucket/a run"` either way."""
    if request.param == "local":
        yield str(tmp_path / "bucket/a run")
        return
    (tmp_path / "bucket").mkdir()
    if request.param == "gs":
        with google_store(tmp_path) as address:
            yield f"gs://anonymous@bucket/a run?endpoint_override={address}&scheme=http&retry_limit_seconds=1"
        return
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    with object_store(tmp_path) as address:
        yield f"s3://bucket/a run?endpoint_override={address}&scheme=http&region=us-east-1"


def test_what_is_saved_is_read_back_with_its_facts(run):
    state = {"weights": torch.arange(5.0), "step": 3, "centers": {"dense": None}}
    path = save_checkpoint(run, 3, state, {"metrics": {"knn": 41.5}})
    found = load_checkpoint(path)
    assert torch.equal(found["weights"], state["weights"])
    assert found["centers"] == {"dense": None}
    assert manifest(path).metrics == {"knn": 41.5}
    assert newest_checkpoint(run) == path


def test_a_run_that_was_taken_over_while_its_checkpoint_was_written_publishes_nothing(run, tmp_path):
    good, asked = save_checkpoint(run, 1, {"weights": torch.arange(5.0)}, {}, lambda: True), list[bool]()

    def may_publish() -> bool:
        asked.append(any("step_00000002" in str(path) for path in tmp_path.rglob("state.pt")))
        return False

    with pytest.raises(
        RuntimeError, match=r"another start has taken .* over; the checkpoint of step 2 is not published"
    ):
        save_checkpoint(run, 2, {"weights": torch.zeros(5)}, {}, may_publish)
    assert asked == [True], "it is asked once, after the state was written"
    assert checkpoints(run) == {1: good}


def test_a_start_that_has_lost_the_run_does_not_disturb_the_checkpoint_that_another_writes(tmp_path):
    run = str(tmp_path)

    def while_the_other_writes() -> bool:
        with pytest.raises(RuntimeError, match="is not published"):
            save_checkpoint(run, 1, {"weights": torch.zeros(5)}, {}, lambda: False)
        return True

    path = save_checkpoint(run, 1, {"weights": torch.arange(5.0)}, {}, while_the_other_writes)
    assert torch.equal(load_checkpoint(path)["weights"], torch.arange(5.0))
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_a_checkpoint_without_its_manifest_does_not_count(tmp_path):
    save_checkpoint(str(tmp_path), 1, {}, {})
    newer = save_checkpoint(str(tmp_path), 2, {}, {})
    Path(newer, "manifest.json").unlink()
    assert list(checkpoints(str(tmp_path))) == [1]


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    path = Path(save_checkpoint(str(tmp_path), 1, {"weights": torch.arange(5.0)}, {}))
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"step_00000001/state\.pt is damaged"):
        load_checkpoint(str(path))


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_half_one(tmp_path):
    good = save_checkpoint(str(tmp_path), 1, {"weights": torch.arange(5.0)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        message = "the checkpoint of step 2 could not be written to .*: .*File too large; earlier ones stay"
        with pytest.raises(OSError, match=message):
            save_checkpoint(str(tmp_path), 2, {"weights": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert torch.equal(load_checkpoint(good)["weights"], torch.arange(5.0))


def test_pruning_keeps_what_it_is_told_and_clears_what_a_killed_run_left(run, tmp_path):
    for step in (1, 2, 3, 4):
        save_checkpoint(run, step, {"weights": torch.arange(5.0)}, {})
    folder = tmp_path / "bucket/a run/checkpoints"
    (folder / "step_00000004/manifest.json").unlink()  # it is half written
    prune_checkpoints(run, keep={1, 3})
    assert list(checkpoints(run)) == [1, 3]
    left = {path.parent.name for path in folder.rglob("*") if path.is_file()}
    assert left == {"step_00000001", "step_00000003"}
    prune_checkpoints(run, keep={3})
    assert list(checkpoints(run)) == [3]


class DyingDisk(pafs.FSSpecHandler):
    """A local disk that lists names backwards, deletes one file, and then no more."""

    num_deleted = 0

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return sorted(super().get_file_info_selector(selector), key=lambda info: info.path, reverse=True)

    def delete_file(self, path: str) -> None:
        if self.num_deleted:
            raise OSError("the disk is gone")
        super().delete_file(path)
        self.num_deleted += 1


def test_a_pruning_that_ends_after_its_first_deletion_leaves_a_checkpoint_that_does_not_count(tmp_path, monkeypatch):
    run = str(tmp_path)
    for step in (1, 2):
        save_checkpoint(run, step, {"weights": torch.arange(5.0)}, {})
    with monkeypatch.context() as patched:
        disk = pafs.PyFileSystem(DyingDisk(fsspec.filesystem("file")))
        patched.setattr("glsd.runs.checkpoints._place", lambda uri: (disk, uri))
        with pytest.raises(OSError, match="the disk is gone"):
            prune_checkpoints(run, keep={2})
    assert [path.name for path in Path(run, "checkpoints", "step_00000001").iterdir()] == ["state.pt"]
    assert list(checkpoints(run)) == [2]


def test_pruning_clears_what_a_killed_run_on_this_machine_left(tmp_path):
    save_checkpoint(str(tmp_path), 1, {}, {})
    (tmp_path / "checkpoints" / ".step_00000002.0123456789abcdef.partial").mkdir()
    (tmp_path / "checkpoints" / ".step_00000002.0123456789abcdef.partial" / "state.pt").touch()
    prune_checkpoints(str(tmp_path), keep={1})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_pruning_leaves_alone_what_a_user_put_there(run, tmp_path):
    for step in (1, 2):
        save_checkpoint(run, step, {"weights": torch.arange(5.0)}, {})
    folder = tmp_path / "bucket/a run/checkpoints"
    for copy in ("step_00000001_good", "step_1", "step_000000001", "mine/older", ".step_00000001.mine"):
        shutil.copytree(folder / "step_00000001", folder / copy)
    (folder / "notes.txt").write_text("the first one was good")
    (folder / "step_00000001/why.txt").write_text("before the learning rate was lowered")
    before = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    prune_checkpoints(run, keep={2})
    assert list(checkpoints(run)) == [2]
    after = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert before - after == {Path("step_00000001/state.pt"), Path("step_00000001/manifest.json")}
