"""A run directory, local or on an object store: what identifies a run, who works on it, what it has logged.

`config.yaml`, `data.json` and `environment.json` are written once and hold a run to its settings and data; `lease.json`
keeps a second driver out; `metrics.jsonl`, `tensorboard/` and `skipped.jsonl` grow; `summary.json`, written last, marks
the end. Checkpoints are `glsd.training`'s.
"""

import json
import math
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, Self, TextIO
from urllib.parse import quote

import yaml
from pydantic import ValidationError

import glsd.config
from glsd.config import Config
from glsd.data.index import Index
from glsd.storage.folder import Folder
from glsd.storage.replacing import replace_file
from ray_jobs.lease import NAME as LEASE
from ray_jobs.lease import TIMES, LeaseTimes, held_lease, holds_lease, read_holder

CONFIG, DATA, ENVIRONMENT, SUMMARY = "config.yaml", "data.json", "environment.json", "summary.json"
METRICS, SKIPPED, TENSORBOARD, FIGURES = "metrics.jsonl", "skipped.jsonl", "tensorboard", "figures"
EVALUATION = "evaluation.json"  # of `glsd evaluate`, in a folder of its own
PACKAGES = (
    *("glsd", "ray", "pyarrow", "torch", "torchvision", "timm"),
    *("numpy", "pillow", "simplejpeg", "opencv-python-headless"),
)


_DATA_NAMES = {
    "digest": "digest of all names and sizes",
    "knn_digest": "digest of all names and sizes of the tested images",
}


class RunDirectory(Folder):
    """The folder `out` of a run, local or on an object store."""

    token: str | None = None
    """Token of the lease that is held; it travels to the workers."""

    @property
    def name(self) -> str:
        """The run's name: the last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def ascii_name(self) -> str:
        """The name for Ray, whose metrics take no other letters and which makes a folder of it: written as in a URI."""
        return quote(self.name, safe=" ")[:200]

    def check_config(self, config: Config) -> None:
        """Refuse a run of another configuration, and a directory that is no run; neither needs the data's index.

        Raises:
            ValueError: the run has other settings, each named with both values, or the directory holds other files.
        """
        content = self.read(CONFIG)
        if content is None:
            # A start that was killed before it wrote config.yaml leaves some of its files behind.
            self.check_own("run", CONFIG, (LEASE, DATA, ENVIRONMENT))
            return
        try:
            saved = Config.model_validate(yaml.safe_load(content))
        except (ValidationError, yaml.YAMLError) as error:
            raise ValueError(f"{self.out}/{CONFIG} is not a configuration of this version of glsd: {error}") from error
        self._refuse("settings", saved.differences(config))

    def claim(self, config: Config, data: Mapping[str, Any]) -> None:
        """Make this the run of `config` on `data`, or check that it is.

        Args:
            config: the run's settings.
            data: what identifies its images, such as the index's digest, their number and sources; JSON values.

        Raises:
            ValueError: the directory holds another run, with all that differs, or files that are not a run's.
        """
        self.check_config(config)
        self.check_data(data)
        if self.read(CONFIG) is None:
            self.write(DATA, _json(data))
            self.write(ENVIRONMENT, _json(environment()))
            self.write(CONFIG, config.to_yaml().encode())  # last: with it the directory is a run

    def identity(self, index: Index, tested: Index | None) -> dict[str, Any]:
        """What identifies the images of a run, and where they lie: for the images that it was begun with as they were
        written then, wherever they lie now.
        """
        saved = json.loads(self.read(DATA) or b"{}")
        identity: dict[str, Any] = {}
        for prefix, images in (("", index), ("knn_", tested)):
            if images is not None:
                facts = {"sources": images.sources, "images": len(images), "digest": images.digest}
                identity |= {prefix + name: fact for name, fact in facts.items()}
                if images.has_digest(saved.get(f"{prefix}digest")):
                    identity |= {key: saved[key] for key in (f"{prefix}sources", f"{prefix}digest")}
        return identity

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Refuse a run on other data.

        Raises:
            ValueError: the run has other data; the message says in what they differ.
        """
        if self.read(CONFIG) is None:
            return
        saved, given = json.loads(self.read(DATA) or b"{}"), json.loads(_json(data))
        keys = [*saved, *(key for key in given if key not in saved)]
        self._refuse(
            "data",
            {
                _DATA_NAMES.get(key, key): (saved.get(key), given.get(key))
                for key in keys
                if saved.get(key) != given.get(key)
            },
        )

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as finished; the last file that it writes."""
        self.write(SUMMARY, _json(summary))

    @property
    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run; None while it is not finished."""
        content = self.read(SUMMARY)
        return None if content is None else dict(json.loads(content))

    @contextmanager
    def lease(self, on_wait: Callable[[str], None] = print, times: LeaseTimes = TIMES) -> Iterator[str]:
        """Keep other drivers out for the length of a `with` block; its token is also `self.token`.

        Args:
            on_wait: told in a sentence when the start waits for the end of an earlier driver.
            times: seconds to reckon with.

        Raises:
            ValueError: another driver is at work; the message names host, process and since when.
        """
        with held_lease(self, on_wait, times) as self.token:
            try:
                yield self.token
            finally:
                self.token = None

    def holds_lease(self, token: str) -> bool:
        """Whether the lease with this token is current: a worker asks before it publishes a checkpoint."""
        return holds_lease(self, token)

    def check_reached(self, token: str) -> None:
        """Refuse a worker that sees another folder than the driver that started it, before it reads or writes there.

        Args:
            token: of the lease that the driver holds.

        Raises:
            ValueError: there is no lease, so the folder is not shared, or another start has taken the run over.
        """
        holder = read_holder(self)
        if holder is None:
            raise ValueError(
                f"the worker on host {socket.gethostname()} does not find {self.uri(LEASE)}, which the command that "
                "started it wrote; name an --out that all nodes reach"
            )
        if holder.token != token:
            raise ValueError(f"process {holder.pid} on host {holder.host} has taken {self.out} over; this start ends")

    def _refuse(self, kind: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
        if differences:
            lines = [
                f"  {key}: {json.dumps(old)} there, {json.dumps(new)} now" for key, (old, new) in differences.items()
            ]
            raise ValueError(
                f"{self.out} is a run with other {kind}:\n" + "\n".join(lines) + "\n"
                f"Choose another --out for a new run, or the {kind} it was started with to go on."
            )


class ExternalLog(Protocol):
    """A place outside of the run directory where its metrics are logged as well."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step; all are finite."""

    def close(self, failed: bool) -> None:
        """End it, as finished or as failed."""


class RunLog:
    """The growing files of a run, written by one process: metrics, TensorBoard events, skipped images.

    They grow on a local disk, in place where the run directory is local; `sync` brings them to an object store whole
    and belongs before each checkpoint and at the end. A run that resumes forgets what was logged after its checkpoint.

    Args:
        run: the run directory.
        resume_step: number of steps that the checkpoint holds; lines of later steps are dropped.
        external: where else the metrics go.
    """

    def __init__(self, run: RunDirectory, resume_step: int = 0, external: Sequence[ExternalLog] = ()) -> None:
        from tensorboardX import SummaryWriter  # which imports torch

        self._run, self._external = run, external
        self._folder = Path(run.path) if run.is_local else Path(tempfile.mkdtemp(prefix="glsd-log-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        metrics, skipped = (
            [line for line in lines if line["step"] <= resume_step] for lines in (read_metrics(run), read_skipped(run))
        )
        self._metrics = self._reopen(METRICS, metrics)
        self._skipped = self._reopen(SKIPPED, skipped)
        self._skipped_ids = {line["image_id"] for line in skipped}
        self._events = SummaryWriter(logdir=str(self._folder / TENSORBOARD), purge_step=resume_step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close(failed=kind is not None)

    @property
    def num_skipped(self) -> int:
        """How many images were skipped up to the last step, each counted once."""
        return len(self._skipped_ids)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step. JSON has no infinities: a value that is not finite is written as null."""
        values = {key: value if math.isfinite(value) else None for key, value in metrics.items() if key != "step"}
        _append(self._metrics, {"step": step} | values)
        for key, value in values.items():
            if value is not None:
                self._events.add_scalar(key, value, step)
        for log in self._external:
            log.log(step, {key: value for key, value in values.items() if value is not None})

    def skip(self, step: int, image_id: int, uri: str, reason: str) -> None:
        """Add an image that could not be decoded up to a step; again is the same as once."""
        if image_id not in self._skipped_ids:
            self._skipped_ids.add(image_id)
            _append(self._skipped, {"step": step, "image_id": image_id, "uri": uri, "reason": reason})

    def sync(self) -> None:
        """Make all that was logged so far durable: on the disk, or on the object store."""
        self._events.flush()
        for stream in (self._metrics, self._skipped):
            os.fsync(stream.fileno())
        if not self._run.is_local:
            for path in sorted(path for path in self._folder.rglob("*") if path.is_file()):
                self._run.write(path.relative_to(self._folder).as_posix(), path.read_bytes())

    def close(self, failed: bool = False) -> None:
        """Sync for the last time and close the files; `failed` is what is said outside."""
        with ExitStack() as closing:  # all of it, whatever fails
            for log in self._external:
                closing.callback(log.close, failed)
            if not self._run.is_local:
                closing.callback(shutil.rmtree, self._folder)
            for stream in (self._skipped, self._metrics, self._events):
                closing.callback(stream.close)
            self.sync()

    def _reopen(self, name: str, lines: list[dict[str, Any]]) -> TextIO:
        path = self._folder / name
        replace_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return path.open("a", encoding="utf-8", newline="\n")


def read_metrics(run: RunDirectory | str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The metrics that a run has logged, in the order of its steps: `{"step": ..., "loss": ..., ...}`."""
    return _read_lines(run if isinstance(run, RunDirectory) else RunDirectory(run), METRICS)


def read_skipped(run: RunDirectory) -> list[dict[str, Any]]:
    """The images that a run could not decode: `{"step": ..., "image_id": ..., "uri": ..., "reason": ...}`."""
    return _read_lines(run, SKIPPED)


def environment() -> dict[str, Any]:
    """What a result may depend on besides settings and data: versions, platform, commit. No variables, no names."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None  # a checkout that is not installed, or a package that another distribution provides


def _git_commit() -> str | None:
    root = Path(glsd.config.__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None  # an installed package
    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _read_lines(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file: a kill or a power cut may leave its end torn."""
    lines: list[dict[str, Any]] = []
    for line in (run.read(name) or b"").split(b"\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def _append(stream: TextIO, line: Mapping[str, Any]) -> None:
    stream.write(json.dumps(line) + "\n")
    stream.flush()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(content), indent=2) + "\n").encode()
