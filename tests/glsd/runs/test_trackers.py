import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from glsd.config import Config
from glsd.experiments import load_config
from glsd.runs.directory import RunDirectory
from glsd.runs.log import RunLog, read_metrics
from glsd.runs.records import RunData
from glsd.runs.trackers import check_loggers, external_loggers
from ray_jobs.pretraining.job import pretrain
from ray_jobs.settings import JobSettings
from tests.glsd.storage.object_store import BucketHandler, serving

CONFIG = load_config("demo")


class Tracking(BucketHandler):
    """A server of MLflow's that has one experiment, and of a run keeps the steps of its metrics and its status."""

    asked: ClassVar[list[str]] = []
    taken: ClassVar[list[int | str]] = []
    is_away = False

    def do_GET(self) -> None:  # noqa: N802 - so named by http.server
        self.answer_json({"experiment": {"experiment_id": "1", "name": "glsd", "lifecycle_stage": "active"}})

    def do_POST(self) -> None:  # noqa: N802 - so named by http.server
        call = self.path.rpartition("/")[2]
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(call)
        if self.is_away:
            self.answer(503, b"", {})
            return
        self.taken.extend(metric["step"] for metric in sent.get("metrics", []))
        if call == "update":
            self.taken.append(sent["status"])
        run = {"info": {"run_id": "0", "run_uuid": "0", "experiment_id": "1", "status": "RUNNING"}}
        self.answer_json({"run": run, "run_info": run["info"]} if call in ("create", "update") else {})

    def answer_json(self, facts: object) -> None:
        self.answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})


class Kept:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Mapping[str, float]]] = []
        self.failed: bool | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((step, metrics))

    def close(self, failed: bool) -> None:
        self.failed = failed


def a_run(folder: Path) -> RunDirectory:
    run = RunDirectory(folder / "mine")
    run.claim(CONFIG, RunData(sources=["photos"], images=320, digest="0123abcd"))
    return run


def test_a_logger_whose_package_is_missing_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_loggers(())
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=rf"pip install 'glsd\[{name}\]'"):
            pretrain(Config(), [str(tmp_path / "nowhere")], str(tmp_path / "run"), job=JobSettings(loggers=(name,)))
    assert list(tmp_path.iterdir()) == []


def test_finite_metrics_go_outside_too_and_the_end_is_told_as_it_is(tmp_path: Path) -> None:
    run, kept, other = a_run(tmp_path), Kept(), Kept()
    with RunLog(run, external=[kept]) as log:
        log.log(10, {"step": 10, "loss": 5.0, "error": float("inf")})
    assert kept.steps == [(10, {"loss": 5.0})]
    assert kept.failed is False
    with pytest.raises(KeyboardInterrupt), RunLog(run, resume_step=10, external=[other]):
        raise KeyboardInterrupt
    assert other.failed is True
    assert read_metrics(run) == [{"step": 10, "loss": 5.0, "error": None}]


def test_a_run_without_loggers_has_no_file_of_theirs(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert external_loggers((), run, CONFIG, print) == []
    assert run.read("loggers.json") is None


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's, on a newer SQLAlchemy
def test_mlflow_has_the_metrics_and_settings_of_a_run_that_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = a_run(tmp_path)

    def killed() -> None:
        with RunLog(run, resume_step=10, external=external_loggers(["mlflow"], run, CONFIG, print)) as log:
            log.log(20, {"loss": 4.0})
            raise KeyboardInterrupt

    with RunLog(run, external=external_loggers(["mlflow"], run, CONFIG, print)) as log:
        log.log(10, {"loss": 5.0, "error": float("nan")})
    with pytest.raises(KeyboardInterrupt):
        killed()
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("glsd").experiment_id])
    assert (found.info.run_name, found.info.status) == ("mine", "FAILED")
    assert found.data.metrics == {"loss": 4.0}
    assert found.data.params.keys() == CONFIG.flat().keys()
    assert found.data.params["augment.local_sizes"] == "[48]"
    assert [(entry.step, entry.value) for entry in client.get_metric_history(found.info.run_id, "loss")] == [
        (10, 5.0),
        (20, 4.0),
    ]


def test_an_mlflow_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=r"--loggers mlflow cannot log: .*127\.0\.0\.1"):
        external_loggers(["mlflow"], a_run(tmp_path), CONFIG, print)


def test_an_mlflow_server_that_goes_away_is_asked_three_times_and_then_left_alone_for_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    said: list[str] = []
    with serving(Tracking) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address}")
        (logger,) = external_loggers(["mlflow"], a_run(tmp_path), CONFIG, said.append)
        logger.log(10, {"loss": 5.0})
        Tracking.is_away, before = True, len(Tracking.asked)
        logger.log(20, {"loss": 4.0})
        logger.log(30, {"loss": 3.0})
        assert Tracking.asked[before:] == ["log-batch"] * 3
        Tracking.is_away = False
        logger.log(40, {"loss": 2.5})
        monkeypatch.setattr("glsd.runs.trackers._MLFLOW_PAUSE_S", 0.0)  # as if they had passed
        logger.log(50, {"loss": 2.0})
        logger.close(failed=False)
    assert Tracking.taken == [10, 50, "FINISHED"]
    (warning,) = said
    assert re.search("did not take the metrics of step 20 and is left alone for 10 minutes: .*503", warning)


def test_wandb_keeps_one_id_for_all_starts_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for name in ("first", "first", "second"):
        run = a_run(tmp_path / name)
        with RunLog(run, external=external_loggers(["wandb"], run, CONFIG, print)) as log:
            log.log(10, {"loss": 5.0})
        ids.append([path.name.split("-", 3)[3] for path in Path(run.path).glob("wandb/offline-run-*")])
    assert ids[0] == [*set(ids[1])]
    assert ids[2] != ids[0]
