"""Whether a cluster has what a job's workers need."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import ray
import ray.data

from glsd.config import Config
from ray_jobs.settings import JobSettings, num_cores

TRAIN: Final = {"role": "train"}
"""The label of nodes that train. Where a node has it, only those do."""
DATA: Final = {"role": "data"}
"""The label of nodes for images."""


class NoRoom(ValueError):
    """A cluster has too few nodes for a job's workers."""

    def __init__(self, message: str, room: int, per_worker: Mapping[str, float], labels: Mapping[str, str]) -> None:
        super().__init__(message)
        self.room, self.per_worker, self.labels = room, dict(per_worker), dict(labels)


class Resources(NamedTuple):
    """What a job's workers get."""

    workers: int
    gpu: bool
    per_worker: dict[str, float]
    labels: dict[str, str]
    """Of the nodes on which workers run; none where any node will do."""
    torch_threads: int | None
    """Threads of a worker's tensor operations; None leaves them to torch."""
    max_failures: int
    photometrics: Literal["worker", "device"]


def own_device(job: JobSettings) -> str:
    """Where this process, which is not a worker, computes: on its machine's GPU, if `job.gpu` allows it.

    A trial of a sweep is an actor that reserves no GPU; other processes train on those that it sees.
    """
    import torch  # takes seconds

    is_trial = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
    return "cuda" if job.gpu is not False and not is_trial and torch.cuda.is_available() else "cpu"


def gpu_room(gpus: float, per_worker: float) -> int:
    """How many workers fit, each with its share of one GPU.

    >>> gpu_room(2, 0.6), gpu_room(2, 0.4), gpu_room(1, 1 / 3), gpu_room(0, 1)
    (2, 4, 3, 0)
    """
    return math.floor(gpus) * math.floor(1 / per_worker + 1e-9)  # three thirds are a whole, whatever they are as floats


def unusable_gpu() -> str | None:
    """Why torch cannot use this machine's GPU, although Ray sees it."""
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


def widths(config: Config, settings: JobSettings) -> list[int]:
    """The numbers of workers that a job may have: those that can share the units of a step, in ascending order.

    Raises:
        ValueError: none can; the message names the numbers of workers that could.
    """
    units, (least, most) = config.units_per_step, settings.range
    possible = [count for count in range(1, units + 1) if units % count == 0]
    if not (found := [count for count in possible if least <= count <= most]):
        raise ValueError(
            f"{settings.workers} workers cannot share a step of {units} units (optim.batch_size "
            f"{config.optim.batch_size} / data.unit_size {config.data.unit_size}); use one of {possible} workers, or a "
            "smaller data.unit_size"
        )
    return found


def check_ranks(settings: JobSettings, resources: Resources) -> None:
    """Refuse training workers that would share a GPU, which NCCL does not allow.

    Raises:
        ValueError: the message says what to change.
    """
    if resources.gpu and settings.range[1] > 1 and settings.gpus_per_worker <= 0.5:
        raise ValueError(
            f"{settings.workers} workers of {settings.gpus_per_worker:g} GPUs each would share GPUs, which NCCL does "
            "not allow the workers of one run; use --workers 1, or leave --gpus_per_worker 1"
        )


def check_resources(settings: JobSettings, labels: Mapping[str, str] | None = None) -> Resources:
    """The workers' resources, once it is sure that the connected cluster has them and a CPU for the stream.

    Workers run on nodes with the labels; by default on those with the label of nodes that train, if there are any.

    Raises:
        NoRoom: the cluster lacks them; the message names what is needed.
        ValueError: torch cannot use the GPU.
    """
    workers = settings.num_workers
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    alive = [node for node in ray.nodes() if node["Alive"]]
    num_nodes = len(alive)
    if labels is None:
        labels = TRAIN if any(map(has_label(TRAIN), alive)) else {}
    nodes = [node["Resources"] for node in filter(has_label(labels), alive)]
    gpu = gpus >= 1 if settings.gpu is None else settings.gpu
    if gpu and gpus and num_nodes == 1 and (reason := unusable_gpu()):
        raise ValueError(f"there is a GPU, but {reason}; install a torch that fits it, or use --gpu False")
    per_worker = settings.cpus_per_worker or (0.01 if num_nodes == 1 else 1.0)
    reserved = {"CPU": per_worker, **({"GPU": settings.gpus_per_worker} if gpu else {})}
    room = worker_room(nodes, reserved)

    def no_room(message: str) -> NoRoom:
        # Where only a head is up, it is not the one machine of which workers take next to nothing.
        asked = reserved | {"CPU": settings.cpus_per_worker or 1.0}
        return NoRoom(message, min(room, workers), asked, labels)

    if gpu and (of_gpus := gpu_room(gpus, settings.gpus_per_worker)) < workers:
        raise no_room(
            f"{workers} workers of {settings.gpus_per_worker:g} GPUs each do not fit on the {gpus:g} GPUs of this "
            f"cluster; use --workers {max(1, of_gpus)}" + ("" if of_gpus else " --gpu False")
        )
    if cpus - workers * per_worker < 1:
        raise no_room(
            f"{workers} workers of {per_worker:g} CPUs leave {max(0.0, cpus - workers * per_worker):g} of the "
            f"cluster's {cpus:g} CPUs for the stream, which needs 1 at least; use fewer --workers or --cpus_per_worker"
        )
    if room < workers:
        each = " and ".join(f"{amount:g} {name}s" for name, amount in reserved.items())
        largest = max(node.get("CPU", 0.0) for node in nodes)
        raise no_room(
            f"{workers} workers of {each} each do not fit on the {len(nodes)} nodes of this cluster"
            + (" that have the label role=train" if labels else "")
            + ", as each needs one "
            f"node; use --workers {room or 1}" + ("" if room else f" --cpus_per_worker {largest:g}") + " or less"
        )
    of_data = [node["Resources"] for node in filter(has_label(DATA), alive)]
    if lack := _lack_of_cores(settings, reserved, nodes, of_data):
        raise no_room(lack)
    threads = None
    if not gpu:
        threads = max(1, num_cores() // workers if num_nodes == 1 else int(per_worker))
    failures = settings.max_failures if settings.max_failures is not None else 0 if num_nodes == 1 else 3
    photometrics = settings.photometrics if settings.photometrics != "auto" else "device" if gpu else "worker"
    return Resources(workers, gpu, reserved, dict(labels), threads, failures, photometrics)


def has_label(labels: Mapping[str, str]) -> Callable[[Mapping[str, Any]], bool]:
    """Tells whether a node has the labels."""
    return lambda node: labels.items() <= node["Labels"].items()


def _lack_of_cores(
    settings: JobSettings,
    per_worker: Mapping[str, float],
    training: Sequence[Mapping[str, float]],
    data: Sequence[Mapping[str, float]],
) -> str:
    """Why the chosen nodes for images have no core for them, if they have none."""
    if settings.data_on == "data" and not any(node.get("CPU", 0) >= 1 for node in data):
        return (
            "--data_on data needs nodes with the label role=data and a CPU, and there are none; start some with "
            "`ray start --labels role=data`, or use --data_on any"
        )
    with_room = [{**node, "CPU": node.get("CPU", 0.0) - 1} for node in training]
    if settings.data_on == "train" and worker_room(with_room, per_worker) < settings.num_workers:
        return (
            f"--data_on train needs a CPU for images on each node that trains, and {settings.num_workers} workers of "
            f"{per_worker['CPU']:g} CPUs leave none on some; use --data_on any or a lower --cpus_per_worker"
        )
    return ""
