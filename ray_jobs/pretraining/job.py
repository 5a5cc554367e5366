"""The pretrain job: index, check, stream and train on Ray, and leave a finished run directory behind.

Every piece of a run is a pure function of its settings, its data and the step, so a run can be killed at any time:
the same command resumes from the newest complete checkpoint and gives the same result.
"""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from glsd.config import Config
from glsd.data.index import Index
from glsd.data.order import Order
from glsd.data.regimes import regime, same_subset, write_subset
from glsd.data.samples import value_range_note
from glsd.data.sources import Sources
from glsd.data.splits import has_classes, labelled_split
from glsd.data.units import UnitSource
from glsd.experiments import ScaledConfig
from glsd.runs.checkpoints import checkpoints, newest_checkpoint
from glsd.runs.directory import CONFIG, RunDirectory
from glsd.runs.records import RunData, Summary
from glsd.runs.trackers import check_loggers
from ray_jobs.cluster.files import share_files
from ray_jobs.cluster.growing import Widths, awaited_resources
from ray_jobs.cluster.monitor import start_monitor
from ray_jobs.cluster.reach import check_reach
from ray_jobs.cluster.resources import check_ranks, own_device, widths
from ray_jobs.cluster.start import cluster
from ray_jobs.cluster.stopping import sigterm_asks
from ray_jobs.indexing import indexed
from ray_jobs.pretraining.checks import batch_norm_note, check_call
from ray_jobs.pretraining.finish import Prepared, finish
from ray_jobs.pretraining.initial_weights import INIT, InitialWeights, initial_weights
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.pretraining.recorder import Plan
from ray_jobs.pretraining.worker import train_worker
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings
from ray_jobs.workers.fit import fit
from ray_jobs.workers.stream import share

SUBSET = "subset.csv"
"""The regime of a run, as a list that `--data` takes."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    out: str
    """The run directory."""
    checkpoint: str
    """Its last checkpoint, for `glsd.load_encoder`."""
    summary: Summary
    """Steps, losses and, where there are labels, k-NN accuracies as shares."""


def pretrain(
    config: Config,
    data: Sources,
    out: str,
    options: PretrainOptions = PretrainOptions(),
    job: JobSettings = JobSettings(),
    line: ProgressLine | None = None,
) -> Run:
    """Pretrain on unlabelled images; make the same call again after a kill to resume.

    Args:
        config: the experiment.
        data: folders, lists, tars or Parquet files, local or `s3://`, `gs://`.
        out: run directory, a folder or a URI that all workers reach.
        options: images that are tested, weights to start from.
        job: workers and devices.
        line: shows the progress; by default a line of the terminal.

    Raises:
        ValueError: a setting, the data or the run directory do not fit; the message says what would.
        NonFiniteLoss: the loss was infinite or not a number; the last good checkpoint is there.
        Collapsed: the teacher has collapsed, and `collapse` is "stop".
        SystemExit: the process received SIGTERM; the status is 0 if a checkpoint was saved for it.
    """
    check_loggers(job.loggers)
    run = RunDirectory(out)
    check_call(run, config, data, options)
    with line or ProgressLine() as line, run.lease(on_wait=line.phase):
        init = InitialWeights({}, None)
        if options.init_from is not None:
            line.phase(f"reading {options.init_from}")
            init = initial_weights(run, config, options.init_from)
        index = indexed(data, config, line, job, run)
        tested = indexed(options.knn_data, config, line, job, run, "--knn_data") if options.knn_data else None
        identity = run.identity(index, tested).model_copy(update=init.identity)
        image_ids = regime(index, config.data)
        if isinstance(config, ScaledConfig):
            run.check_data(identity)  # other settings would follow from other data
            derived, config = config.derived, config.for_images(len(image_ids))
            settings = ", ".join(f"{key} {config.flat()[key]}" for key in derived)
            line.note(f"for {len(image_ids):,} images: {settings}")
            run.check_config(config)
        # A new directory becomes this run's when it is sure that the run can start, so that a remedy may change it.
        claim = partial(_claim, run, config, identity, index, image_ids, init)
        if run.read(CONFIG) is not None:
            claim()
        if run.finished is None:
            if note := value_range_note((index, tested), config.data):
                line.note(note)
            split = labelled_split(index, tested, config.evaluation) if tested or has_classes(index) else None
            prepared = Prepared(run, config, index, image_ids, split)
            _train(prepared, job, claim, line)
            finish(prepared, options.figures, own_device(job), line)
        else:
            line.phase(f"{out} is finished: nothing is left to do")
    checkpoint, summary = newest_checkpoint(run.location), run.finished
    assert checkpoint is not None
    assert summary is not None
    return Run(out, checkpoint, summary)


def _claim(
    run: RunDirectory,
    config: Config,
    identity: RunData,
    index: Index,
    image_ids: np.ndarray,
    init: InitialWeights,
) -> None:
    run.claim(config, identity)
    if init.content is not None:
        run.write(INIT, init.content)
    if len(image_ids) < len(index):
        with tempfile.NamedTemporaryFile(suffix=".csv") as file:
            write_subset(file.name, index, image_ids, config.data.label_column)
            content = Path(file.name).read_bytes()
        saved = run.read(SUBSET)
        if saved is None:
            run.write(SUBSET, content)
        elif not same_subset(saved, content):
            raise ValueError(
                f"{run.out} was begun with other images of these data, listed in its {SUBSET}, than its settings "
                "choose now, as happens after a change of labels or of glsd; choose another --out for a new run"
            )


def _train(prepared: Prepared, job: JobSettings, claim: Callable[[], None], line: ProgressLine) -> None:
    """Train up to the last step, unless its checkpoint is there already."""
    run, config, index, split = prepared.run, prepared.config, prepared.index, prepared.split
    order = Order(config.seed, len(prepared.image_ids), config.optim.batch_size, config.data.unit_size)
    if warning := order.left_out_warning():
        warnings.warn(warning, stacklevel=3)
    if max(checkpoints(run.location), default=0) >= config.optim.epochs * order.steps_per_epoch:
        return
    line.phase("connecting to Ray")
    with cluster(job):
        possible = widths(config, job)
        indexes = [index] if split is None else [index, split.queries.index]
        resources = awaited_resources(job, possible, line)
        check_ranks(job, resources)
        files = share_files(indexes)
        check_reach(run, index, [] if split is None else indexes, files, resources, job.data_on)
        claim()
        if note := batch_norm_note(config, possible[-1], resources.gpu):
            line.note(note)
        chosen = None if len(prepared.image_ids) == len(index) else prepared.image_ids
        source = UnitSource(config, index, chosen, resources.photometrics, job.cache_bytes)
        stream = share(source, files, job.data_on)
        monitor = start_monitor()
        assert run.token is not None
        plan = Plan(config, run, run.token, source, stream.files, split, monitor, resources.torch_threads, job.loggers)
        with sigterm_asks():
            fit(train_worker, plan, stream, run, Widths(job, possible, resources), monitor, line)
        if (saved := max(checkpoints(run.location), default=0)) < plan.total_steps:
            # Only SIGTERM ends a run so, and a scheduler that sent it takes 0 for a job that may be queued again.
            place = f"at step {saved:,} of {plan.total_steps:,}, which is saved" if saved else "before a step was saved"
            line.note(f"stopped {place}; rerun the command to resume")
            raise SystemExit(0)
