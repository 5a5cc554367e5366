"""What one GPU gives: the time and memory of training steps, phase by phase, and of their parts; without Ray.

Parts, in this order, each only if the budget of seconds still has room for it:

1. the tests that wait for CUDA (`tests/test_cuda.py`);
2. the step of Swin-T/7 with the preset `paper`, units of 32, 64 and 128 images, three settings: images/s, peak memory,
   and the shares of its phases by CUDA events. Units are made before; copying and photometrics belong to the step;
3. heads and loss against the plain form of `loss_memory.py`, 64 images;
4. photometrics of a unit of 64 images;
5. the step of ViT-S/16 and ResNet-50, units of 64;
6. hidden waits: one step in which every wait of the host for the device is an error;
7. k-NN of 256 queries over 1.28 million anchors of 768 numbers in float16.

    python benchmarks/gpu.py [--seconds 400] [--json gpu.json]

On a CPU everything is tiny, so that a test can run it; such figures mean nothing. It needs glsd's dependencies but Ray
and wandb's like: torch, torchvision, timm, numpy, pydantic, jaxtyping, simplejpeg, opencv-python-headless, pyarrow, and
pytest with its plugins for part 1.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import loss_memory
import numpy as np
import torch

import glsd.training.step as step_module
from glsd.augment.multicrop import multicrop_batch
from glsd.augment.photometric import photometric_device
from glsd.config import Config
from glsd.evaluation.knn import Labelled, knn_accuracies
from glsd.experiments import load_config
from glsd.training.batch import Unit, to_device
from glsd.training.schedules import schedule
from glsd.training.state import initial_state
from glsd.training.step import train_step

ROOT: Final = Path(__file__).parents[1]
SETTINGS: Final = ("vanilla", "similarity", "geometric")
STEPS_PER_EPOCH: Final = 1000  # a first epoch would freeze the last layers; see `_config`
PHASES: Final = (
    *("copy", "photometrics", "teacher forward", "student forward", "loss", "backward", "clip and AdamW"),
    *("EMA", "centres"),
)


class Sizes(NamedTuple):
    """How large the parts are: for a GPU, or for a test on a CPU."""

    units: tuple[int, ...]
    unit: int
    """Images of a unit where one size is measured."""
    num_steps: int
    prototypes: int
    anchors: int
    backbones: tuple[str, ...]
    """Of part 2, then those of part 5."""
    overrides: dict[str, Any]


ON_GPU: Final = Sizes(
    units=(32, 64, 128),
    unit=64,
    num_steps=8,
    prototypes=65536,
    anchors=1_280_000,
    backbones=("swin_tiny_patch4_window7_224", "vit_small_patch16_224", "resnet50"),
    overrides={},
)
ON_CPU: Final = Sizes(
    units=(2,),
    unit=2,
    num_steps=2,
    prototypes=64,
    anchors=1000,
    backbones=("test_convnext", "test_vit", "test_resnet"),
    overrides={
        "augment.global_size": 64,
        "augment.local_sizes": (32,),
        "augment.num_local_crops": (2,),
        "model.hidden_dim": 32,
        "model.bottleneck_dim": 16,
        "model.num_prototypes": 64,
    },
)


class Budget:
    """The seconds that are left, and what they did not suffice for."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.left_out: list[str] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def measured(self, what: str, needs: float, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The row of a part that takes about so many seconds; None, noted, where they are not left or memory is not."""
        if self.left < needs:
            self.left_out.append(f"{what}: {self.left:.0f} s left of the {needs:.0f} it may take")
            return None
        start = time.monotonic()
        try:
            row = {"what": what} | measure()
        except torch.OutOfMemoryError:
            self.left_out.append(f"{what}: the memory of the device is too small")
            return None
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        print(_row_text(row) + f"   [{time.monotonic() - start:.0f} s]", flush=True)
        return row


class Events:
    """Marks on the device's own time line: when each phase of a step began and ended."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spans: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is enqueued within."""
        start = self._mark()
        yield
        self.add(name, start, self._mark())

    def add(self, name: str, start: Any, end: Any) -> None:
        """A phase between two marks."""
        self._spans.setdefault(name, []).append((start, end))

    def mark(self) -> Any:
        """A mark."""
        return self._mark()

    def milliseconds(self) -> dict[str, float]:
        """Of each phase in all, once the device has come to the end."""
        _wait(self._device)
        if self._device.type == "cuda":
            return {name: sum(a.elapsed_time(b) for a, b in spans) for name, spans in self._spans.items()}
        return {name: 1000 * sum(b - a for a, b in spans) for name, spans in self._spans.items()}

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _config(setting: str, backbone: str, num_images: int, sizes: Sizes) -> Config:
    """The preset `paper` with a step of one unit, past the epoch in which last layers are frozen."""
    overrides = {
        "objective.setting": setting,
        "model.backbone": backbone,
        "optim.batch_size": num_images,
        "data.unit_size": num_images,
        "optim.freeze_last_layer_epochs": 0,
        **({} if backbone.startswith("swin") else {"model.drop_path": 0.0}),
        **sizes.overrides,
    }
    return load_config("paper", overrides)


def _unit(config: Config) -> Unit:
    """A unit of images of noise, as the stream makes it where photometrics are left to the device."""
    num_images = config.data.unit_size
    images = [np.random.default_rng(seed).integers(0, 256, (375, 500, 3), np.uint8) for seed in range(4)]
    ids = np.arange(num_images)
    crops = multicrop_batch([images[i % 4] for i in ids], config.augment, config.seed, 0, ids, "device")
    return {"unit": np.zeros(num_images, np.int64), "image_id": ids, **crops}


@contextmanager
def _phases_marked(state: Any, events: Events) -> Iterator[None]:
    """Within it, the parts that `train_step` calls mark when they begin and end; backward lies between two of them."""
    ends: dict[str, Any] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "clip and AdamW" and "loss" in ends:
                events.add("backward", ends.pop("loss"), events.mark())
            with events.phase(name):
                result = function(*args, **kwargs)
            if name == "loss":
                ends["loss"] = events.mark()
            return result

        return call

    parts = {
        "objective": "loss",
        "clip_each": "clip and AdamW",
        "gated_step": "clip and AdamW",
        "ema_update": "EMA",
        "update_centers": "centres",
    }
    with ExitStack() as stack:
        for function, name in parts.items():
            timed_part = timed(name, getattr(step_module, function))
            stack.enter_context(mock.patch.object(step_module, function, timed_part))
        for network, name in ((state.teacher, "teacher forward"), (state.student, "student forward")):
            stack.enter_context(mock.patch.object(network, "forward", timed(name, network.forward)))
        yield


def step(setting: str, backbone: str, num_images: int, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Images/s, peak memory and shares of a training step of one unit."""
    config = _config(setting, backbone, num_images, sizes)
    state, unit = initial_state(config, device), _unit(config)

    def one() -> None:
        batch = to_device(unit, config.augment, device)
        train_step(state, [batch], schedule(state.step, config, STEPS_PER_EPOCH), config)

    for _ in range(3):  # allocators, kernels and moments are made
        one()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(sizes.num_steps):
        one()
    _wait(device)
    seconds = (time.perf_counter() - start) / sizes.num_steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None

    events = Events(device)
    with _phases_marked(state, events):
        for _ in range(sizes.num_steps):
            with events.phase("copy"):
                for name, array in unit.items():
                    if name.startswith(("crops", "geo", "pho")):
                        _copied(array, device)
            with events.phase("copy and photometrics"):
                batch = to_device(unit, config.augment, device)
            train_step(state, [batch], schedule(state.step, config, STEPS_PER_EPOCH), config)
    spent = events.milliseconds()
    spent["photometrics"] = max(0.0, spent.pop("copy and photometrics") - spent["copy"])
    whole = sum(spent.values())
    return {
        "images_per_s": num_images / seconds,
        "ms_per_step": 1000 * seconds,
        "peak_gib": peak,
        "shares": {name: spent[name] / whole for name in PHASES},
    }


def _copied(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.clone()


def heads_and_loss(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Peak memory and time of both heads' last layers and the loss, ours against the plain form."""
    autocast = device.type == "cuda"
    given = loss_memory.problem(sizes.unit, sizes.prototypes, device.type)
    loss_memory.check_agreement(given, autocast)
    found: dict[str, Any] = {}
    for name, side in (("ours", loss_memory.ours), ("plain", loss_memory.plain)):
        run = partial(loss_memory.step, side, given, autocast)
        found[f"{name}_mib"] = loss_memory.peak_bytes(run, given) / 2**20
        found[f"{name}_ms"] = 1000 * statistics.median(loss_memory.seconds(run, autocast) for _ in range(3))
    return found | {
        "memory_ratio": found["plain_mib"] / found["ours_mib"],
        "time_ratio": found["plain_ms"] / found["ours_ms"],
    }


def photometrics(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """P of all crops of a unit on the device."""
    config = _config("geometric", sizes.backbones[0], sizes.unit, sizes)
    unit, first_view, groups = _unit(config), 0, []
    for group, (_, num_views) in enumerate(config.augment.groups):
        crops = _copied(unit[f"crops_{group}"], device).flatten(0, 1)
        pho = _copied(unit["pho"][:, first_view : first_view + num_views], device).flatten(0, 1)
        groups.append((crops, pho))
        first_view += num_views

    def run() -> None:
        for crops, pho in groups:
            photometric_device(crops, pho, config.augment)

    run()
    _wait(device)
    times = []
    for _ in range(sizes.num_steps):
        start = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    return {"images_per_s": sizes.unit / seconds, "ms": 1000 * seconds}


def hidden_waits(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Whether a step waits for the device; on a CPU there is nothing to wait for."""
    config = _config("geometric", sizes.backbones[0], sizes.unit, sizes)
    state, unit = initial_state(config, device), _unit(config)

    def one() -> None:
        batch = to_device(unit, config.augment, device)
        train_step(state, [batch], schedule(state.step, config, STEPS_PER_EPOCH), config)

    one()
    _wait(device)
    if device.type != "cuda":
        return {"waits": "nothing to wait for"}
    torch.cuda.set_sync_debug_mode("error")
    try:
        one()
    except RuntimeError as error:
        return {"waits": str(error)}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"waits": "none"}


def knn(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Time and memory of k-NN with four k."""
    generator = torch.Generator(device).manual_seed(0)
    queries = torch.randn(256, 768, generator=generator, device=device)
    anchors = torch.empty(sizes.anchors, 768, dtype=torch.float16)
    for rows in anchors.split(1 << 16):
        rows.copy_(torch.randn(rows.shape, generator=generator, device=device))
    labels = torch.randint(1000, (256 + sizes.anchors,))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    voting, tested = Labelled(anchors, labels[256:]), Labelled(queries, labels[:256])
    knn_accuracies(voting, tested, (10, 20, 100, 200), temperature=0.07, num_classes=1000)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"seconds": seconds, "peak_gib": peak}


def cuda_tests() -> dict[str, Any]:
    """The tests that wait for CUDA, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, "tests/test_cuda.py"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    said = (ended.stdout.strip() or ended.stderr.strip()).splitlines()
    failed = [line for line in said if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": ended.returncode, "said": said[-1] if said else "", "failed": failed}


def _row_text(row: dict[str, Any]) -> str:
    cells = []
    for name, value in row.items():
        if name == "what":
            continue
        if name == "shares":
            cells.append(", ".join(f"{phase} {share:.0%}" for phase, share in value.items()))
        elif value not in (None, []):
            cells.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return f"{row['what']:<44} {' | '.join(cells)}"


def measure(seconds: float, device: torch.device) -> dict[str, Any]:
    """All parts within the budget; rows as they are printed."""
    sizes, budget = (ON_GPU if device.type == "cuda" else ON_CPU), Budget(seconds)
    first, *others = sizes.backbones
    quick = 2.0 if device.type == "cpu" else 15.0
    parts: list[tuple[str, float, Callable[[], dict[str, Any]]]] = []
    if device.type == "cuda":
        parts.append(("tests that wait for CUDA", 90.0, cuda_tests))
    parts += [
        (f"step, {first}, {setting}, {size} images", quick, partial(step, setting, first, size, sizes, device))
        for size in sizes.units
        for setting in SETTINGS
    ]
    parts += [
        (f"heads and loss, {sizes.prototypes} prototypes", quick, partial(heads_and_loss, sizes, device)),
        (f"photometrics, {sizes.unit} images", quick, partial(photometrics, sizes, device)),
        *(
            (
                f"step, {name}, geometric, {sizes.unit} images",
                quick,
                partial(step, "geometric", name, sizes.unit, sizes, device),
            )
            for name in others
        ),
        ("hidden waits of a step", quick, partial(hidden_waits, sizes, device)),
        (f"k-NN over {sizes.anchors:,} anchors", 2 * quick, partial(knn, sizes, device)),
    ]
    rows = [row for what, needs, part in parts if (row := budget.measured(what, needs, part)) is not None]
    return {"rows": rows, "left_out": budget.left_out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=400, help="budget of all parts")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU, tiny sizes"
    facts = {"machine": machine, "torch": torch.__version__, "python": platform.python_version()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    found = facts | measure(arguments.seconds, device)
    for text in found["left_out"]:
        print(f"left out: {text}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
