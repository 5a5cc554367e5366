"""`glsd VERB ...`: the command line.

A verb with settings takes a preset's name (or a YAML file) first, which fills the settings in; each can then be given
by its dotted key. Verbs that need no cluster import no Ray.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import ValidationError

from glsd.config import Config, DataConfig, documentation, explained, load_config, presets
from ray_jobs.settings import JobSettings

Flattened = tyro.conf.arg(name="")


@dataclass(frozen=True)
class Pretrain:
    """Pretrain a backbone on unlabelled images; after a kill the same command goes on where it was.

    Example: glsd pretrain small_data --data photos --out runs/photos --optim.epochs 100
    """

    data: tuple[str, ...]
    """Folders of images, lists (.txt, .csv), WebDataset tars or Parquet files; local, s3:// or gs://."""
    out: str
    """Run directory: a folder, or a URI that all workers reach."""
    knn_data: tuple[str, ...] = ()
    """Labelled images to test by k-NN during the run; without them a share of labelled `data` is tested."""
    job: Annotated[JobSettings, Flattened] = JobSettings()
    config: Annotated[Config, Flattened] = Config()

    def run(self) -> None:
        """Do it."""
        from ray_jobs.finishing import closing_words
        from ray_jobs.pretraining import pretrain

        run = pretrain(self.config, self.data, self.out, knn_data=self.knn_data or None, **dict(self.job))
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
    config: Annotated[Config, Flattened] = Config()

    def run(self) -> None:
        """Do it."""
        from ray_jobs.demonstration import demonstrate

        demonstrate(self.config, self.out, self.job)


@dataclass(frozen=True)
class ShowConfig:
    """Print every setting of a preset as YAML, with its documentation and its place in the paper.

    Example: glsd config paper
    """

    config: Annotated[Config, Flattened] = Config()

    def run(self) -> None:
        """Do it."""
        print(documented_yaml(self.config))


@dataclass(frozen=True)
class Preview:
    """Draw the crops and the geometric matchings of one image.

    Example: glsd preview cat.jpg --out matches.png
    """

    image: Annotated[str, tyro.conf.Positional]
    """An image file."""
    out: str = "preview.png"
    """The picture."""
    preset: str = "paper"
    """Preset, or YAML file, whose crops are drawn."""
    seed: int = 0
    """Other seeds draw other crops."""

    def run(self) -> None:
        """Do it."""
        from glsd.data import UndecodableImage, decode
        from glsd.reporting import preview, save_figure

        config = load_config(self.preset)
        try:
            image = decode(Path(self.image).read_bytes(), config.data.max_pixels, config.data.value_range)
        except OSError as error:
            raise ValueError(f"{self.image} cannot be read: {error.strerror}") from error
        except UndecodableImage as error:
            raise ValueError(f"{self.image} is no image that can be read: {error}") from error
        print(save_figure(preview(image, config, seed=self.seed), self.out))


@dataclass(frozen=True)
class Evaluate:
    """k-NN accuracy of a run's teacher on labelled images.

    Example: glsd evaluate runs/photos --data labelled
    """

    model: Annotated[str, tyro.conf.Positional]
    """A run directory, a checkpoint or an exported backbone."""
    data: tuple[str, ...]
    """Labelled images that vote; without --test a share of them is tested instead."""
    test: tuple[str, ...] = ()
    """Labelled images that are tested."""

    def run(self) -> None:
        """Do it."""
        from ray_jobs.evaluating import evaluate, score_table

        print(score_table(evaluate(self.model, self.data, test=self.test or None)))


@dataclass(frozen=True)
class Pack:
    """Pack images into WebDataset tar shards, their bytes unchanged, with Ray Data; goes on after a kill.

    Example: glsd pack data/train s3://bucket/shards
    """

    src: Annotated[str, tyro.conf.Positional]
    """Folder, list, tars or Parquet files; local, s3:// or gs://."""
    dst: Annotated[str, tyro.conf.Positional]
    """New or empty folder or URI for the shards."""
    shard_mib: int = 256
    """Size of a shard in MiB."""
    image_column: str = "image"
    """Parquet: column of encoded bytes, or of `{bytes, path}` structs."""
    label_column: str = "label"
    """Parquet and CSV: column of labels."""

    def run(self) -> None:
        """Do it."""
        from ray_jobs.cluster import cluster
        from ray_jobs.monitor import ProgressLine
        from ray_jobs.packing import pack

        data = DataConfig(image_column=self.image_column, label_column=self.label_column)
        with ProgressLine() as line, cluster(JobSettings()):
            packed = pack(self.src, self.dst, data, self.shard_mib * 2**20, line.phase)
        print(packed)


@dataclass(frozen=True)
class Export:
    """Write a run's backbone as safetensors with the configuration that timm loads.

    Example: glsd export runs/photos --out backbone
    """

    model: Annotated[str, tyro.conf.Positional]
    """A run directory or a checkpoint."""
    out: str = "backbone"
    """New folder."""

    def run(self) -> None:
        """Do it."""
        from glsd.evaluation import export_backbone, load_encoder
        from ray_jobs.monitor import ProgressLine

        with ProgressLine() as line:
            line.phase(f"exporting the backbone of {self.model}")
            report = export_backbone(load_encoder(self.model), Path(self.out))
        print(report.path)
        print(
            f"largest difference of timm's features at {report.size} px: {report.largest_difference:.2g}, of entries "
            f"up to {report.largest_entry:.2g}; glsd.load_encoder gives exactly those of the run\n"
        )
        print(report.lines)


VERBS: dict[str, tuple[type[Any], str | None]] = {
    "demo": (Demo, "demo"),
    "pretrain": (Pretrain, ""),
    "config": (ShowConfig, ""),
    "preview": (Preview, None),
    "evaluate": (Evaluate, None),
    "pack": (Pack, None),
    "export": (Export, None),
}
"""Each verb's arguments, and the preset that fills its settings in: a fixed one, the one named next, or none."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; what a user can mend is one line on stderr and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the progress line may stand there
    warnings.showwarning = lambda message, *_: print(f"{clear}glsd: {message}", file=sys.stderr)
    try:
        parse(given).run()
    except ValidationError as error:
        sys.exit(_failed(explained(error)))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(_failed(str(error)))


def documented_yaml(config: Config) -> str:
    """The configuration as YAML; above a setting stand its documentation and, where it is another, the default."""
    lines: list[str] = []
    documents, defaults = documentation(), Config().flat()
    section = ""
    for key, value in config.flat().items():
        *path, leaf = key.split(".")
        if path and path[0] != section:
            lines += ["", f"# {getattr(config, path[0]).__doc__}", f"{path[0]}:"]
        section = path[0] if path else ""
        indent = "  " * len(path)
        lines.append(f"{indent}# {documents[key]}")
        if value != defaults[key]:
            lines.append(f"{indent}# Default: {_yaml(defaults[key])}")
        lines.append(f"{indent}{leaf}: {_yaml(value)}")
    return "\n".join(lines)


def parse(given: list[str]) -> Any:
    """The verb with its arguments, ready to `run`."""
    if not given or given[0] in {"-h", "--help"}:
        print(_overview())
        sys.exit(0 if given else 2)
    verb, *rest = given
    if verb not in VERBS:
        raise ValueError(f"there is no verb {verb!r}; glsd has {', '.join(VERBS)}")
    arguments, preset = VERBS[verb]
    program = f"glsd {verb}"
    if preset is None:
        return tyro.cli(arguments, args=rest, prog=program, use_underscores=True)
    if preset == "":
        if not rest or rest[0].startswith("-"):
            if set(rest) & {"-h", "--help"}:
                print(f"usage: {program} PRESET [OPTIONS]; `{program} PRESET --help` lists them\n\n{arguments.__doc__}")
                print(f"    Presets: {', '.join(presets())}, or a path to a YAML file")
                sys.exit(0)
            raise ValueError(f"{program} needs a preset first: {', '.join(presets())}, or a path to a YAML file")
        preset, *rest = rest
        program += f" {preset}"
    return _with_settings(arguments, load_config(preset), rest, program)


def _with_settings(arguments: type[Any], config: Config, rest: list[str], program: str) -> Any:
    required = {field.name: tyro.MISSING for field in fields(arguments) if field.default is MISSING}
    default = arguments(**required, config=config)
    return tyro.cli(arguments, args=rest, prog=program, default=default, use_underscores=True)


def _overview() -> str:
    lines = [
        "Pretrain vision backbones on your own images: Global-Local Self-Distillation on Ray.",
        "",
        "glsd VERB ...",
    ]
    for verb, (arguments, _) in VERBS.items():
        lines.append(f"  {verb:<10}{(arguments.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", "`glsd VERB --help` says more."])


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).removesuffix("\n").removesuffix("\n...")


def _failed(message: str) -> int:
    print(f"glsd: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
