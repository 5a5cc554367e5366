"""A run's metrics at Weights & Biases or MLflow as well, where a job asks for it: the extras `wandb` and `mlflow`.

Both take what `metrics.jsonl` has, by step, and the configuration by dotted keys. Where they write to is said as they
have it, by `WANDB_PROJECT`, `WANDB_MODE`, `WANDB_API_KEY`, `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` in the
environment of the first training worker. A run that is resumed continues there too, by an id in its directory.
"""

import importlib.util
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from glsd.config import Config
from glsd.runs.directory import RunDirectory
from glsd.runs.log import ExternalLog
from glsd.runs.records import LoggedAs, read_record, write_record

Logger = Literal["wandb", "mlflow"]

_PROJECT = "glsd"
_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Half a minute for a server that does not answer, unless the environment says otherwise: training waits for it, and
MLflow would have it wait for twenty minutes."""
_MLFLOW_PAUSE_S = 600.0
"""How long a server that did not answer is left alone."""


def check_loggers(names: Sequence[Logger]) -> None:
    """Refuse a logger whose package is not installed, and say what to install."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--loggers {name} needs a package that is not installed: pip install 'glsd[{name}]'")


def external_loggers(
    names: Sequence[Logger], run: RunDirectory, config: Config, warn: Callable[[str], None]
) -> list[ExternalLog]:
    """The loggers of a run, which continue where an earlier start of it was logged.

    Args:
        names: which ones; none makes no file.
        run: the run directory, which gives the name that is shown and keeps the id.
        config: what is recorded beside the metrics.
        warn: told of what could not be logged; the run continues without it.
    """
    if not names:
        return []
    check_loggers(names)
    logged_as = read_record(run, LoggedAs)
    if logged_as is None:
        # Not only the digest: a run that is deleted and started again is another run of the same configuration.
        logged_as = LoggedAs(id=f"{config.digest}-{uuid.uuid4().hex[:8]}")
        write_record(run, logged_as)
    run_id, settings = logged_as.id, config.flat()
    begin: dict[Logger, Callable[[], ExternalLog]] = {
        "wandb": lambda: _Wandb(run, run_id, settings),
        "mlflow": lambda: _Mlflow(run, run_id, settings, warn),
    }
    return [begin[name]() for name in dict.fromkeys(names)]


class _Wandb:
    """Weights & Biases; it sends in the background, and drops steps that it has already."""

    def __init__(self, run: RunDirectory, run_id: str, settings: Mapping[str, Any]) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=run.name,
                id=run_id,
                resume="allow",
                config=dict(settings),
                dir=run.path if run.is_local else None,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.Error as error:
            raise ValueError(f"--loggers wandb cannot log: {error}") from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    """MLflow; a server that does not answer costs some minutes' records and a warning, not the run."""

    def __init__(
        self, run: RunDirectory, run_id: str, settings: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        import mlflow

        for name, value in _MLFLOW_PATIENCE.items():
            os.environ.setdefault(name, value)
        self._mlflow, self._failed_at, self._warn = mlflow, -math.inf, warn
        try:
            self._client = mlflow.MlflowClient()
            self._run_id = self._begun(run.name, run_id, settings)
        except mlflow.MlflowException as error:
            raise ValueError(f"--loggers mlflow cannot log: {error}") from error

    def _begun(self, name: str, run_id: str, settings: Mapping[str, Any]) -> str:
        """MLflow's own id of the run, which is found by ours or made."""
        experiment = self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)).experiment_id
        if found := self._client.search_runs([experiment], f"tags.glsd_id = '{run_id}'"):
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        made = str(self._client.create_run(experiment, run_name=name, tags={"glsd_id": run_id}).info.run_id)
        parameters = [self._mlflow.entities.Param(key, json.dumps(value)) for key, value in settings.items()]
        self._client.log_batch(made, params=parameters)
        return made

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if time.monotonic() - self._failed_at < _MLFLOW_PAUSE_S:
            return
        now = round(1000 * time.time())
        entries = [self._mlflow.entities.Metric(key, value, now, step) for key, value in metrics.items()]
        try:
            self._client.log_batch(self._run_id, metrics=entries)
        except self._mlflow.MlflowException as error:
            self._failed_at = time.monotonic()
            self._warn(
                f"MLflow did not take the metrics of step {step} and gets no metrics for {_MLFLOW_PAUSE_S / 60:.0f} "
                f"minutes: {error}"
            )

    def close(self, failed: bool) -> None:
        try:
            self._client.set_terminated(self._run_id, status="FAILED" if failed else "FINISHED")
        except self._mlflow.MlflowException as error:
            self._warn(f"MLflow did not take the end of the run: {error}")
