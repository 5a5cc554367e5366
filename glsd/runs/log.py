"""What a run logs while it grows: `metrics.jsonl`, `tensorboard/` and `skipped.jsonl`."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

from glsd.record import parsed_json
from glsd.runs.directory import RunDirectory
from glsd.runs.records import SkippedLine
from glsd.storage.replacing import replace_file

METRICS, SKIPPED, TENSORBOARD, FIGURES = "metrics.jsonl", "skipped.jsonl", "tensorboard", "figures"


@runtime_checkable
class ExternalLog(Protocol):
    """A place outside of the run directory where its metrics are logged as well."""

    def log(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Add the metrics of a step; all are finite."""

    def close(self, failed: bool) -> None:
        """End it, as finished or as failed."""


class RunLog:
    """The growing files of a run, written by one process: metrics, TensorBoard events, skipped images.

    They grow on a local disk, in place where the run directory is local; `sync` brings them to an object store whole
    and belongs before each checkpoint and at the end.

    Args:
        run: the run directory.
        resume_step: steps of the checkpoint from which the run resumes; lines of later steps are dropped.
        external: where else the metrics go.
    """

    def __init__(self, run: RunDirectory, resume_step: int = 0, external: Sequence[ExternalLog] = ()) -> None:
        from tensorboardX import SummaryWriter  # which imports torch

        self._run, self._external = run, external
        self._folder = Path(run.path) if run.is_local else Path(tempfile.mkdtemp(prefix="glsd-log-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        skipped = [line for line in read_skipped(run) if line.step <= resume_step]
        self._metrics = self._reopen(METRICS, [line for line in read_metrics(run) if line["step"] <= resume_step])
        self._skipped = self._reopen(SKIPPED, [line.json_values() for line in skipped])
        self._skipped_ids = {line.image_id for line in skipped}
        self._events = SummaryWriter(logdir=str(self._folder / TENSORBOARD), purge_step=resume_step + 1)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close(failed=kind is not None)

    @property
    def num_skipped(self) -> int:
        """How many images were skipped up to the last step, each counted once."""
        return len(self._skipped_ids)

    def log(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """Add the metrics of a step. JSON has no infinities: a value that is not finite is written as null."""
        values = {key: value if math.isfinite(value) else None for key, value in metrics.items() if key != "step"}
        _append(self._metrics, {"step": step} | values)
        for key, value in values.items():
            if value is not None:
                self._events.add_scalar(key, value, step)
        for log in self._external:
            log.log(step, {key: value for key, value in values.items() if value is not None})

    def skip(self, step: int, image_id: int, uri: str, reason: str) -> None:
        """Add an image that could not be decoded up to a step; only its first time counts."""
        if image_id not in self._skipped_ids:
            self._skipped_ids.add(image_id)
            line = SkippedLine(step=step, image_id=image_id, uri=uri, reason=reason)
            _append(self._skipped, line.json_values())

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

    def _reopen(self, name: str, lines: Sequence[Mapping[str, Any]]) -> TextIO:
        path = self._folder / name
        replace_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return path.open("a", encoding="utf-8", newline="\n")


def read_metrics(run: RunDirectory | str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The metrics that a run has logged, in the order of its steps: `{"step": ..., "loss": ..., ...}`."""
    return _read_lines(run if isinstance(run, RunDirectory) else RunDirectory(run), METRICS)


def read_skipped(run: RunDirectory) -> list[SkippedLine]:
    """The images that a run could not decode."""
    return [SkippedLine.model_validate(line) for line in _read_lines(run, SKIPPED)]


def _read_lines(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file: a kill or a power cut may leave its end torn."""
    lines: list[dict[str, Any]] = []
    for line in (run.read(name) or b"").split(b"\n")[:-1]:
        try:
            found = parsed_json(line, name)
        except ValueError:
            break
        if not isinstance(found, dict):
            break
        lines.append(found)
    return lines


def _append(stream: TextIO, line: Mapping[str, Any]) -> None:
    stream.write(json.dumps(line) + "\n")
    stream.flush()
