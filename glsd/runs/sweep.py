"""How the trials of a sweep stand, read from its folder alone: for the live table and for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from glsd.record import parsed_yaml
from glsd.runs.directory import CONFIG, RunDirectory, in_ascii
from glsd.runs.log import read_metrics
from glsd.runs.records import SWEEP, Evaluation, Outcome, Status, SweepFile, SweepTrial, read_record
from glsd.storage.folder import Folder
from glsd.storage.uris import joined

TRIALS, EVALUATED = "trials", "evaluation"
"""Folder of the trials in a sweep's folder, and of a trial's evaluation in its run directory."""


def sweep_and_trial(run: RunDirectory) -> tuple[str, str]:
    """The names of a trial's sweep and of the trial, in ASCII; of a run that is not in a sweep its own name and none.

    >>> sweep_and_trial(RunDirectory("sweeps/rates/trials/base_lr=0.01")), sweep_and_trial(RunDirectory("runs/photos"))
    (('rates', 'base_lr%3D0.01'), ('photos', ''))
    """
    *_, sweep, folder, _ = ("", "", *run.path.split("/"))
    return (in_ascii(sweep), run.ascii_name) if folder == TRIALS else (run.ascii_name, "")


@dataclass(frozen=True)
class TrialState:
    """One trial of a sweep."""

    name: str
    data: str
    overrides: dict[str, Any]
    """Dotted keys that make this trial."""
    num_images: int
    steps: int
    """Of the whole run."""
    status: Status | Literal["waiting", "started"]
    """How it stands."""
    message: str
    gpus: float
    """GPUs that its workers use; 0 is CPUs."""
    config: dict[str, Any] | None
    """The run's settings; None until it has started."""
    metrics: list[dict[str, Any]]
    """What the run has logged."""
    evaluation: Evaluation | None

    def last(self, key: str) -> int | float | None:
        """The newest value of a metric."""
        return next((line[key] for line in reversed(self.metrics) if line.get(key) is not None), None)

    @property
    def train_seconds(self) -> float:
        """Time spent in training steps, over all sittings."""
        if self.config is None:
            return 0.0
        batch_size, seconds, before = self.config["optim"]["batch_size"], 0.0, 0
        for line in self.metrics:
            if line.get("images_per_s"):
                seconds += (line["step"] - before) * batch_size / line["images_per_s"]
                before = line["step"]
        return seconds

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do; one that failed is tried again."""
        return self.status not in ("waiting", "started", "failed")

    @property
    def verdict(self) -> str:
        """`healthy` or `collapsed`: by how it ended, its evaluation or its last reading; empty where unknown."""
        if self.status == "collapsed":
            return "collapsed"  # its last checkpoint, which is evaluated, may be from before the collapse
        if self.evaluation is not None and self.evaluation.collapse is not None:
            return self.evaluation.collapse.verdict
        collapsed = self.last("collapsed")
        return "" if collapsed is None else "collapsed" if collapsed else "healthy"


def trial_states(out: str, known: Sequence[TrialState] = ()) -> list[TrialState]:
    """All trials of the sweep at `out`, as they were asked for; those of `known` that have ended are not read again.

    Raises:
        ValueError: the folder is not a sweep.
    """
    sweep = read_record(Folder(out), SweepFile)
    if sweep is None:
        raise ValueError(f"{out} is not a sweep: it has no {SWEEP}")
    ended = {state.name: state for state in known if state.ended}
    return [ended[name] if name in ended else _state(out, name, trial) for name, trial in sweep.trials.items()]


def _state(out: str, name: str, trial: SweepTrial) -> TrialState:
    place = joined(out, f"{TRIALS}/{name}")
    folder = Folder(place)
    config, ended = folder.read(CONFIG), read_record(folder, Outcome)
    return TrialState(
        name=name,
        data=trial.data,
        overrides=trial.overrides,
        num_images=trial.num_images,
        steps=trial.steps,
        status=ended.status if ended else "waiting" if config is None else "started",
        message=ended.message if ended else "",
        gpus=ended.gpus if ended else trial.gpus,
        config=None if config is None else parsed_yaml(config, joined(place, CONFIG)),
        metrics=[] if config is None else read_metrics(place),
        evaluation=evaluation(folder),
    )


def evaluation(folder: Folder) -> Evaluation | None:
    """What the evaluation of a trial found, if there is one."""
    return read_record(folder, Evaluation, f"{EVALUATED}/")
