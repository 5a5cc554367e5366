"""What trials a sweep has, before Ray is asked for anything."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from glsd.config import Config
from glsd.data.index import Index
from glsd.data.order import Order
from glsd.data.regimes import regime
from glsd.data.splits import labelled_split
from glsd.encoder.encoder import untrained_encoder
from glsd.runs.directory import CONFIG
from glsd.runs.sweep import SWEEP, TRIALS, TrialState, evaluation
from glsd.scaling import scaled
from glsd.storage.folder import Folder
from glsd.storage.uris import absolute, joined
from ray_jobs.cluster.resources import check_shares
from ray_jobs.evaluation.checks import check_map
from ray_jobs.indexing import indexed
from ray_jobs.pretraining.checks import check_sizes
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from ray_jobs.sweeps.grids import Trial
from ray_jobs.sweeps.options import Scheduler
from ray_jobs.sweeps.schedulers import check_scheduler
from ray_jobs.sweeps.trial import TrialPlan

_MOST_LISTED = 5

Data = Mapping[str, Sequence[str]]
"""Sources by the name of their data set."""


@dataclass(frozen=True)
class Planned:
    """A trial, and what it will process."""

    trial: Trial
    plan: TrialPlan
    images: dict[str, Any]
    """What identifies its images."""
    num_images: int
    """Images of its regime."""
    steps: int

    @property
    def images_seen(self) -> int:
        """Images of all steps."""
        return self.steps * self.plan.config.optim.batch_size


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep share."""

    base: Config
    data: Data
    test: Data
    out: str
    scheduler: Scheduler
    pairs: int
    job: JobSettings


_SIZES: Any = {"model": True, "augment": True, "data": {"unit_size"}, "evaluation": {"crop"}}
"""The settings that `check_sizes` and `check_map` look at."""


def plan(cells: Sequence[Trial], shared: Shared, line: ProgressLine) -> list[Planned]:
    """The trials with what they will process; every key, value and data set is checked.

    Raises:
        ValueError: something does not fit; the message names it.
    """
    base, data, test, out, pairs, job = shared.base, shared.data, shared.test, shared.out, shared.pairs, shared.job
    configs = {cell.name: cell.config(base) for cell in cells}
    recorded = json.loads(Folder(out).read(SWEEP) or b'{"trials": {}}')["trials"]
    indexes: dict[str, Index] = {}
    tested: dict[str, Index] = {}
    planned, checked = [], set[str]()
    for cell in cells:
        config = configs[cell.name]
        if cell.data not in indexes:
            indexes[cell.data] = indexed(list(data[cell.data]), config, line)
            if cell.data in test:
                tested[cell.data] = indexed(list(test[cell.data]), config, line)
            labelled_split(indexes[cell.data], tested.get(cell.data), config.evaluation)  # labels are there, and fit
        index = indexes[cell.data]
        num_images = len(regime(index, config.data))
        config = scaled(config, num_images)
        if (sizes := config.model_dump_json(include=_SIZES)) not in checked:
            check_sizes(config)
            check_map(untrained_encoder(config), config.model.backbone)
            checked.add(sizes)
        check_shares(config, job.workers)
        check_scheduler(shared.scheduler, [config])
        order = Order(config.seed, num_images, config.optim.batch_size, config.data.unit_size)
        place = joined(out, f"{TRIALS}/{cell.name}")
        images: dict[str, Any] = {"digest": index.digest, "pairs": pairs}
        if cell.data in tested:
            images["test_digest"] = tested[cell.data].digest
        before = recorded.get(cell.name, {}).get("images", images)
        for key, there in (("digest", index), ("test_digest", tested.get(cell.data))):
            if there is not None and there.has_digest(before.get(key)):
                images[key] = before[key]
        _refuse_other(place, config, before, images)
        entry = TrialPlan(cell.name, config, tuple(data[cell.data]), tuple(test.get(cell.data, ())), place, job, pairs)
        planned.append(Planned(cell, entry, images, num_images, config.optim.epochs * order.steps_per_epoch))
    return planned


def not_ended(planned: Sequence[Planned], states: Sequence[TrialState]) -> str:
    """Which of the trials have failed or have not ended, in a line; empty where all have ended."""
    names = {p.trial.name for p in planned}
    listed = [f"{state.name} ({state.status})" for state in states if state.name in names and not state.ended]
    if not listed:
        return ""
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return f"{len(listed)} of {len(planned)} trials have not ended: {', '.join(listed[:_MOST_LISTED])}{more}"


def plan_table(planned: Sequence[Planned]) -> str:
    """The trials and the images they will process, for people."""
    width = max([5, *(len(p.trial.name) for p in planned)])
    lines = [f"{'trial':<{width}}  {'images':>9}  {'batch':>5}  {'epochs':>6}  {'steps':>9}  {'images seen':>13}"]
    lines += [
        f"{p.trial.name:<{width}}  {p.num_images:>9,}  {p.plan.config.optim.batch_size:>5}  "
        f"{p.plan.config.optim.epochs:>6}  {p.steps:>9,}  {p.images_seen:>13,}"
        for p in planned
    ]
    return "\n".join([*lines, f"{len(planned)} trials, {sum(p.images_seen for p in planned):,} images in all"])


def _refuse_other(place: str, config: Config, before: Mapping[str, Any], images: Mapping[str, Any]) -> None:
    """A trial of this name that was started with other settings or on other images is not this one."""
    folder = Folder(place)
    if {**before, "pairs": 0} != {**images, "pairs": 0}:
        raise ValueError(
            f"{place} is a trial on other images; choose another --out, or name the data set as in --data NAME=FOLDER"
        )
    if before["pairs"] != images["pairs"] and "correspondence" in (evaluation(folder) or {}):
        raise ValueError(f"{place} was evaluated with --pairs {before['pairs']}; choose that, or another --out")
    content = folder.read(CONFIG)
    if content is not None and (other := Config.model_validate(yaml.safe_load(content)).differences(config)):
        named = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in other.items())
        raise ValueError(f"{place} is a trial with other settings ({named}); choose another --out, or the same --base")


def absolute_data(data: Data) -> dict[str, list[str]]:
    """Sources that mean the same in every process."""
    return {name: [absolute(source) for source in sources] for name, sources in data.items()}
