"""Ray Train as the jobs use it: workers that consume one ordered stream, watched while they do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.data import Dataset
from ray.exceptions import RayActorError
from ray.train import (
    ControllerError,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer

from ray_jobs.cluster import ProcessDied, Resources, death
from ray_jobs.monitor import Handle, ProgressLine, watch
from ray_jobs.run_directory import RunDirectory
from ray_jobs.settings import JobSettings
from ray_jobs.stream import stream_options

RAY_TRAIN = "ray_train"
"""Folder of Ray Train's own notes in a run directory."""


def fit(
    worker: Callable[[Any], None],
    plan: Any,
    units: Callable[[], Dataset],
    run: RunDirectory,
    settings: JobSettings,
    resources: Resources,
    monitor: Handle,
    line: ProgressLine,
) -> None:
    """Run `worker(plan)` on every training worker, until all have ended.

    Args:
        worker: finds its units in the dataset shard "train"; rank r of W gets the units i * W + r.
        plan: what a worker needs.
        units: the stream from where the workers are to start; asked anew whenever they are started.
        run: the folder in which Ray Train keeps its own notes.
        settings: how many workers.
        resources: what `check_resources` gave for them.
        monitor: where the workers report.
        line: shows what they report.

    Raises:
        BaseException: what a worker raised, without Ray's wrapping; KeyboardInterrupt after Ctrl-C.
    """
    trainer = _Trainer(
        _work,
        train_loop_config={"worker": (worker.__module__, worker.__qualname__), "plan": ray.put(plan)},
        scaling_config=ScalingConfig(
            num_workers=settings.workers, use_gpu=resources.gpu, resources_per_worker=resources.per_worker
        ),
        run_config=RunConfig(
            name=run.ascii_name,
            storage_path=f"{run.path}/{RAY_TRAIN}",
            storage_filesystem=run.filesystem,
            failure_config=FailureConfig(  # an unschedulable start would be tried for ever by default
                max_failures=resources.max_failures,
                controller_failure_limit=2,  # type: ignore[call-arg] # its stub is that of the old Train
            ),
        ),
        datasets={"train": units},
        dataset_config=DataConfig(execution_options=stream_options()),
    )
    line.phase("starting workers")
    with watch(monitor, line):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from None
        except KeyboardInterrupt:
            line.phase("stopping the workers")
            trainer.abort()
            raise


def _work(loop_config: dict[str, Any]) -> None:
    """The worker, as Ray Train takes it: by name and references, since its controller unpickles this too before any
    worker starts. Ray Data's coordinator starts while the worker's module is imported, models and all.
    """
    with ThreadPoolExecutor(1) as meanwhile:
        meanwhile.submit(ray.train.get_dataset_shard, "train")  # the worker asks again, and hears of an error then
        module, name = loop_config["worker"]
        worker = getattr(import_module(module), name)
    worker(ray.get(loop_config["plan"]))


class _Trainer(TorchTrainer):
    """Ray Train's trainer, for which Ctrl-C is a KeyboardInterrupt: its own handler would exit without a word."""

    _controller: ActorHandle[Any] | None = None

    def abort(self) -> None:
        """Stop the workers, if any have been started."""
        if self._controller is not None:
            with suppress(RayActorError):  # so ends the controller that has stopped them
                ray.get(self._controller.abort.remote())

    def _register_sigint_handler(self, controller: ActorHandle[Any]) -> None:
        self._controller = controller


def _cause(error: TrainingFailedError) -> BaseException:
    """What went wrong in a worker, without Ray's wrapping."""
    if isinstance(error, WorkerGroupError):
        failures = [death(failure) for failure in error.worker_failures.values()]
        # What the death of one means to the others, a closed connection, says less.
        return next((failure for failure in failures if isinstance(failure, ProcessDied)), failures[0])
    return death(error.controller_failure) if isinstance(error, ControllerError) else error
