"""Which Ray runs a job, and whether it has what the job needs."""

import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import ray
import ray.data
from ray import exceptions

from glsd.config import Config
from ray_jobs.settings import JobSettings, num_cores

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune would print tables of its own
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin at a barrier would take the cores from the stream
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # glsd has one progress line of its own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same on workers as for the user
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # each report waits for the next check
}

_DEATHS = (
    exceptions.ActorDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.NodeDiedError,
    exceptions.OutOfMemoryError,
    exceptions.OwnerDiedError,
    exceptions.WorkerCrashedError,
)
"""What Ray raises when a process has died that a job cannot do without."""


class ProcessDied(RuntimeError):
    """A process of the job has died, for no fault of the job's own."""


class Resources(NamedTuple):
    """What a job's workers get."""

    gpu: bool
    per_worker: dict[str, float]
    torch_threads: int | None
    """Threads of a worker's tensor operations; None leaves them to torch."""
    max_failures: int
    photometrics: Literal["worker", "device"]


@contextmanager
def cluster(settings: JobSettings) -> Iterator[None]:
    """The Ray that is already connected, that of RAY_ADDRESS, or one started on this machine for this job.

    Raises:
        ValueError: RAY_ADDRESS is no address of a cluster, or the folder for Ray's sockets has too long a path.
        ConnectionError: no Ray answers at RAY_ADDRESS, or this machine is not a node of it.
        ProcessDied: while it was used.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().print_on_execution_start = False
    try:
        if ray.is_initialized():
            yield
        elif (address := os.environ.get("RAY_ADDRESS", "")) not in ("", "local"):
            check_address(address)
            _connect(address)
            with _shut_down_afterwards():
                yield
        else:
            _check_socket_paths(settings.dashboard)
            port = _dashboard_port() if settings.dashboard else None
            with _environment(_of_own_ray(port)):
                _start(
                    # One slot more than cores: the training worker takes a hair of one, which would cost the stream a
                    # task.
                    num_cpus=num_cores() + 1,
                    include_dashboard=settings.dashboard,
                    dashboard_port=port,
                )
                with _shut_down_afterwards():
                    yield
    except _DEATHS as error:
        raise death(error) from None


def death(error: BaseException) -> BaseException:
    """An error of Ray in words, where it is that a process has died; any other as it is.

    >>> death(exceptions.OutOfMemoryError("the node runs low on memory"))
    ProcessDied('a process of the job died, perhaps for want of memory, of which fewer --workers or a smaller \
data.unit_size need less; the same command goes on where it was. Ray says: the node runs low on memory')
    >>> death(ValueError("data.unit_size 3"))
    ValueError('data.unit_size 3')
    """
    error = getattr(error, "health_check_failure", error)  # as Ray Train wraps it
    if not isinstance(error, _DEATHS) or getattr(error, "actor_init_failed", False):  # that has a cause of its own
        return error
    said = " ".join(str(error).split()).rpartition("The actor is dead because ")[2]
    return ProcessDied(
        "a process of the job died, perhaps for want of memory, of which fewer --workers or a smaller data.unit_size "
        f"need less; the same command goes on where it was. Ray says: {textwrap.shorten(said, 300)}"
    )


_PORT_S: Final = 10
_ANSWER_S: Final = 10
_OTHERWISE = "start a cluster with `ray start --head`, or unset RAY_ADDRESS and glsd starts a Ray of its own"


def check_address(address: str) -> None:
    """Refuse a RAY_ADDRESS where no Ray answers, before `ray.init` waits minutes for it and hears no Ctrl-C.

    A process of its own asks first, as it can be ended at any time and what Ray logs stays in it.

    Raises:
        ValueError: it is neither HOST:PORT nor `auto`.
        ConnectionError: nothing answers within half a minute, or what answers is not a Ray that this one understands.
    """
    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"RAY_ADDRESS {address} is that of a dashboard, which takes jobs from `ray job submit` and belongs in "
            "RAY_API_SERVER_ADDRESS; set RAY_ADDRESS to HOST:PORT of the cluster, such as HOST:6379, or unset it"
        )
    if address.startswith("ray://"):
        raise ValueError(
            f"RAY_ADDRESS {address} is that of Ray Client, through which Ray does not train; run glsd on a node of "
            "the cluster with RAY_ADDRESS=auto, or hand it over with `ray job submit`"
        )
    if address != "auto":
        try:
            parts = urlsplit(f"//{address}")
            place = parts.hostname, parts.port
        except ValueError:
            place = None, None
        if None in place or parts.netloc != address:
            raise ValueError(f"RAY_ADDRESS {address!r} is neither HOST:PORT, such as 10.0.0.1:6379, nor auto")
        try:
            socket.create_connection(place, _PORT_S).close()
        except OSError as error:
            raise ConnectionError(f"nothing answers at RAY_ADDRESS {address} ({error}); {_OTHERWISE}") from None
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "status", "--address", address]
    bounded = os.environ | {"RAY_py_gcs_connect_timeout_s": str(_ANSWER_S)}
    asked = subprocess.run(command, env=bounded, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        raise ConnectionError(f"no Ray answers at RAY_ADDRESS {address}; {_OTHERWISE}. Ray says: {said}")


def _connect(address: str) -> None:
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConnectionError(
            f"a Ray answers at RAY_ADDRESS {address}, but it has no node on this machine; run glsd on a node of it, "
            "make this machine one with `ray start --address=HOST:PORT`, or hand the job over with `ray job submit`. "
            f"Ray says: {error.__cause__ or error}"
        ) from None


_LONGEST_SOCKET_PATH: Final = 103 if sys.platform == "darwin" else 107
"""Bytes that the operating system takes."""


def _check_socket_paths(dashboard: bool) -> None:
    """Refuse a folder for temporary files in which the paths of Ray's sockets would be too long.

    Raises:
        ValueError: says how long its path may be.
    """
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ or sys.platform == "darwin" else "TMPDIR"
    folder = os.environ.get(variable, "/tmp")
    longest = "dash_MetricsHead" if dashboard else "plasma_store"
    below = f"/ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/{longest}"
    room = _LONGEST_SOCKET_PATH - len(below)
    if (length := len(os.fsencode(folder))) > room:
        raise ValueError(
            f"{variable} {folder} is {length} bytes long, and Ray's sockets have room for {room} in it; set RAY_TMPDIR "
            "to a shorter folder, such as RAY_TMPDIR=/tmp"
        )


def _of_own_ray(dashboard_port: int | None) -> dict[str, str | None]:
    """The environment of a Ray that is started for a job.

    What frees the resources of a killed trial asks the dashboard whether the trial lives. It must be this Ray's, as any
    other knows nothing of it. Left alone, it would look for one, and give up on a machine with several.
    """
    return {
        "RAY_API_SERVER_ADDRESS": None if dashboard_port is None else f"http://127.0.0.1:{dashboard_port}",
        # Where the machine of such a Ray is taken away, the job's driver goes too.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"),
    }


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set the environment variables, and remove those of None; afterwards they are as they were."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _shut_down_afterwards() -> Iterator[None]:
    with _ended_by_sigterm():
        try:
            yield
        finally:
            ray.shutdown()


def _start(**options: Any) -> None:
    """A Ray of this machine. Ray waits 30 s for itself, which a busy machine may exceed; then it is started anew.

    Raises:
        RuntimeError: it did not start three times.
    """
    for _ in range(3):
        try:
            ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:  # Ray raises the bare class for its time-out, so the text decides; all else goes on
            if "timed out during startup" not in str(error):
                raise
    raise RuntimeError("Ray did not start within 30 s, three times: the machine is too busy; give the command again")


def _dashboard_port() -> int:
    """Ray's usual port, or the next free one."""
    for port in range(8265, 8365):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise ValueError("the ports 8265 to 8364 are all taken; Ray's dashboard needs one of them")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let a scheduler's SIGTERM unwind the stack, so that leases end; Ray's own handler prints stacks and dies."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        print("glsd: stopped by SIGTERM; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def gpu_room(gpus: float, per_worker: float) -> int:
    """How many workers fit, each of whose share lies on one GPU.

    >>> gpu_room(2, 0.6), gpu_room(2, 0.4), gpu_room(1, 1 / 3), gpu_room(0, 1)
    (2, 4, 3, 0)
    """
    return math.floor(gpus) * math.floor(1 / per_worker + 1e-9)  # three thirds are a whole, whatever they are as floats


def unusable_gpu() -> str | None:
    """Why torch cannot use this machine's GPU, which Ray may see all the same."""
    import torch  # takes seconds, and machines without a GPU need not ask

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use it: it was built without CUDA, or the driver is too old for it"
    (major, minor), built_for = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if not runs_on((major, minor), built_for):
        return f"it is sm_{major}{minor}, and torch {torch.__version__} is built for {', '.join(built_for)}"
    return None


def runs_on(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether a torch that is built for these architectures runs on a GPU of this compute capability.

    >>> runs_on((7, 0), ["sm_75", "sm_80", "sm_90a"]), runs_on((8, 6), ["sm_75", "sm_80", "sm_90a"])
    (False, True)
    >>> runs_on((12, 1), ["sm_80", "compute_90"])  # compiled when it is needed
    True
    """
    architectures = [match for name in built_for if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name))]
    for architecture in architectures:
        major, minor = int(architecture[2]), int(architecture[3])
        if (major, minor) <= capability and (major == capability[0] or architecture[1] == "compute"):
            return True
    return not architectures  # AMD's have other names


def worker_room(nodes: Sequence[Mapping[str, float]], per_worker: Mapping[str, float]) -> int:
    """How many workers fit on nodes of these resources, each wholly on one of them.

    >>> worker_room([{"CPU": 4}, {"CPU": 4}], {"CPU": 6}), worker_room([{"CPU": 4}, {"CPU": 4}], {"CPU": 2})
    (0, 4)
    >>> worker_room([{"CPU": 16}, {"CPU": 16, "GPU": 2}], {"CPU": 1, "GPU": 1})
    2
    """

    def room(node: Mapping[str, float]) -> int:
        by_cpu = math.floor(node.get("CPU", 0.0) / per_worker["CPU"] + 1e-9)
        return min(by_cpu, gpu_room(node.get("GPU", 0.0), per_worker["GPU"])) if "GPU" in per_worker else by_cpu

    return sum(map(room, nodes))


def check_shares(config: Config, workers: int) -> None:
    """Refuse workers that cannot share the units of a step.

    Raises:
        ValueError: names the numbers of workers that can.
    """
    units = config.units_per_step
    if units % workers:
        possible = [count for count in range(1, units + 1) if units % count == 0]
        raise ValueError(
            f"{workers} workers cannot share a step of {units} units (optim.batch_size {config.optim.batch_size} / "
            f"data.unit_size {config.data.unit_size}); use one of {possible} workers, or a smaller data.unit_size"
        )


def check_ranks(settings: JobSettings, resources: Resources) -> None:
    """Refuse training workers that would lie on one GPU, where NCCL does not let them meet.

    Raises:
        ValueError: says what would do.
    """
    if resources.gpu and settings.workers > 1 and settings.gpus_per_worker <= 0.5:
        raise ValueError(
            f"{settings.workers} workers of {settings.gpus_per_worker:g} GPUs each would share GPUs, which NCCL does "
            "not allow the workers of one run; use --workers 1, or leave --gpus_per_worker 1"
        )


def check_resources(settings: JobSettings, packed: Sequence[str] = ()) -> Resources:
    """The workers' resources, once it is sure that the connected cluster has them and a CPU for the stream.

    Args:
        settings: what is asked for.
        packed: folders of this machine's cache that hold images of the index.

    Raises:
        ValueError: the cluster lacks them, or other nodes cannot read the images; the message names what is needed.
    """
    workers = settings.workers
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_nodes = len(nodes)
    if num_nodes > 1 and packed and "GLSD_CACHE" not in os.environ:
        raise ValueError(
            f"images of the data were packed into {packed[0]}, which other nodes cannot read; `glsd pack` them into a "
            "folder that all nodes reach, or set GLSD_CACHE to one on every node"
        )
    gpu = gpus >= 1 if settings.gpu is None else settings.gpu
    if gpu and gpus and num_nodes == 1 and (reason := unusable_gpu()):
        raise ValueError(f"there is a GPU, but {reason}; install a torch that fits it, or use --gpu False")
    if gpu and (room := gpu_room(gpus, settings.gpus_per_worker)) < workers:
        raise ValueError(
            f"{workers} workers of {settings.gpus_per_worker:g} GPUs each do not fit on the {gpus:g} GPUs of this "
            f"cluster; use --workers {max(1, room)}" + ("" if room else " --gpu False")
        )
    per_worker = settings.cpus_per_worker or (0.01 if num_nodes == 1 else 1.0)
    if cpus - workers * per_worker < 1:
        raise ValueError(
            f"{workers} workers of {per_worker:g} CPUs leave {max(0.0, cpus - workers * per_worker):g} of the "
            f"cluster's {cpus:g} CPUs for the stream, which needs 1 at least; use fewer --workers or --cpus_per_worker"
        )
    reserved = {"CPU": per_worker, **({"GPU": settings.gpus_per_worker} if gpu else {})}
    if (room := worker_room(nodes, reserved)) < workers:
        each = " and ".join(f"{amount:g} {name}s" for name, amount in reserved.items())
        largest = max(node.get("CPU", 0.0) for node in nodes)
        raise ValueError(
            f"{workers} workers of {each} each do not fit on the {num_nodes} nodes of this cluster, as each needs one "
            f"node; use --workers {room or 1}" + ("" if room else f" --cpus_per_worker {largest:g}") + " or less"
        )
    threads = None
    if not gpu:
        threads = max(1, num_cores() // workers if num_nodes == 1 else int(per_worker))
    failures = settings.max_failures if settings.max_failures is not None else 0 if num_nodes == 1 else 3
    photometrics = settings.photometrics if settings.photometrics != "auto" else "device" if gpu else "worker"
    return Resources(gpu, reserved, threads, failures, photometrics)
