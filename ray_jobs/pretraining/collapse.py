"""The alarm for a teacher that collapses while it trains (Sec. 4.6)."""

import math

from glsd.evaluation.collapse import collapse_metrics
from glsd.evaluation.verdict import Collapsed, CollapseWatch
from glsd.runs.checkpoints import checkpoints
from glsd.runs.log import read_metrics
from glsd.training.loop import Metrics, Reading
from glsd.training.state import TrainState
from glsd.training.step import mean_metrics
from ray_jobs.pretraining.recorder import Plan, Recorder


class CollapseAlarm:
    """Looks for a collapse (Sec. 4.6) whenever metrics are logged, and warns or stops as `collapse` says.

    The readings are means over the workers, so that all of them judge alike. Those that were logged up to `start_step`
    are judged again, so a run that resumes finds a collapse where it would have found it.
    """

    def __init__(self, plan: Plan, recorder: Recorder, start_step: int) -> None:
        self._plan, self._recorder = plan, recorder
        self._watch = CollapseWatch(plan.config)
        for line in read_metrics(plan.run):
            if 0 < line["step"] <= start_step:
                self._watch.judge({key: math.nan if value is None else value for key, value in line.items()})
        self._has_warned = False

    def measures(self, state: TrainState, reading: Reading) -> Metrics:
        """The cheap measures of a collapse, of the last unit."""
        config, temperature = self._plan.config, reading.metrics["teacher_temperature"]
        return mean_metrics(collapse_metrics(state.teacher, reading.last_unit(), state.centers, config, temperature))

    def verdict(self, metrics: Metrics) -> Metrics:
        """What the measures up to now say."""
        return self._watch.judge(metrics)

    def sound(self, metrics: Metrics) -> None:
        """Warn or stop where the teacher has collapsed; the reading that stops a run has been recorded."""
        if not metrics.get("collapsed"):
            return
        found = f"the teacher collapsed at step {metrics['step']:,} ({'; '.join(self._watch.reasons)})"
        if self._plan.config.collapse == "stop":
            kept = max(checkpoints(self._plan.run.location), default=None)
            raise Collapsed(
                f"{found}; training does not recover from this. "
                + ("No checkpoint was due before. " if kept is None else f"The checkpoint of step {kept:,} is kept. ")
                + _REMEDIES
            )
        if not self._has_warned:
            self._recorder.warn(f"{found}; the run continues. {_REMEDIES}")
            self._has_warned = True


_REMEDIES = (
    "In a new run try objective.setting geometric, a lower objective.teacher_temperature, "
    "objective.center_momentum 0.9 or a lower optim.base_lr."
)
"""Of a collapse: matches that cannot collapse, sharpening, centring (Sec. 4.6)."""
