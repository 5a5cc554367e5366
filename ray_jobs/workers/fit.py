"""Ray Train as the jobs use it: workers that consume one ordered stream, watched while they do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

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

from glsd.runs.directory import RunDirectory
from ray_jobs.cluster.deaths import ProcessDied, death
from ray_jobs.cluster.monitor import Handle, watch
from ray_jobs.cluster.resources import Resources
from ray_jobs.progress import ProgressLine
from ray_jobs.workers.stream import stream_options

RAY_TRAIN = "ray_train"
"""Folder of Ray Train's own notes in a run directory."""


def fit(
    worker: Callable[[Any], None],
    plan: Any,
    units: Callable[[], Dataset],
    run: RunDirectory,
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
        resources: what `check_resources` gave.
        monitor: where the workers report.
        line: shows what they report.

    Raises:
        BaseException: what a worker raised, without Ray's wrapping; KeyboardInterrupt after Ctrl-C.
    """
    num_starts = _FEW_STARTS
    line.phase("starting workers")
    with watch(monitor, line):
        while True:
            trainer = _trainer(worker, plan, units, run, resources, monitor, num_starts)
            try:
                trainer.fit()
                return
            except TrainingFailedError as error:
                if not (_has_no_room(error) and ray.get(monitor.take_started.remote())):
                    raise _cause(error) from None
            except KeyboardInterrupt:
                line.phase("stopping the workers")
                trainer.abort()
                raise
            num_starts = _MANY_STARTS
            line.phase("waiting for nodes with room for the workers")


_FEW_STARTS: Final = 3
"""Starts without room for the workers, each of a minute, after which a job ends of which no worker has run yet: the
cluster was seen to have the room, so others have taken it.
"""
_MANY_STARTS: Final = 60
"""The same once workers have run: a lost node is replaced within the hour. They are counted anew when workers run."""


def _trainer(
    worker: Callable[[Any], None],
    plan: Any,
    units: Callable[[], Dataset],
    run: RunDirectory,
    resources: Resources,
    monitor: Handle,
    num_starts: int,
) -> "_Trainer":
    return _Trainer(
        _work,
        train_loop_config={
            "worker": (worker.__module__, worker.__qualname__),
            "plan": ray.put(plan),
            "monitor": monitor,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpu, resources_per_worker=resources.per_worker
        ),
        run_config=RunConfig(
            name=run.ascii_name,
            storage_path=f"{run.path}/{RAY_TRAIN}",
            storage_filesystem=run.filesystem,
            failure_config=FailureConfig(
                max_failures=resources.max_failures,
                controller_failure_limit=num_starts - 1,  # type: ignore[call-arg] # its stub is that of the old Train
            ),
        ),
        datasets={"train": units},
        dataset_config=DataConfig(execution_options=stream_options()),
    )


def _work(loop_config: dict[str, Any]) -> None:
    """The worker, as Ray Train takes it: by name and references, since its controller unpickles this too before any
    worker starts. Ray Data's coordinator starts while the worker's module is imported, models and all.
    """
    loop_config["monitor"].worker_started.remote()
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


def _has_no_room(error: TrainingFailedError) -> bool:
    """Whether the cluster gave no room for the workers in time."""
    failure = error.controller_failure if isinstance(error, ControllerError) else None
    return type(failure).__name__ == "WorkerGroupStartupTimeoutError"  # by name, since Ray has it in a private module


def _cause(error: TrainingFailedError) -> BaseException:
    """What went wrong in a worker, without Ray's wrapping."""
    if _has_no_room(error):
        return ProcessDied(
            "the cluster gives no room for the workers: other jobs use it, or a lost node has not been replaced (see "
            "`ray status`). Wait for it or use fewer --workers, then rerun the command to resume"
        )
    if isinstance(error, WorkerGroupError):
        failures = [death(failure) for failure in error.worker_failures.values()]
        # What the death of one means to the others, a closed connection, says less.
        return next((failure for failure in failures if isinstance(failure, ProcessDied)), failures[0])
    return death(error.controller_failure) if isinstance(error, ControllerError) else error
