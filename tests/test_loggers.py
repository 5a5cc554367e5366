import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from glsd.config import Config, load_config
from ray_jobs.loggers import check_loggers, external_loggers
from ray_jobs.pretraining import pretrain
from ray_jobs.run_directory import RunDirectory, RunLog, read_metrics

CONFIG = load_config("demo")


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
    run.claim(CONFIG, {"sources": ["photos"], "images": 320})
    return run


def test_a_logger_whose_package_is_missing_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_loggers(())
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=rf"pip install 'glsd\[{name}\]'"):
            pretrain(Config(), [str(tmp_path / "nowhere")], str(tmp_path / "run"), loggers=(name,))
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
    assert external_loggers((), run, CONFIG) == []
    assert run.read("loggers.json") is None


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's, on a newer SQLAlchemy
def test_mlflow_has_the_metrics_and_settings_of_a_run_that_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = a_run(tmp_path)

    def killed() -> None:
        with RunLog(run, resume_step=10, external=external_loggers(["mlflow"], run, CONFIG)) as log:
            log.log(20, {"loss": 4.0})
            raise KeyboardInterrupt

    with RunLog(run, external=external_loggers(["mlflow"], run, CONFIG)) as log:
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
        external_loggers(["mlflow"], a_run(tmp_path), CONFIG)


def test_wandb_keeps_one_id_for_all_starts_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for name in ("first", "first", "second"):
        run = a_run(tmp_path / name)
        with RunLog(run, external=external_loggers(["wandb"], run, CONFIG)) as log:
            log.log(10, {"loss": 5.0})
        ids.append([path.name.split("-", 3)[3] for path in Path(run.path).glob("wandb/offline-run-*")])
    assert ids[0] == [*set(ids[1])]
    assert ids[2] != ids[0]
