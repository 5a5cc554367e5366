"""`glsd sweep`: a grid of settings as trials of Ray Tune, each a pretrain run and its evaluation, in one folder.

`SWEEP/trials/NAME` is the run directory of a trial, and all that is known of a sweep is in these folders: the same
command resumes what is not finished, on any machine that reaches the folder, and a larger grid adds to it. Tune only
decides what runs when.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import ray

from glsd.config import Config
from glsd.runs.directory import RunDirectory
from glsd.runs.records import LEASE, SWEEP, SweepFile, read_record, write_record
from glsd.runs.trackers import check_loggers
from glsd.storage.folder import Folder
from ray_jobs.cluster.growing import awaited_resources
from ray_jobs.cluster.resources import check_ranks, gpu_room
from ray_jobs.cluster.start import cluster
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from ray_jobs.sweeps.grids import Space, load_space, named_sources
from ray_jobs.sweeps.live import shown
from ray_jobs.sweeps.options import SweepOptions
from ray_jobs.sweeps.planning import Common, Data, PlannedTrial, absolute_data, plan
from ray_jobs.sweeps.rounds import known_trials, proposed_trials
from ray_jobs.sweeps.trial import ended_as, tune_trials

_CORES_A_TRIAL = 4
"""On CPUs; a trial's processes would get in each other's way with fewer."""


def sweep(
    base: Config,
    study: str,
    data: Sequence[str],
    out: str,
    options: SweepOptions = SweepOptions(),
    job: JobSettings = JobSettings(),
    command: Sequence[str] = (),
) -> list[PlannedTrial]:
    """Run every trial that has not ended yet; make the same call again after a kill to resume.

    Args:
        base: what all trials share.
        study: a name of `ray_jobs.sweeps.grids.GRIDS`, or a YAML file.
        data: sources; those of several data sets as NAME=SOURCE.
        out: folder or URI of the sweep.
        options: which trials there are, which of them run when, and how they are measured.
        job: workers and devices of every trial.
        command: the command line of this call, for the report.

    Returns:
        All trials, for `plan_table`; what came of them is in `out`, for `trial_states` and `report`.

    Raises:
        ValueError: an axis, a value or the data do not fit, before any trial starts, or `out` holds other trials.
    """
    check_loggers(job.loggers)
    folder = RunDirectory(out)
    folder.check_own("sweep", SWEEP, (LEASE,))
    space = load_space(study, options.grid, options.seeds, base.seed)
    named, test = named_sources(data), named_sources(options.test)
    _check_options(options, space, named, test)
    if options.stop_collapsed:
        base = base.with_overrides({"collapse": "stop"})
    common = Common(base, absolute_data(named), absolute_data(test), folder.location, options, job)
    for sources in (*common.data.values(), *common.test.values()):
        folder.check_apart(sources)
    with ProgressLine() as line, nullcontext() if options.dry_run else folder.lease(on_wait=line.phase):
        known = known_trials(space, common)
        # All is checked before Ray is asked for anything, with one of the trials that a search would propose next.
        following = proposed_trials(space, common, known, 1)
        planned = plan([*known, *following], common, line)
        if options.dry_run:
            return planned
        record = partial(_record, folder, study, command, space.together)
        planned = planned[: len(known)]
        if following or _unfinished(planned):
            return _in_rounds(space, common, folder, planned, record, line)
        record(planned, 0.0)
        return planned


def _in_rounds(
    space: Space,
    common: Common,
    folder: RunDirectory,
    planned: list[PlannedTrial],
    record: Callable[[list[PlannedTrial], float], None],
    line: ProgressLine,
) -> list[PlannedTrial]:
    """Run the planned trials, and then those that a search proposes, as long as it does; all that there are then."""
    line.phase("connecting to Ray")
    # The dashboard is needed to free what a stopped or killed trial leaves reserved.
    with cluster(common.job.model_copy(update={"dashboard": True})):
        num_beside, gpus = _room(common, line)
        planned = new = planned or plan(proposed_trials(space, common, [], num_beside), common, line)
        while new:
            waiting = _unfinished(new)
            line.phase(f"{len(planned)} trials, {len(planned) - len(waiting)} of them ended")
            record(planned, gpus)
            if waiting:
                line.close()
                # Trials that have ended tell a scheduler what it would have known.
                ended = [p for p in planned if ended_as(Folder(p.out)) is not None]
                told = waiting if common.options.scheduler == "fifo" else [*ended, *waiting]
                with shown(common.out):
                    tune_trials(told, common, folder, num_beside, gpus)
            new = plan(proposed_trials(space, common, [p.trial for p in planned], num_beside), common, line)
            planned = [*planned, *new]
    return planned


def _unfinished(planned: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    return [p for p in planned if ended_as(Folder(p.out)) is None]


def _check_options(options: SweepOptions, space: Space, data: Data, test: Data) -> None:
    """Refuse options that are out of range or do not fit the data sets."""
    for name, least in {"samples": 1, "retries": 0, "concurrent": 1, "pairs": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be {least} or more, not {value}")
    if unknown := sorted(set(test) - set(data)):
        raise ValueError(f"--test names the data set {unknown[0]!r}, which is not in --data ({', '.join(data)})")
    if options.scheduler != "fifo" and len(data) > 1:
        raise ValueError(f"--scheduler {options.scheduler} compares the k-NN of all trials; name one data set")
    if options.search == "optuna" and (len(data) > 1 or len(space.axes.get("seed", [])) > 1):
        raise ValueError("--search optuna looks for the best settings on one data set with one seed; name one of each")


def _room(common: Common, line: ProgressLine) -> tuple[int, float]:
    """How many trials run beside each other on the connected cluster, and the GPUs that each of them uses."""
    job, concurrent = common.job, common.options.concurrent
    resources = awaited_resources(job, [job.num_workers], line)
    check_ranks(job, resources)
    num_beside = beside(ray.cluster_resources(), resources.per_worker, job.num_workers, concurrent)
    if concurrent is not None and num_beside < concurrent:
        line.note(f"{num_beside} trials run at a time: there is no room for --concurrent {concurrent}")
    return num_beside, job.num_workers * job.gpus_per_worker if resources.gpu else 0.0


def beside(total: Mapping[str, float], reserved: Mapping[str, float], workers: int, concurrent: int | None) -> int:
    """How many trials of so many workers, each with the `reserved` resources, run at a time on the cluster's `total`.

    No more than `concurrent` do; None is as many as have room, on CPUs one for every four cores.
    """
    room = math.floor(total["CPU"] / (1 + workers * reserved["CPU"]))  # the stream of a trial needs one
    if "GPU" in reserved:
        room = min(room, gpu_room(total["GPU"], reserved["GPU"]) // workers)
    elif concurrent is None:
        room = min(room, max(1, int(total["CPU"]) // _CORES_A_TRIAL))
    return room if concurrent is None else min(room, concurrent)


def _record(
    folder: Folder,
    grid: str,
    command: Sequence[str],
    together: Sequence[Sequence[str]],
    planned: Sequence[PlannedTrial],
    gpus: float,
) -> None:
    """`sweep.json`: the newest call, every trial that was ever asked for here, and the keys that were set together.

    A trial's `gpus` are those of its workers, until its outcome has them.
    """
    there = read_record(folder, SweepFile) or SweepFile()
    added = {p.trial.name: p.record.model_copy(update={"gpus": gpus}) for p in planned}
    new = [list(keys) for keys in together if list(keys) not in there.together]
    newest = {"grid": grid, "command": list(command), "together": there.together + new, "trials": there.trials | added}
    write_record(folder, there.model_copy(update=newest))
