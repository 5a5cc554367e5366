"""A JSON file of a run, an evaluation or a sweep keeps its keys, also when another version of glsd has written it."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from glsd.runs.records import (
    Ended,
    Evaluation,
    Failure,
    FileRecord,
    Holder,
    LoggedAs,
    Outcome,
    RunData,
    Summary,
    SweepFile,
    read_record,
    write_record,
)
from glsd.runs.sweep import trial_states
from glsd.storage.folder import Folder
from tests.glsd.runs.sweeps import ATrial, a_sweep, an_evaluation

DATA = {"sources": ["/data/photos"], "images": 320, "digest": "0123abcd"}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "mine")


def test_a_record_that_is_read_is_the_one_that_was_written_and_the_file_has_only_what_was_given(folder: Folder) -> None:
    write_record(folder, RunData.model_validate(DATA))
    assert json.loads(folder.read("data.json") or b"") == DATA
    assert read_record(folder, RunData) == RunData(sources=["/data/photos"], images=320, digest="0123abcd")
    assert read_record(folder, Summary) is None


def test_an_evaluation_that_is_read_and_written_keeps_all_its_keys_and_numbers(folder: Folder) -> None:
    found = an_evaluation(ATrial({"seed": 1}, knn=1 / 3))
    folder.write("evaluation.json", json.dumps(found).encode())
    evaluation = read_record(folder, Evaluation)
    assert evaluation is not None
    assert evaluation.knn is not None
    assert evaluation.knn.results[1].top1 == 1 / 3
    assert evaluation.linear is None
    write_record(folder, evaluation)
    assert json.loads(folder.read("evaluation.json") or b"") == found


def test_keys_of_another_version_stay_in_the_file(folder: Folder) -> None:
    written = {"status": "stopped", "message": "", "gpus": 0.0, "node": "a"}
    folder.write("outcome.json", json.dumps(written).encode())
    outcome = read_record(folder, Outcome)
    assert outcome is not None
    assert (outcome.status, outcome.gpus) == ("stopped", 0.0)
    write_record(folder, outcome.model_copy(update={"gpus": 1.0}))
    assert json.loads(folder.read("outcome.json") or b"") == written | {"gpus": 1.0}


def test_a_sweep_of_a_version_that_recorded_less_is_read(tmp_path: Path) -> None:
    trial = {"data": "photos", "overrides": {"seed": 1}, "num_images": 320, "steps": 40}
    Folder(tmp_path).write("sweep.json", json.dumps({"grid": "seeds", "trials": {"one": trial}}).encode())
    assert read_record(Folder(tmp_path), SweepFile) == SweepFile.model_validate(
        {"grid": "seeds", "trials": {"one": trial}}
    )
    (state,) = trial_states(str(tmp_path))
    assert (state.name, state.status, state.gpus) == ("one", "waiting", 0.0)


@pytest.mark.parametrize(
    ("content", "record"),
    [
        (
            b'{"host": "node7", "pid": 4, "token": "0a", "since": "2026-01-02 03:04:05 UTC", "heartbeat_ns": 5}',
            Holder(host="node7", pid=4, token="0a", since="2026-01-02 03:04:05 UTC", heartbeat_ns=5),
        ),
        (
            b'{"token": "0a", "kind": "ValueError", "message": "too few images"}',
            Failure(token="0a", kind="ValueError", message="too few images"),
        ),
        (b'{"id": "0123abcd-4567"}', LoggedAs(id="0123abcd-4567")),
        (b'["collapsed", "at step 7"]', Ended(status="collapsed", message="at step 7")),
    ],
)
def test_files_of_versions_that_had_no_record_of_them_are_read(
    folder: Folder, content: bytes, record: FileRecord
) -> None:
    folder.write(record.FILE, content)
    assert read_record(folder, type(record)) == record
    write_record(folder, record)
    assert read_record(folder, type(record)) == record


def test_the_evaluation_of_a_trial_lies_in_a_folder_of_its_run(tmp_path: Path) -> None:
    (state,) = trial_states(str(a_sweep(tmp_path, [ATrial({"seed": 1})])))
    assert state.evaluation == Evaluation.model_validate(an_evaluation(ATrial({"seed": 1})))
    assert state.verdict == "healthy"


@pytest.mark.parametrize(
    ("content", "why"),
    [(b'{"sources": ["/data/photos"], "images": 320}', "digest: Field required"), (b'{"sources": ', "Expecting value")],
)
def test_a_file_that_lacks_something_is_named_with_what_it_lacks(folder: Folder, content: bytes, why: str) -> None:
    folder.write("data.json", content)
    with pytest.raises(ValueError, match=rf"mine/data\.json is not a file of this version of glsd: {why}"):
        read_record(folder, RunData)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        RunData.model_validate(DATA).images = 4  # type: ignore[misc] # that is the point
