"""A run that is killed at any moment and started again ends as one that was never disturbed, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from glsd.runs.checkpoints import load_checkpoint
from ray_jobs.pretraining.job import Run
from tests.ray_jobs.runs import STEPS_PER_EPOCH, TOTAL_STEPS, complete_checkpoints, json_lines, leaves, small_run

TIMEOUT_S = 900
MEASURED = {
    "images_per_s", "data_wait", "seconds_left",
    "units_per_s", "units_waiting", "units_ahead", "coordinator_bytes", "object_store",
}  # fmt: skip


class Command:
    """`glsd pretrain` on a folder, always the same, each time a process with a Ray of its own."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.data, self.out, self.cache, self.starts = data, folder / "run", folder / "cache", list[Start]()
        self._folder = folder
        (folder / "run.yaml").write_text(small_run().to_yaml(), "utf-8")
        self._arguments = [sys.executable, "-m", "ray_jobs.cli.main", "pretrain", str(folder / "run.yaml")]
        self._arguments += ["--data", str(data), "--out", str(self.out)]

    def start(self) -> "Start":
        """The command as a new process, whatever became of the last one."""
        log = self._folder / f"{len(self.starts)}.log"
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["GLSD_CACHE"] = str(self.cache)
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self._arguments, stdout=stream, stderr=stream, env=environment, start_new_session=True
            )
        self.starts.append(Start(process, log))
        return self.starts[-1]


class Start:
    """A started command: the driver and, in its session, the processes of its Ray."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self._log = process, log

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8", errors="replace")

    @property
    def phase(self) -> str:
        """The last line of its progress."""
        return self.said.rpartition("\n")[0].rpartition("\n")[2]

    def wait_until(self, reached: Callable[[], object], every_s: float = 0.02) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not reached():
            assert self.process.poll() is None, f"it ended before it was killed:\n{self.said}"
            assert time.monotonic() < end, f"not reached in {TIMEOUT_S} s:\n{self.said}"
            time.sleep(every_s)

    def kill_driver(self) -> None:
        """SIGKILL to the driver alone: its workers live on until they notice."""
        self.process.kill()
        self.process.wait()

    def kill_actor(self, title: str) -> None:
        """SIGKILL to the one process of its Ray with this title."""
        (pid,) = [
            member.pid
            for member in _session(self.process.pid)
            if " ".join(member.cmdline()).startswith(f"ray::{title}")
        ]
        os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL to all at once, as when the machine goes down."""
        while members := _session(self.process.pid):
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
        self.process.wait()


def _session(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    members = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(pid) == leader and (member := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                members.append(member)
    return members


@pytest.fixture
def command(forty: Path, tmp_path: Path) -> Iterator[Command]:
    """The command on a copy of the images; what is left of its processes ends with the test."""
    photos = shutil.copytree(forty, tmp_path / "photos")
    command = Command(tmp_path, photos)
    yield command
    for start in command.starts:
        start.kill_all()


@pytest.mark.ray
def test_a_run_killed_at_every_kind_of_moment_ends_bit_for_bit_as_one_that_was_never_killed(
    uninterrupted: Run, command: Command
) -> None:
    out = command.out

    def last_step() -> int:
        return max((line["step"] for line in json_lines(out / "metrics.jsonl")), default=-1)

    def at_the_end_of_an_epoch() -> bool:
        return last_step() % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1

    def half_written() -> list[Path]:
        return list(out.glob("checkpoints/.*.partial"))

    # While indexing, which has something to look through for as long as a kill takes.
    empty = [command.data / "checks" / f"{number}" for number in range(20_000)]
    for folder in empty:
        folder.mkdir()
    start = command.start()
    start.wait_until(lambda: "indexing" in start.said)
    start.kill_driver()
    for folder in empty:
        folder.rmdir()
    assert not list(command.cache.glob("*.arrow"))

    # Before the first checkpoint; the training worker alone, as by a kernel that runs out of memory: the command says
    # what it was.
    start = command.start()
    start.wait_until(lambda: last_step() >= 2)
    start.kill_actor("RayTrainWorker")
    assert start.process.wait(TIMEOUT_S) == 2, start.said
    assert complete_checkpoints(out) == []
    assert "Traceback" not in start.said
    *_, last_line = start.said.splitlines()
    assert last_line.startswith("glsd: a process of the job died, possibly out of memory"), start.said

    # Within the writing of a checkpoint.
    start = command.start()
    start.wait_until(half_written, every_s=0.002)
    start.kill_all()
    assert half_written()

    # Within a step after a checkpoint; the driver alone, whose workers train on while it is started again.
    start = command.start()
    start.wait_until(lambda: complete_checkpoints(out) and last_step() > max(complete_checkpoints(out)))
    start.kill_driver()

    # By SIGTERM, as from a scheduler: it saves the next step that it logs, and ends in peace.
    start = command.start()
    start.wait_until(lambda: "starting workers" in start.said)
    before = max(complete_checkpoints(out))
    start.process.terminate()
    assert start.process.wait(TIMEOUT_S) == 0, start.said
    assert max(complete_checkpoints(out)) == last_step() == before + 1
    assert f"stopped at step {before + 1} of {TOTAL_STEPS}, which is saved" in start.said

    # Within k-NN, which follows the last step of an epoch and comes before that step is logged.
    start = command.start()
    start.wait_until(lambda: start.phase == "k-NN" and at_the_end_of_an_epoch())
    start.kill_all()
    assert at_the_end_of_an_epoch()

    # Within the export.
    start = command.start()
    start.wait_until(lambda: "exporting the backbone" in start.said)
    start.kill_driver()
    assert not (out / "summary.json").exists()
    assert not (out / "backbone").exists()

    start = command.start()
    assert start.process.wait(TIMEOUT_S) == 0, start.said
    assert "Ray" not in start.said

    undisturbed = Path(uninterrupted.out)
    checkpoint = f"checkpoints/step_{TOTAL_STEPS:08d}"
    expected, found = (leaves(load_checkpoint(str(folder / checkpoint))) for folder in (undisturbed, out))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value, name
    assert complete_checkpoints(out) == complete_checkpoints(undisturbed)
    assert half_written() == []

    def logged(folder: Path) -> list[dict[str, float]]:
        lines = json_lines(folder / "metrics.jsonl")
        return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]

    assert logged(out) == logged(undisturbed)
    assert [line["image_id"] for line in json_lines(out / "skipped.jsonl")] == [0]
    backbone = "backbone/model.safetensors"
    assert (out / backbone).read_bytes() == (undisturbed / backbone).read_bytes()
