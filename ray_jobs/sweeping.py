"""`glsd sweep`: a grid of settings as trials of Ray Tune, each a pretrain run and its evaluation, in one folder.

`SWEEP/trials/NAME` is the run directory of a trial, and all that is known of a sweep is in these folders: the same
command goes on with what is not finished, on any machine that reaches the folder, and a larger grid adds to it. Tune
decides what runs when; it keeps nothing that is needed again.
"""

import json
import math
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ray
import yaml
from ray import tune

from glsd.config import Config
from glsd.data import Index, Order, subset
from glsd.data.filesystems import absolute, joined
from glsd.scaling import scaled
from ray_jobs.cluster import check_shares, cluster
from ray_jobs.folder import Folder
from ray_jobs.grids import Space, Trial, drawn_trial, load_space, trials
from ray_jobs.labelled import indexed, labelled_split
from ray_jobs.loggers import check_loggers
from ray_jobs.monitor import ProgressLine
from ray_jobs.pretraining import check_sizes
from ray_jobs.run_directory import CONFIG, RunDirectory, read_metrics
from ray_jobs.schedulers import Scheduler, scheduler_of
from ray_jobs.searching import suggest
from ray_jobs.settings import JobSettings, num_cores
from ray_jobs.trial import TrialPlan, outcome, run_trial, trial_gpus, write_outcome
from ray_jobs.trial_states import OUTCOME, SWEEP, TRIALS, evaluation, states_table, trial_states

_MOST_DRAWS = 20
_CORES_A_TRIAL = 4
"""On CPUs; a trial's processes would get in each other's way with fewer."""

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


def sweep(
    base: Config,
    grid: str,
    data: Data,
    out: str,
    *,
    test: Data | None = None,
    changes: Sequence[str] = (),
    seeds: Sequence[int] = (),
    samples: int = 1,
    scheduler: Scheduler = "fifo",
    search: Literal["random", "optuna"] = "random",
    stop_collapsed: bool = False,
    retries: int = 1,
    concurrent: int | None = None,
    pairs: int = 1000,
    dry_run: bool = False,
    **job: Any,
) -> list[Planned]:
    """Run every trial that has not ended yet; start the same call again after a kill and it goes on.

    Args:
        base: what all trials share.
        grid: a name of `ray_jobs.grids.GRIDS`, or a YAML file.
        data: sources by the name of the data set.
        out: folder or URI of the sweep.
        test: labelled images that are tested, by the name of the data set; without them a share of `data` is.
        changes: axes in place of the grid's, such as `optim.base_lr=1e-4,5e-4`.
        seeds: values of `seed`.
        samples: draws where the grid has distributions (random search).
        scheduler: `asha` and `median` stop trials that do badly by their online k-NN.
        search: draw at random, or as Optuna suggests; then `samples` is the number of trials, and lists are choices.
        stop_collapsed: end a trial whose teacher has collapsed; it is marked so and evaluated as it is.
        retries: how often a trial that fails is started again.
        concurrent: trials at a time; by default what the cluster has room for.
        pairs: images of each trial's correspondence.
        dry_run: only check and plan.
        job: fields of `JobSettings`, for every trial.

    Returns:
        All trials, for `plan_table`; what came of them is in `out`, for `trial_states` and `report`.

    Raises:
        ValueError: an axis, a value or the data do not fit, before any trial starts, or `out` holds other trials.
    """
    settings = JobSettings(**job)
    check_loggers(settings.loggers)
    folder = RunDirectory(out)
    space = load_space(grid, changes, seeds, base.seed)
    if unknown := sorted(set(test or {}) - set(data)):
        raise ValueError(f"--test names the data set {unknown[0]!r}, which is not in --data ({', '.join(data)})")
    if scheduler != "fifo" and base.evaluation.knn_every_epochs == 0:
        raise ValueError(f"--scheduler {scheduler} goes by the online k-NN; set evaluation.knn_every_epochs above 0")
    if search == "optuna" and (len(data) > 1 or len(space.axes.get("seed", [])) > 1):
        raise ValueError("--search optuna looks for the best settings on one data set with one seed; name one of each")
    if stop_collapsed:
        base = base.with_overrides({"collapse": "stop"})
    shared = Shared(base, _absolute(data), _absolute(test or {}), folder.location, pairs, job)
    if dry_run:
        with ProgressLine() as line:
            return plan(trials(space, list(data), samples, base.seed), shared, line)
    with ProgressLine() as line, folder.lease(on_wait=line.phase), ExitStack() as resources:
        planned, tried = list[Planned](), set[str]()
        for cells in _rounds(space, shared, samples, search, concurrent or 1):
            planned = plan(cells, shared, line)
            _record(folder, grid, planned)
            unfinished = [p for p in planned if p.trial.name not in tried and outcome(Folder(p.plan.out)) is None]
            tried |= {p.trial.name for p in unfinished}
            line.phase(f"{len(planned)} trials, {len(planned) - len(unfinished)} of them ended")
            if not unfinished:
                continue
            line.close()
            dashboard = settings.dashboard or scheduler != "fifo"  # which frees what an early stop leaves reserved
            resources.enter_context(cluster(settings.model_copy(update={"dashboard": dashboard})))
            _record(folder, grid, planned, {p.trial.name: trial_gpus(p.plan) for p in unfinished})
            with _shown(shared.out):
                # Trials that have ended tell a scheduler what it would have known.
                _tune(unfinished if scheduler == "fifo" else planned, folder, scheduler, settings, retries, concurrent)
    return planned


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep share."""

    base: Config
    data: Data
    test: Data
    out: str
    pairs: int
    job: dict[str, Any]


def _rounds(space: Space, shared: Shared, samples: int, search: str, at_once: int) -> Iterator[list[Trial]]:
    """Trials to run, and then, where a search learns from them, the next ones."""
    names = list(shared.data)
    if search == "random":
        yield trials(space, names, samples, shared.base.seed)
        return
    cells = _recorded(shared.out)
    while True:
        yield cells
        if len(cells) >= samples:
            return
        ended = [(cell.overrides, reached) for cell in cells if (reached := _reached(shared.out, cell)) is not None]
        count = min(at_once, samples - len(cells))
        new = {}
        for attempt in range(_MOST_DRAWS):  # of lists, the same values may be drawn again
            draws = suggest(space, ended, count, shared.base.seed + attempt * samples)
            drawn = [drawn_trial(space, names[0], draw) for draw in draws]
            new = {cell.name: cell for cell in drawn if cell.name not in {known.name for known in cells}}
            if new:
                break
        if not new:
            return
        cells = [*cells, *new.values()]


def _recorded(out: str) -> list[Trial]:
    """The trials that were asked for before, in their order."""
    content = json.loads(Folder(out).read(SWEEP) or b'{"trials": {}}')
    return [Trial(name, facts["data"], facts["overrides"]) for name, facts in content["trials"].items()]


def _reached(out: str, cell: Trial) -> float | None:
    """k-NN accuracy of a trial that has ended, the last one of a stopped trial, 0 where the loss was not finite."""
    place = joined(out, f"{TRIALS}/{cell.name}")
    ended, found = outcome(Folder(place)), evaluation(Folder(place))
    if ended is None:
        return None
    if ended["status"] == "not finite":
        return 0.0
    if found is not None:
        return float(found["knn"]["results"][0]["top1"])
    return max((line["knn"] for line in read_metrics(place) if line.get("knn") is not None), default=0.0)


def plan(cells: Sequence[Trial], shared: Shared, line: ProgressLine) -> list[Planned]:
    """The trials with what they will process; every key, value and data set is checked.

    Raises:
        ValueError: something does not fit; the message names it.
    """
    base, data, test, out, pairs, job = shared.base, shared.data, shared.test, shared.out, shared.pairs, shared.job
    if len({cell.name for cell in cells}) < len(cells):
        raise ValueError("two trials of the grid have the same settings; name each value of an axis once")
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
        num_images = len(subset(len(index) if index.labels is None else index.labels, config.data, index.classes))
        config = scaled(config, num_images)
        if (shape := config.model_dump_json(include={"model", "augment"})) not in checked:
            check_sizes(config)
            checked.add(shape)
        check_shares(config, JobSettings(**job).workers)
        order = Order(config.seed, num_images, config.optim.batch_size, config.data.unit_size)
        place = joined(out, f"{TRIALS}/{cell.name}")
        images = {"digest": index.digest, "pairs": pairs}
        if cell.data in tested:
            images["test_digest"] = tested[cell.data].digest
        _refuse_other(place, config, recorded.get(cell.name, {}).get("images", images), images)
        entry = TrialPlan(cell.name, config, tuple(data[cell.data]), tuple(test.get(cell.data, ())), place, job, pairs)
        planned.append(Planned(cell, entry, images, num_images, config.optim.epochs * order.steps_per_epoch))
    return planned


def plan_table(planned: Sequence[Planned]) -> str:
    """The trials and the images they will process, for people."""
    width = max(len(p.trial.name) for p in planned)
    lines = [f"{'trial':<{width}}  {'images':>9}  {'batch':>5}  {'epochs':>6}  {'steps':>9}  {'images seen':>13}"]
    lines += [
        f"{p.trial.name:<{width}}  {p.num_images:>9,}  {p.plan.config.optim.batch_size:>5}  "
        f"{p.plan.config.optim.epochs:>6}  {p.steps:>9,}  {p.images_seen:>13,}"
        for p in planned
    ]
    return "\n".join([*lines, f"{len(planned)} trials, {sum(p.images_seen for p in planned):,} images in all"])


def _refuse_other(place: str, config: Config, before: Mapping[str, Any], images: Mapping[str, Any]) -> None:
    """A trial of this name that was started with other settings or on other images is not this one."""
    if before != images:
        raise ValueError(
            f"{place} is a trial on other images, or with another number of --pairs; choose another --out, or name the "
            "data set as in --data NAME=FOLDER"
        )
    content = Folder(place).read(CONFIG)
    if content is not None and (other := Config.model_validate(yaml.safe_load(content)).differences(config)):
        named = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in other.items())
        raise ValueError(f"{place} is a trial with other settings ({named}); choose another --out, or the same --base")


def _record(folder: Folder, grid: str, planned: Sequence[Planned], gpus: Mapping[str, float] | None = None) -> None:
    """`sweep.json`: every trial that was ever asked for here, with its axes and the GPUs of its workers, once known."""
    there = json.loads(folder.read(SWEEP) or b'{"trials": {}}')
    added = {
        p.trial.name: {
            "data": p.trial.data,
            "overrides": p.trial.overrides,
            "images": p.images,
            "num_images": p.num_images,
            "steps": p.steps,
            "gpus": (gpus or {}).get(p.trial.name, 0.0),
        }
        for p in planned
    }
    content = {"grid": grid, "trials": there["trials"] | added}
    folder.write(SWEEP, (json.dumps(content, indent=2) + "\n").encode())


def _tune(
    waiting: Sequence[Planned],
    folder: RunDirectory,
    scheduler: Scheduler,
    settings: JobSettings,
    retries: int,
    concurrent: int | None,
) -> None:
    plans = {p.trial.name: p.plan for p in waiting}
    tuner = tune.Tuner(
        # A trial's own process only waits for its training workers, which ask for what they need.
        tune.with_resources(tune.with_parameters(run_trial, plans=plans), {"CPU": 0.01}),
        param_space={"trial": tune.grid_search(list(plans))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler_of(scheduler),
            max_concurrent_trials=concurrent or _room(settings),
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            verbose=0,
            callbacks=[_Outcomes(plans)],
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    tuner.fit()


class _Outcomes(tune.Callback):
    """Marks the trials that Tune ends: those that a scheduler stops, and those that fail."""

    def __init__(self, plans: Mapping[str, TrialPlan]) -> None:
        self._plans = plans

    def on_trial_complete(self, **news: Any) -> None:  # type: ignore[override] # Tune names what it tells
        """A trial that ended by itself has said so already."""
        trial = news["trial"]
        plan = self._plans[trial.config["trial"]]
        if outcome(Folder(plan.out)) is None:
            reached = f"at {trial.last_result.get('progress', 0)} % by the scheduler"
            write_outcome(Folder(plan.out), "stopped", reached, trial_gpus(plan))

    def on_trial_error(self, **news: Any) -> None:  # type: ignore[override] # Tune names what it tells
        """Keep the last line of what it said."""
        trial = news["trial"]
        error = trial.get_error()
        plan = self._plans[trial.config["trial"]]
        if Folder(plan.out).read(OUTCOME) is None:  # it was killed, and could not say so itself
            lines = str(error).strip().splitlines()
            write_outcome(Folder(plan.out), "failed", lines[-1] if lines else "it died", trial_gpus(plan))


def _room(settings: JobSettings) -> int:
    """How many trials the cluster has room for."""
    total: dict[str, float] = ray.cluster_resources()
    if settings.gpu is not False and total.get("GPU", 0) >= 1:
        return max(1, math.floor(total["GPU"] / (settings.workers * settings.gpus_per_worker)))
    return max(1, int(total.get("CPU", num_cores())) // _CORES_A_TRIAL)


def _absolute(data: Data) -> dict[str, list[str]]:
    """Sources that mean the same in every process."""
    return {name: [absolute(source) for source in sources] for name, sources in data.items()}


@contextmanager
def _shown(out: str) -> Iterator[None]:
    """The table of all trials, drawn anew where it stands on a terminal, printed every minute elsewhere."""
    stop = threading.Event()

    def show() -> None:
        lines_above = 0
        interval = _TERMINAL_S if sys.stderr.isatty() else _PRINTED_S
        while True:
            stopped = stop.wait(interval)
            table = states_table(trial_states(out))
            if sys.stderr.isatty():
                columns = shutil.get_terminal_size().columns
                table = "\n".join(line[:columns] for line in table.splitlines())
                sys.stderr.write(f"\x1b[{lines_above}F\x1b[J" if lines_above else "")
                lines_above = table.count("\n") + 1
            sys.stderr.write(table + "\n")
            sys.stderr.flush()
            if stopped:
                return

    thread = threading.Thread(target=show, name="glsd-sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


_TERMINAL_S, _PRINTED_S = 2.0, 60.0
