"""What trials a sweep has, before Ray is asked for anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glsd.config import Config
from glsd.data.index import Index
from glsd.data.order import Order
from glsd.data.regimes import regime
from glsd.data.splits import labelled_split
from glsd.encoder.encoder import untrained_encoder
from glsd.runs.directory import RunDirectory
from glsd.runs.records import SweepFile, SweepTrial, TrialImages, read_record
from glsd.runs.sweep import TRIALS, TrialState, evaluation
from glsd.storage.folder import Folder
from glsd.storage.uris import absolute, joined
from ray_jobs.cluster.resources import widths
from ray_jobs.evaluation.images import check_map
from ray_jobs.indexing import indexed
from ray_jobs.pretraining.checks import check_sizes
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from ray_jobs.sweeps.grids import Trial
from ray_jobs.sweeps.options import SweepOptions
from ray_jobs.sweeps.schedulers import check_scheduler

_MOST_LISTED = 5

Data = Mapping[str, Sequence[str]]
"""Sources by the name of their data set."""


@dataclass(frozen=True)
class Common:
    """What all trials of a sweep share; it travels to their actors."""

    base: Config
    data: Data
    test: Data
    out: str
    """Folder of the sweep."""
    options: SweepOptions
    job: JobSettings


@dataclass(frozen=True)
class PlannedTrial:
    """A trial, and what it will process; it travels to its actor."""

    trial: Trial
    config: Config
    data: Sequence[str]
    test: Sequence[str]
    out: str
    """Its run directory."""
    record: SweepTrial
    """What `sweep.json` says of it."""
    index: Index
    tested: Index | None

    @property
    def images_seen(self) -> int:
        """Images of all steps."""
        return self.record.steps * self.config.optim.batch_size


_SIZES: Any = {"model": True, "augment": True, "data": {"unit_size"}, "evaluation": {"crop"}}
"""The settings that `check_sizes` and `check_map` look at."""


def plan(trials: Sequence[Trial], common: Common, line: ProgressLine) -> list[PlannedTrial]:
    """The trials with what they will process; every key, value and data set is checked.

    Raises:
        ValueError: something does not fit; the message names it.
    """
    configs = [common.base.with_overrides(trial.overrides) for trial in trials]  # checked before images are listed
    recorded = (read_record(Folder(common.out), SweepFile) or SweepFile()).trials
    indexes: dict[tuple[str, str, str], tuple[Index, Index | None]] = {}
    planned, checked = list[PlannedTrial](), set[str]()
    for trial, config in zip(trials, configs, strict=True):
        data, test = common.data[trial.data], common.test.get(trial.data, ())
        listed = trial.data, config.data.image_column, config.data.label_column
        if listed not in indexes:
            index = indexed(data, config, line, common.job, common.out)
            tested = indexed(test, config, line, common.job, common.out, "--test") if test else None
            labelled_split(index, tested, config.evaluation)  # there are labels, and they fit
            indexes[listed] = index, tested
        index, tested = indexes[listed]
        num_images = len(regime(index, config.data))
        config = config.for_images(num_images)
        if (sizes := config.model_dump_json(include=_SIZES)) not in checked:
            check_sizes(config)
            check_map(untrained_encoder(config), config.model.backbone)
            checked.add(sizes)
        widths(config, common.job)
        check_scheduler(common.options.scheduler, config)
        order = Order(config.seed, num_images, config.optim.batch_size, config.data.unit_size)
        steps = config.optim.epochs * order.steps_per_epoch
        before = recorded[trial.name].images if trial.name in recorded else None
        digests = {
            key: saved if there.has_digest(saved := getattr(before, key, None)) else there.digest
            for key, there in (("digest", index), ("test_digest", tested))
            if there is not None
        }
        images = TrialImages.model_validate({"pairs": common.options.pairs} | digests)
        out = joined(common.out, f"{TRIALS}/{trial.name}")
        _refuse_other(out, config, before or images, images)
        record = SweepTrial(
            data=trial.data, overrides=trial.overrides, images=images, num_images=num_images, steps=steps
        )
        planned.append(PlannedTrial(trial, config, data, test, out, record, index, tested))
    return planned


def not_ended(planned: Sequence[PlannedTrial], states: Sequence[TrialState]) -> str:
    """Which of the trials have failed or have not ended, in a line; empty where all have ended."""
    names = {p.trial.name for p in planned}
    listed = [f"{state.name} ({state.status})" for state in states if state.name in names and not state.ended]
    if not listed:
        return ""
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return f"{len(listed)} of {len(planned)} trials have not ended: {', '.join(listed[:_MOST_LISTED])}{more}"


def plan_table(planned: Sequence[PlannedTrial]) -> str:
    """The trials and the images they will process, for people."""
    width = max([5, *(len(p.trial.name) for p in planned)])
    lines = [f"{'trial':<{width}}  {'images':>9}  {'batch':>5}  {'epochs':>6}  {'steps':>9}  {'images seen':>13}"]
    lines += [
        f"{p.trial.name:<{width}}  {p.record.num_images:>9,}  {p.config.optim.batch_size:>5}  "
        f"{p.config.optim.epochs:>6}  {p.record.steps:>9,}  {p.images_seen:>13,}"
        for p in planned
    ]
    return "\n".join([*lines, f"{len(planned)} trials, {sum(p.images_seen for p in planned):,} images in all"])


def _refuse_other(place: str, config: Config, before: TrialImages, images: TrialImages) -> None:
    """A trial of this name that was started with other settings or on other images is not this one."""
    folder = RunDirectory(place)
    if (before.digest, before.test_digest) != (images.digest, images.test_digest):
        raise ValueError(
            f"{place} is a trial on other images; choose another --out, or name the data set as in --data NAME=FOLDER"
        )
    evaluated = evaluation(folder) if before.pairs != images.pairs else None
    if evaluated is not None and evaluated.correspondence is not None:
        raise ValueError(f"{place} was evaluated with --pairs {before.pairs}; choose that, or another --out")
    saved = folder.config
    if saved is not None and (other := saved.differences(config)):
        named = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in other.items())
        raise ValueError(f"{place} is a trial with other settings ({named}); choose another --out, or the same --base")


def absolute_data(data: Data) -> dict[str, list[str]]:
    """Sources that mean the same in every process."""
    return {name: [absolute(source) for source in sources] for name, sources in data.items()}
