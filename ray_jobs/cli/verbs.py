"""The verbs of the command line, one record each: its fields are the options, and `run` runs it."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from glsd.config import Config
from glsd.experiments import load_config
from ray_jobs.cli.settings import documented_yaml
from ray_jobs.evaluation.options import EmbedOptions, EvaluateOptions
from ray_jobs.packing_options import PackOptions
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.settings import JobSettings
from ray_jobs.sweeps.options import SweepOptions

Flattened = tyro.conf.arg(name="")
Settings = Annotated[Config, tyro.conf.Fixed, tyro.conf.Suppress]
"""The preset of the verb with the settings of the command line; tyro does not parse it."""


@dataclass(frozen=True)
class Pretrain:
    """Pretrain a backbone on unlabelled images; rerun the same command to resume.

    Example: glsd pretrain small_data --data photos --out runs/photos --optim.epochs 100
    """

    data: tuple[str, ...]
    """Folders of images, lists (.txt, .csv), WebDataset tars or Parquet files; local, s3:// or gs://."""
    out: str
    """Run directory: a folder, or a URI that all workers reach."""
    dry_run: bool = False
    """Only check the settings and list the images; print the steps, and what reading from object stores costs."""
    options: Annotated[PretrainOptions, Flattened] = PretrainOptions()
    job: Annotated[JobSettings, Flattened] = JobSettings()
    config: Settings = Config()

    def run(self) -> None:
        with _telling("importing libraries"):
            from glsd.reporting.console import closing_words
            from ray_jobs.pretraining.dry_run import dry_run
            from ray_jobs.pretraining.job import pretrain

        if self.dry_run:
            print(dry_run(self.config, self.data, self.out, self.options, self.job))
            return
        run = pretrain(self.config, self.data, self.out, self.options, self.job)
        print(closing_words(run.out, run.summary))


@dataclass(frozen=True)
class Demo:
    """Pretrain a small backbone on 2,624 photographs of solar cells, in minutes on two CPU cores.

    The photographs are the package elpv-dataset (the extra glsd[demo]); its licence, CC BY-NC-SA 4.0, forbids
    commercial use.

    Example: glsd demo --out runs/demo
    """

    out: str = "runs/demo"
    """Run directory."""
    job: Annotated[JobSettings, Flattened] = JobSettings()
    config: Settings = Config()

    def run(self) -> None:
        with _telling("importing libraries"):
            from ray_jobs.demo import demonstrate

        demonstrate(self.config, self.out, self.job)


@dataclass(frozen=True)
class ShowConfig:
    """Print every setting of a preset as YAML, with its documentation and its sources.

    Example: glsd config paper
    """

    config: Settings = Config()

    def run(self) -> None:
        print(documented_yaml(self.config))


@dataclass(frozen=True)
class Preview:
    """Draw the crops and the geometric matchings of one image.

    Example: glsd preview cat.jpg --out matches.png
    """

    image: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """An image file, local or a URI."""
    out: str = "preview.png"
    """The picture, a file or a URI."""
    preset: str = "paper"
    """Preset, or YAML file, whose crops are drawn."""
    seed: int = 0
    """Other seeds draw other crops."""

    def run(self) -> None:
        from glsd.data.images import UndecodableImage, decode
        from glsd.reporting.figures.canvas import save_figure
        from glsd.reporting.figures.image_preview import preview
        from glsd.storage.files import read
        from glsd.storage.uris import absolute

        config = load_config(self.preset)
        if Path(absolute(self.out)).resolve() == Path(absolute(self.image)).resolve():
            raise ValueError(f"--out {self.out} is the image itself; name another file")
        try:
            image = decode(read(absolute(self.image))[0], config.data.max_pixels, config.data.value_range)
        except OSError as error:
            raise ValueError(f"{self.image} cannot be read: {error.strerror or error}") from error
        except UndecodableImage as error:
            raise ValueError(f"{self.image} is not an image that glsd can read: {error}") from error
        print(save_figure(preview(image, config, seed=self.seed), self.out))


@dataclass(frozen=True)
class Evaluate:
    """Probe a backbone: k-NN, linear, correspondences, collapse.

    Example: glsd evaluate runs/photos --data labelled --probes knn linear collapse --out runs/photos/labelled
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, a checkpoint, an exported backbone, timm:NAME, or timm:NAME=FILE of weights; images are
    normalised as ImageNet's, or with timm:NAME.TAG=FILE as timm does for that tag."""
    data: tuple[str, ...]
    """Images that train and vote, labelled for k-NN and linear."""
    options: Annotated[EvaluateOptions, Flattened] = EvaluateOptions()
    job: Annotated[JobSettings, Flattened] = JobSettings()

    def run(self) -> None:
        with _telling("importing libraries"):
            from glsd.reporting.console import score_table
            from ray_jobs.evaluation.job import evaluate

        found = evaluate(self.model, self.data, self.options, self.job)
        print(score_table(found))


@dataclass(frozen=True)
class Sweep:
    """Run a grid of settings as trials of Ray Tune, each pretrained and evaluated; rerun to resume.

    Example: glsd sweep matching_by_regime --base small_data --data train --test val --seeds 0 1 --out sweeps/regimes
    """

    study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]
    """matching_by_regime, matching_by_dataset, temperatures, threshold, learning_rate, or a YAML file of dotted keys
    with lists or with distributions such as {loguniform: [1e-5, 1e-3]}; with `together: [[KEY, KEY]]` the first values
    of these lists go together, the second ones, and so on."""
    data: tuple[str, ...]
    """Images, as for pretrain; several data sets are given as NAME=FOLDER_OR_URI each."""
    out: str
    """Folder of the sweep: a folder, or a URI that all workers reach."""
    base: str = "small_data"
    """Preset or YAML file of the settings that all trials share."""
    options: Annotated[SweepOptions, Flattened] = SweepOptions()
    job: Annotated[JobSettings, Flattened] = JobSettings()

    def run(self) -> None:
        with _telling("importing libraries"):
            from glsd.reporting.console import states_table
            from glsd.reporting.report import report
            from glsd.runs.sweep import trial_states
            from ray_jobs.sweeps.job import sweep
            from ray_jobs.sweeps.planning import not_ended, plan_table

        options = self.options
        planned = sweep(load_config(self.base), self.study, self.data, self.out, options, self.job, self.command())
        if options.dry_run:
            print(plan_table(planned))
            if options.search == "optuna" and (num_left := options.samples - len(planned)) > 0:
                print(f"Optuna draws {num_left} more, each after the results of the earlier ones")
            return
        states = trial_states(self.out)
        with _telling(f"reporting {self.out}"):
            page = report(self.out)
        print(f"{states_table(states)}\n\n{page}")
        if rest := not_ended(planned, states):
            raise RuntimeError(f"{rest}; rerun the same command to resume them")

    def command(self) -> list[str]:
        """The command line of this call, without what is at its default."""
        given = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        del given["study"], given["options"], given["job"]
        given |= {field.name: (getattr(self.options, field.name), field.default) for field in fields(self.options)}
        given |= {name: (getattr(self.job, name), field.default) for name, field in JobSettings.model_fields.items()}
        words = ["glsd", "sweep", self.study]
        for name, (value, default) in given.items():
            if value != default:
                values = [] if default is False else value if isinstance(value, tuple) else [value]
                words += [f"--{name}", *map(str, values)]
        return words


@dataclass(frozen=True)
class Report:
    """Write one HTML file about a run, an evaluation or a sweep, which opens from disk without a network.

    Example: glsd report runs/photos
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run directory, finished or still running, or the folder of an evaluation or a sweep."""
    out: str | None = None
    """The file, local or a URI; by default report.html in that folder."""

    def run(self) -> None:
        with _telling(f"reporting {self.source}"):
            from glsd.reporting.report import report

            page = report(self.source, self.out)
        print(page)


@dataclass(frozen=True)
class Embed:
    """Write the representations of images to a Parquet file; rerun to resume.

    Example: glsd embed runs/photos --data photos --out features.parquet
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, a checkpoint, an exported backbone, timm:NAME, or timm:NAME=FILE of weights."""
    data: tuple[str, ...]
    """Folders of images, lists (.txt, .csv), WebDataset tars or Parquet files; local, s3:// or gs://."""
    out: str
    """The file, local or a URI: image_id, uri, label, z_bar in the order of image_id. It is never overwritten."""
    options: Annotated[EmbedOptions, Flattened] = EmbedOptions()
    job: Annotated[JobSettings, Flattened] = JobSettings()

    def run(self) -> None:
        with _telling("importing libraries"):
            from ray_jobs.evaluation.embedding import embed

        print(embed(self.model, self.data, self.out, self.options, self.job))


@dataclass(frozen=True)
class Convert:
    """Turn someone's checkpoint into a backbone that glsd and timm load.

    It knows the layouts of this paper's code, EsViT, DINO, iBOT, DINOv2, MoCo, BYOL, I-JEPA, MAE, lightly,
    lightly-train, solo-learn, timm and Hugging Face's transformers. Of several networks it takes the one that is
    evaluated, such as DINO's teacher.

    Example: glsd convert dino_deitsmall16_pretrain.pth backbones/dino --backbone vit_small_patch16_224
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A file of torch.save (.pth, .pt, .ckpt, .bin) or of safetensors, local or a URI."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """New folder or URI."""
    backbone: str | None = None
    """Name of the timm model; by default it is read from the file or its tensors. Images are normalised as ImageNet's,
    or with NAME.TAG as timm does for that tag."""
    prefix: str | None = None
    """Prefix of the names of the backbone's tensors, such as encoder_k. to take another network than the default; by
    default it is found."""

    def run(self) -> None:
        with _telling(f"converting {self.src}"):
            from glsd.weights.foreign import convert

            converted = convert(self.src, self.dst, self.backbone, self.prefix)
        print(converted)


@dataclass(frozen=True)
class Pack:
    """Pack images into WebDataset tar shards, their bytes unchanged, with Ray Data; rerun to resume.

    Example: glsd pack data/train s3://bucket/shards
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Folder, list, tars or Parquet files; local, s3:// or gs://."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """New or empty folder or URI for the shards."""
    options: Annotated[PackOptions, Flattened] = PackOptions()

    def run(self) -> None:
        with _telling("importing libraries"):
            from ray_jobs.packing import pack
            from ray_jobs.progress import ProgressLine

        with ProgressLine() as line:
            packed = pack(self.src, self.dst, self.options, line.phase)
        print(packed)


@dataclass(frozen=True)
class Export:
    """Write a backbone for timm, torchvision, Hugging Face's transformers, or ONNX runtimes.

    Example: glsd export runs/photos --out backbone --to timm
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, a checkpoint, an exported backbone, timm:NAME, or timm:NAME=FILE of weights."""
    out: str = "backbone"
    """New folder or URI."""
    to: Literal["timm", "torchvision", "huggingface", "onnx"] = "timm"
    """The library that loads it."""

    def run(self) -> None:
        with _telling(f"exporting the backbone of {self.model}"):
            from glsd.weights.load import load_model
            from glsd.weights.targets import export_to

            exported = export_to(load_model(self.model), self.out, self.to)
        print(exported)


@dataclass(frozen=True)
class Cache:
    """List the files in the cache folder (GLSD_CACHE), or delete them; glsd makes them again when needed.

    Example: glsd cache --clear representations
    """

    clear: Literal["representations", "packed", "images", "indexes", "layers", "all"] | None = None
    """What to delete: representations of images, images packed into tars, images of object stores, indexes of images,
    linear layers that were trained without --out, or all of these. What a running process on this machine uses is
    kept."""

    def run(self) -> None:
        from ray_jobs.cli.caching import cache_table, clear, cleared_table, entries

        print(cache_table(entries()) if self.clear is None else cleared_table(*clear(self.clear)))


VERBS: dict[str, tuple[type[Any], str | None]] = {
    "demo": (Demo, "demo"),
    "pretrain": (Pretrain, ""),
    "config": (ShowConfig, ""),
    "preview": (Preview, None),
    "evaluate": (Evaluate, None),
    "sweep": (Sweep, None),
    "report": (Report, None),
    "embed": (Embed, None),
    "export": (Export, None),
    "convert": (Convert, None),
    "pack": (Pack, None),
    "cache": (Cache, None),
}
"""The record of each verb, and the preset of its settings: a fixed one, "" for the one named next, or none."""


@contextmanager
def _telling(phase: str) -> Iterator[None]:
    """Show what is done; a terminal's line is cleared afterwards."""
    is_terminal = sys.stderr.isatty()
    columns = shutil.get_terminal_size().columns - 1  # a full line would wrap, and stay
    print(phase[:columns] if is_terminal else f"{phase}\n", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K" if is_terminal else "", end="", file=sys.stderr, flush=True)
