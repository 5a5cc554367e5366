"""What a pretraining would do, in words, after the checks that need no cluster."""

import warnings

from glsd.config import Config
from glsd.data.order import Order
from glsd.data.regimes import regime
from glsd.data.requests import reading_cost
from glsd.data.sources import Sources
from glsd.experiments import ScaledConfig
from glsd.runs.directory import RunDirectory
from ray_jobs.indexing import indexed
from ray_jobs.pretraining.checks import check_call
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.progress import ProgressLine
from ray_jobs.settings import JobSettings


def dry_run(
    config: Config,
    data: Sources,
    out: str,
    options: PretrainOptions = PretrainOptions(),
    job: JobSettings = JobSettings(),
    line: ProgressLine | None = None,
) -> str:
    """The steps of `pretrain` with the same arguments, and what reading its images from object stores costs.

    Images are indexed as for a run; nothing is written to `out`.

    Raises:
        ValueError: a setting, the data or the run directory do not fit; the message says what would.
    """
    run = RunDirectory(out)
    check_call(run, config, data, options)
    with line or ProgressLine() as line:
        index = indexed(data, config, line, job, run)
    image_ids = regime(index, config.data)
    if isinstance(config, ScaledConfig):
        config = config.for_images(len(image_ids))
        run.check_config(config)
    optim = config.optim
    order = Order(config.seed, len(image_ids), optim.batch_size, config.data.unit_size)
    if warning := order.left_out_warning():
        warnings.warn(warning, stacklevel=2)
    steps = f"{optim.epochs} epochs of {order.steps_per_epoch:,} steps of {optim.batch_size:,} images"
    num_images = order.steps_per_epoch * optim.batch_size
    costs = reading_cost(index, image_ids, num_images, optim.epochs, job.cache_bytes)
    return "\n".join([steps, *(costs or ["no image is in an object store"])])
