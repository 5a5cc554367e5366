"""`glsd sweep`: a grid of settings as trials of Ray Tune, each a pretrain run and its evaluation, in one folder.

`SWEEP/trials/NAME` is the run directory of a trial, and all that is known of a sweep is in these folders: the same
command goes on with what is not finished, on any machine that reaches the folder, and a larger grid adds to it. Tune
decides what runs when; it keeps nothing that is needed again.
"""

import json
import math
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Literal

import ray
import yaml
from ray import tune

from glsd.config import Config
from glsd.data.index import Index
from glsd.data.order import Order
from glsd.data.regimes import regime
from glsd.data.splits import labelled_split
from glsd.encoder.encoder import untrained_encoder
from glsd.reporting.console import states_table
from glsd.runs.directory import CONFIG, RunDirectory
from glsd.runs.lease import NAME as LEASE
from glsd.runs.log import read_metrics
from glsd.runs.sweep import OUTCOME, SWEEP, TRIALS, TrialState, evaluation, trial_states
from glsd.runs.trackers import check_loggers
from glsd.scaling import scaled
from glsd.storage.folder import Folder
from glsd.storage.uris import absolute, joined
from ray_jobs.cluster import check_ranks, check_resources, check_shares, cluster, gpu_room
from ray_jobs.evaluating import check_map
from ray_jobs.grids import Space, Trial, drawn_trial, load_space, trials
from ray_jobs.indexing import indexed
from ray_jobs.monitor import ProgressLine
from ray_jobs.pretraining import check_sizes
from ray_jobs.schedulers import Scheduler, check_scheduler, scheduler_of
from ray_jobs.searching import suggest
from ray_jobs.settings import JobSettings
from ray_jobs.trial import TrialPlan, outcome, run_trial, trial_gpus, write_outcome

_MOST_DRAWS, _MOST_LISTED = 20, 5
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
    command: Sequence[str] = (),
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
        samples: draws where the grid has distributions (random search); what is drawn twice is one trial.
        scheduler: `asha` and `median` stop trials that do badly by their online k-NN.
        search: draw at random, or as Optuna suggests; then `samples` is the number of trials, and lists are choices.
        stop_collapsed: end a trial whose teacher has collapsed; it is marked so and evaluated as it is.
        retries: how often a trial that fails is started again.
        concurrent: trials at a time; by default, and at most, what the cluster has room for.
        pairs: images of each trial's correspondence.
        dry_run: only check and plan; of Optuna's trials those that are known, and the next.
        command: the command line of this call, for the report.
        job: fields of `JobSettings`, for every trial.

    Returns:
        All trials, for `plan_table`; what came of them is in `out`, for `trial_states` and `report`.

    Raises:
        ValueError: an axis, a value or the data do not fit, before any trial starts, or `out` holds other trials.
    """
    for name, value, least in (
        ("samples", samples, 1),
        ("retries", retries, 0),
        ("concurrent", concurrent, 1),
        ("pairs", pairs, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"--{name} must be {least} or more, not {value}")
    settings = JobSettings(**job)
    check_loggers(settings.loggers)
    folder = RunDirectory(out)
    folder.check_own("sweep", SWEEP, (LEASE,))
    space = load_space(grid, changes, seeds, base.seed)
    if unknown := sorted(set(test or {}) - set(data)):
        raise ValueError(f"--test names the data set {unknown[0]!r}, which is not in --data ({', '.join(data)})")
    if scheduler != "fifo" and len(data) > 1:
        raise ValueError(f"--scheduler {scheduler} compares the k-NN of all trials; name one data set")
    if search == "optuna" and (len(data) > 1 or len(space.axes.get("seed", [])) > 1):
        raise ValueError("--search optuna looks for the best settings on one data set with one seed; name one of each")
    if stop_collapsed:
        base = base.with_overrides({"collapse": "stop"})
    shared = Shared(base, _absolute(data), _absolute(test or {}), folder.location, scheduler, pairs, job)
    for sources in (*shared.data.values(), *shared.test.values()):
        folder.check_apart(sources)
    if dry_run:
        with ProgressLine() as line:
            *_, cells = islice(_rounds(space, shared, samples, search, lambda: 1), 2)
            return plan(cells, shared, line)
    with ProgressLine() as line, folder.lease(on_wait=line.phase), ExitStack() as resources:

        @cache
        def at_once() -> int:
            """Trials that run beside each other, which a started Ray tells."""
            line.phase("connecting to Ray")
            # The dashboard is needed to free what a stopped or killed trial leaves reserved.
            resources.enter_context(cluster(settings.model_copy(update={"dashboard": True})))
            given = check_resources(settings)
            check_ranks(settings, given)
            reserved = given.per_worker
            num_beside = beside(ray.cluster_resources(), reserved, settings.workers, concurrent)
            if concurrent is not None and num_beside < concurrent:
                line.note(f"{num_beside} trials run at a time: there is no room for --concurrent {concurrent}")
            return num_beside

        planned, tried = list[Planned](), set[str]()
        for cells in _rounds(space, shared, samples, search, at_once):
            planned = plan(cells, shared, line)
            unfinished = [p for p in planned if p.trial.name not in tried and outcome(Folder(p.plan.out)) is None]
            tried |= {p.trial.name for p in unfinished}
            line.phase(f"{len(planned)} trials, {len(planned) - len(unfinished)} of them ended")
            num_beside = at_once() if unfinished else 0
            gpus = trial_gpus(planned[0].plan) if unfinished else 0.0
            _record(folder, grid, command, planned, space.together, gpus)
            if unfinished:
                line.close()
                with _shown(shared.out):
                    # Trials that have ended tell a scheduler what it would have known.
                    _tune(unfinished if scheduler == "fifo" else planned, folder, scheduler, retries, num_beside)
    return planned


def beside(total: Mapping[str, float], reserved: Mapping[str, float], workers: int, concurrent: int | None) -> int:
    """How many trials run beside each other.

    Args:
        total: the cluster's resources.
        reserved: those of a training worker.
        workers: training workers of a trial.
        concurrent: how many may; None is as many as have room, on CPUs one for every four cores.
    """
    room = math.floor(total["CPU"] / (1 + workers * reserved["CPU"]))  # the stream of a trial needs one
    if "GPU" in reserved:
        room = min(room, gpu_room(total["GPU"], reserved["GPU"]) // workers)
    elif concurrent is None:
        room = min(room, max(1, int(total["CPU"]) // _CORES_A_TRIAL))
    return room if concurrent is None else min(room, concurrent)


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep share."""

    base: Config
    data: Data
    test: Data
    out: str
    scheduler: Scheduler
    pairs: int
    job: dict[str, Any]


def _rounds(
    space: Space, shared: Shared, samples: int, search: str, at_once: Callable[[], int]
) -> Iterator[list[Trial]]:
    """Trials to run, and then, where a search learns from them, these and the next ones."""
    if search == "random":
        yield trials(space, list(shared.data), samples, shared.base.seed)
        return
    (data,) = shared.data
    cells = _recorded(space, data, shared.out)
    if cells:
        yield cells
    while len(cells) < samples:
        values = {cell.name: reached(joined(shared.out, f"{TRIALS}/{cell.name}")) for cell in cells}
        ended = [(cell.overrides, value) for cell in cells if (value := values[cell.name]) is not None]
        count = min(at_once(), samples - len(cells))
        num_known = len(cells)
        for attempt in range(_MOST_DRAWS):  # of lists, the same values may be drawn again
            for draw in suggest(space, ended, count, shared.base.seed + attempt * samples):
                cell = drawn_trial(space, data, draw, {known.name for known in cells})
                if all(cell.overrides != known.overrides for known in cells):
                    cells = [*cells, cell]
            if len(cells) > num_known:
                break
        if len(cells) == num_known:
            return
        yield cells


def _recorded(space: Space, data: str, out: str) -> list[Trial]:
    """The trials of the space that were asked for before, in their order."""
    content = json.loads(Folder(out).read(SWEEP) or b'{"trials": {}}')
    return [
        Trial(name, data, facts["overrides"])
        for name, facts in content["trials"].items()
        if facts["data"] == data and space.holds(facts["overrides"])
    ]


def reached(place: str) -> float | None:
    """What a search learns from the trial in that folder; None while it has not ended.

    It is the k-NN accuracy of its evaluation, the last online one where a scheduler stopped it, 0 where the loss was
    not finite.
    """
    ended, found = outcome(Folder(place)), evaluation(Folder(place))
    if ended is None:
        return None
    if ended["status"] == "not finite":
        return 0.0
    if found is not None:
        return float(found["knn"]["results"][0]["top1"])
    tested = [line["knn"] for line in read_metrics(place) if line["step"] and line.get("knn") is not None]
    return float(tested[-1]) if tested else 0.0


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
        check_shares(config, JobSettings(**job).workers)
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


def _record(
    folder: Folder,
    grid: str,
    command: Sequence[str],
    planned: Sequence[Planned],
    together: Sequence[Sequence[str]],
    gpus: float,
) -> None:
    """`sweep.json`: the newest call, every trial that was ever asked for here, and the keys that were set together.

    A trial's `gpus` are those of its workers, until its outcome has them.
    """
    there = json.loads(folder.read(SWEEP) or b'{"trials": {}}')
    before = there.get("together", [])
    added = {
        p.trial.name: {
            "data": p.trial.data,
            "overrides": p.trial.overrides,
            "images": p.images,
            "num_images": p.num_images,
            "steps": p.steps,
            "gpus": gpus,
        }
        for p in planned
    }
    content = {
        "grid": grid,
        "command": list(command),
        "together": before + [list(keys) for keys in together if list(keys) not in before],
        "trials": there["trials"] | added,
    }
    folder.write(SWEEP, (json.dumps(content, indent=2) + "\n").encode())


def _tune(
    waiting: Sequence[Planned],
    folder: RunDirectory,
    scheduler: Scheduler,
    retries: int,
    at_once: int,
) -> None:
    # With its handler, `fit` would return after Ctrl-C as if all trials had ended.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    plans = {p.trial.name: p.plan for p in waiting}
    tuner = tune.Tuner(
        # A trial's own process only waits for its training workers, which ask for what they need.
        tune.with_resources(tune.with_parameters(run_trial, plans=plans), {"CPU": 0.01}),
        param_space={"trial": tune.grid_search(list(plans))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler_of(scheduler),
            max_concurrent_trials=at_once,
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


def _absolute(data: Data) -> dict[str, list[str]]:
    """Sources that mean the same in every process."""
    return {name: [absolute(source) for source in sources] for name, sources in data.items()}


@contextmanager
def _shown(out: str) -> Iterator[None]:
    """The table of all trials, drawn anew where it stands on a terminal, printed every minute elsewhere."""
    stop = threading.Event()

    def show() -> None:
        states, lines_above = list[TrialState](), 0
        interval = _TERMINAL_S if sys.stderr.isatty() else _PRINTED_S
        stopped = False
        while not stopped:
            stopped = stop.wait(interval)
            with suppress(OSError):  # of the storage; the next table has it
                states = trial_states(out, states)
            if sys.stderr.isatty():
                columns, lines = shutil.get_terminal_size()
                table = "\n".join(line[:columns] for line in fitting_table(states, lines - 1).splitlines())
                sys.stderr.write(f"\x1b[{lines_above}F\x1b[J" if lines_above else "")
                lines_above = table.count("\n") + 1
            else:
                table = states_table(states)
            sys.stderr.write(table + "\n")
            sys.stderr.flush()

    thread = threading.Thread(target=show, name="glsd-sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def fitting_table(states: Sequence[TrialState], height: int) -> str:
    """The trials for a terminal of that many lines: where they do not fit, those that run come first."""
    if len(states) < height:
        return states_table(states)
    ordered = sorted(states, key=lambda state: state.status != "started")
    num_shown = max(0, height - 2)
    shown, others = ordered[:num_shown], Counter(state.status for state in ordered[num_shown:])
    return "\n".join([states_table(shown), f"and {', '.join(f'{count} {name}' for name, count in others.items())}"])


_TERMINAL_S, _PRINTED_S = 2.0, 60.0
