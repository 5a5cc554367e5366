"""What an experiment is: frozen, typed, validated settings.

A setting is declared once here and is spelled alike in YAML, on the command line, in a grid and in a results table. Its
documentation ends with its sources: places in the paper, the authors' code for what the paper leaves open, or glsd for
what only glsd has. The number of machines is not part of an experiment, so its `digest` is the same on a laptop and on
a cluster.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from glsd.record import Record, documentation, explained, flatten, nested, unknown

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Setting = Literal["vanilla", "similarity", "geometric"]
_Config = TypeVar("_Config", bound="Config")


class DataConfig(Record):
    """Which images are seen, and in which units they travel."""

    images_per_class: Size | None = None
    """Regime: this many images of each class, in the paper 10, 20, 50, 100 or 200; null is all (Sec. 4.5.1)."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Regime: this share of every class, or of all images where there are no labels; null is all (glsd)."""
    subset_seed: int = 0
    """Seed of the regime's nested subsets; a smaller subset lies within a larger one of the same seed (glsd)."""
    unit_size: Size = 32
    """Images in a unit, the micro-batch that a worker trains on at once; it divides `optim.batch_size` (glsd)."""
    value_range: tuple[float, float] | None = None
    """Values that become black and white in images of more than 8 bits, such as [0, 4095] for those of 12 bits in files
    of 16; null is all that their type has (glsd)."""
    max_pixels: Size = 178_956_970
    """Images with more pixels are skipped as decompression bombs; the default is Pillow's limit. A task decodes one
    image at a time. That takes 3 bytes per pixel for JPEG (0.5 GiB at the default), 10 to 24 for other images of 8
    bits (4 GiB), and for more bits those of the values and 3: 9 for 16-bit RGB (1.5 GiB), 15 for 32-bit (glsd)."""
    max_skipped: Probability = 0.1
    """Largest share of images that may fail to decode before the run stops, judged after 200 or all (glsd)."""
    image_column: str = "image"
    """Parquet: column of encoded bytes, or of `{bytes, path}` structs (glsd)."""
    label_column: str = "label"
    """Parquet and CSV: column of labels; a table without it is unlabelled (glsd)."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataConfig":
        if self.value_range is not None and self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range must be [black, white] with black < white, not {list(self.value_range)}")
        if self.images_per_class is not None and self.fraction is not None:
            raise ValueError("set images_per_class or fraction, not both")
        return self


class AugmentConfig(Record):
    """D_aug (Sec. 3.2, Algorithm 2), two global distributions and a local one; triples are (global 1, 2, local)."""

    global_size: Size = 224
    """Side of the two global crops in pixels (Sec. A.1)."""
    global_scale: tuple[Positive, Positive] = (0.4, 1.0)
    """Range of a global crop's share of the image's area (authors' code)."""
    local_sizes: tuple[Size, ...] = (96,)
    """Sides of the local crops in pixels, one entry for each size (Sec. A.1)."""
    num_local_crops: tuple[Count, ...] = (8,)
    """N_L: how many local crops of each size; with this and `local_sizes` empty there are none (Sec. A.1)."""
    local_scale: tuple[Positive, Positive] = (0.05, 0.4)
    """Range of a local crop's share of the image's area (authors' code)."""
    aspect_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Range of a crop's width over its height before it is resized to a square (authors' code)."""
    horizontal_flip: Probability = 0.5
    """Probability of a left-right flip (Sec. 3.2; authors' code)."""
    vertical_flip: Probability = 0.0
    """Probability of a top-bottom flip, for images without an upright, as in histology (glsd)."""
    jitter_probability: Probability = 0.8
    """Probability that brightness, contrast, saturation and hue change, in random order (Sec. 3.2; authors' code)."""
    brightness: NonNegative = 0.4
    """Brightness factor is drawn from [1 - this, 1 + this] (authors' code)."""
    contrast: NonNegative = 0.4
    """Contrast factor is drawn from [1 - this, 1 + this] (authors' code)."""
    saturation: NonNegative = 0.2
    """Saturation factor is drawn from [1 - this, 1 + this] (authors' code)."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Hue shift is drawn from [-this, this] turns of the colour circle (authors' code)."""
    grayscale_probability: Probability = 0.2
    """Probability that colour is removed (Sec. 3.2; authors' code)."""
    blur_probability: tuple[Probability, Probability, Probability] = (1.0, 0.1, 0.5)
    """Probability of a Gaussian blur (Sec. 3.2; authors' code)."""
    blur_radius: tuple[Positive, Positive] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels of the crop (authors' code)."""
    solarize_probability: tuple[Probability, Probability, Probability] = (0.0, 0.2, 0.0)
    """Probability that values of `solarize_threshold` and above are inverted (Sec. 3.2; authors' code)."""
    solarize_threshold: Annotated[int, Field(ge=0, le=256)] = 128
    """Solarisation threshold, of 255 (authors' code)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each colour channel, ImageNet's (authors' code)."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation of each colour channel, ImageNet's (authors' code)."""

    @model_validator(mode="after")
    def _consistent(self) -> "AugmentConfig":
        if 0 in self.num_local_crops:
            raise ValueError("num_local_crops holds a 0; without local crops both it and local_sizes are empty lists")
        if len(self.local_sizes) != len(self.num_local_crops):
            raise ValueError(
                f"local_sizes {list(self.local_sizes)} and num_local_crops {list(self.num_local_crops)} "
                "must have one entry for each size of local crop"
            )
        if len(set(self.local_sizes)) != len(self.local_sizes):
            raise ValueError(f"local_sizes {list(self.local_sizes)} names a size twice; add up its num_local_crops")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not low <= high <= 1:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high <= 1, not [{low}, {high}]")
        for name in ("aspect_ratio", "blur_radius"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [low, high] with low <= high, not [{low}, {high}]")
        return self

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(size, number of views) of each group of equal crops, in batch order: the globals, then the locals."""
        return ((self.global_size, 2), *zip(self.local_sizes, self.num_local_crops, strict=True))

    @property
    def num_views(self) -> int:
        """|V| = 2 + N_L."""
        return 2 + sum(self.num_local_crops)


class ModelConfig(Record):
    """Backbone f and projection heads h̄, h (Sec. 3.4, 4.2)."""

    backbone: str = "swin_tiny_patch4_window7_224"
    """Name of a timm model with a feature map or patch tokens; the default is Swin-T/7 (Sec. 4.2; Table 1)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth of the student: 0.1 for Swin-T, 0.2 for Swin-S; the teacher has none (authors' code)."""
    hidden_dim: Size = 2048
    """Width of the heads' two hidden layers (authors' code)."""
    bottleneck_dim: Size = 256
    """Width of the heads' L2-normalised bottleneck (authors' code)."""
    num_prototypes: Annotated[int, Field(ge=2)] = 65536
    """I, the size of the heads' output distributions (Eq. 3; authors' code)."""
    norm_last_layer: bool = False
    """Keep the last layer's prototypes at unit length (authors' code)."""


class ObjectiveConfig(Record):
    """The loss (Sec. 3.4) in one of the three settings of Table 1."""

    setting: Setting = "geometric"
    """No local loss, local loss with similarity matchings, or with geometric matchings (Table 1)."""
    global_weight: NonNegative | None = None
    """Weight of L_G; null is 0.5 with a local loss and 1 without (authors' code)."""
    local_weight: NonNegative = 0.5
    """Weight of L_L (authors' code)."""
    threshold_scale: Positive | None = 1.0
    """Factor on the distance threshold s; null keeps every geometric match (Eq. 6; glsd)."""
    student_temperature: Positive = 0.1
    """Temperature of the student's softmax (authors' code)."""
    teacher_temperature: Positive = 0.07
    """Temperature of the teacher's softmax, its sharpening, after the warm-up (Sec. 4.2; authors' code)."""
    warmup_teacher_temperature: Positive = 0.04
    """Temperature of the teacher's softmax in the first epoch (authors' code)."""
    teacher_temperature_warmup_epochs: Count = 30
    """Epochs over which the teacher's temperature rises linearly (authors' code)."""
    center_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Momentum of the centres of the teacher's outputs (Sec. 4.2; authors' code)."""

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of (L_G, L_L)."""
        if self.setting == "vanilla":
            return (1.0 if self.global_weight is None else self.global_weight), 0.0
        return (0.5 if self.global_weight is None else self.global_weight), self.local_weight


class OptimConfig(Record):
    """Optimisation (Sec. 3.3, 4.2)."""

    epochs: Size = 300
    """Passes over the images (Sec. 4.2)."""
    batch_size: Size = 512
    """B: images per step over all workers; units are accumulated to it (Sec. 4.2)."""
    base_lr: NonNegative = 5e-4
    """Learning rate for a batch of 256; it is scaled linearly with `batch_size` (Sec. 4.2)."""
    min_lr: NonNegative = 1e-6
    """Learning rate that the cosine ends at (authors' code)."""
    warmup_epochs: Count = 10
    """Epochs of linear warm-up from 0 (Sec. 4.2)."""
    weight_decay: NonNegative = 0.04
    """Weight decay at the start, on tensors of two or more dimensions (authors' code)."""
    weight_decay_end: NonNegative = 0.4
    """Weight decay at the end of its cosine (authors' code)."""
    clip_grad: Positive | None = 3.0
    """Largest norm of each parameter tensor's gradient; null does not clip (authors' code)."""
    freeze_last_layer_epochs: Count = 1
    """Epochs in which the heads' last layers get no gradient (authors' code)."""
    teacher_momentum: Annotated[float, Field(ge=0, le=1)] = 0.996
    """lambda, momentum of the teacher at the start; it rises to 1 on a cosine (Algorithm 1; authors' code)."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the forward pass, auto is bfloat16 where hardware has it; the loss is always float32 (glsd)."""


class EvaluationConfig(Record):
    """k-NN evaluation (Sec. 4.3) and its share in a run."""

    knn_every_epochs: Count = 10
    """Evaluate the teacher every so many epochs where labels exist; 0 only at the end (glsd)."""
    k: Size = 20
    """Neighbours that vote (Sec. 4.3)."""
    temperature: Positive = 0.07
    """A neighbour of cosine similarity s votes with weight exp(s / temperature) (authors' code)."""
    resize: Size = 256
    """Shorter side after the bicubic resize, in pixels (authors' code)."""
    crop: Size = 224
    """Side of the centre crop, in pixels (Sec. 4.3)."""
    max_images: Size = 10_000
    """Most images that vote, and most that are tested, during a run; they are kept in memory (glsd)."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a labelled data set that is tested, the others vote, where no validation data are named (glsd)."""

    @model_validator(mode="after")
    def _consistent(self) -> "EvaluationConfig":
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is cut from resize {self.resize}; use resize {self.crop} or more")
        return self


class LinearConfig(Record):
    """Linear evaluation (Sec. 4.3): a linear layer on frozen representations. It is not part of an experiment."""

    epochs: Size = 100
    """Passes over the training images (authors' code)."""
    batch_size: Size = 256
    """Images a step over all workers (glsd)."""
    base_lr: Positive = 1e-3
    """Learning rate for a batch of 256, scaled with `batch_size`; it falls to 0 on a cosine (authors' code)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD, which decays no weight (authors' code)."""
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Range of a training crop's share of the image's area (authors' code)."""
    num_blocks: Size = 1
    """Representations of so many last blocks, concatenated; 1 is z̄, EsViT's script takes 4 (Sec. 4.3)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the layer's weights, the order of the images and their crops (glsd)."""

    @model_validator(mode="after")
    def _consistent(self) -> "LinearConfig":
        low, high = self.scale
        if not low <= high <= 1:
            raise ValueError(f"linear.scale must be [low, high] with 0 < low <= high <= 1, not [{low}, {high}]")
        return self


class Config(Record):
    """One experiment."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the order of the images, the augmentations and the drop-path masks (glsd)."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    collapse: Literal["ignore", "warn", "stop"] = "warn"
    """What to do when the teacher has collapsed, which is looked for whenever metrics are logged (Sec. 4.6; glsd)."""
    log_every_steps: Size = 10
    """Steps between two lines of metrics; the only steps at which the host waits for the device (glsd)."""
    checkpoint_every_epochs: Size = 1
    """Epochs between two checkpoints (glsd)."""
    checkpoint_every_steps: Size | None = None
    """Steps between two checkpoints within an epoch, for long epochs; null has none (glsd)."""
    keep_every_epochs: Size | None = None
    """Keep the checkpoint of every so many epochs for good; null keeps only the last and the best (glsd)."""

    @model_validator(mode="before")
    @classmethod
    def _without_auto(cls, tree: Any) -> Any:
        """Runs and checkpoints of version 0.1 hold an empty `auto`."""
        return {k: v for k, v in tree.items() if k != "auto" or v} if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        keep, every = self.keep_every_epochs, self.checkpoint_every_epochs
        if keep is not None and keep % every:
            raise ValueError(
                f"keep_every_epochs {keep} is not a multiple of checkpoint_every_epochs {every}; make it one"
            )
        if self.optim.warmup_epochs > self.optim.epochs:
            raise ValueError(
                f"optim.warmup_epochs {self.optim.warmup_epochs} is more than optim.epochs {self.optim.epochs}; "
                f"use {self.optim.epochs // 10} or another number up to {self.optim.epochs}"
            )
        if self.optim.batch_size % self.data.unit_size:
            raise ValueError(
                f"optim.batch_size {self.optim.batch_size} is not a multiple of data.unit_size {self.data.unit_size}; "
                f"use data.unit_size {_largest_divisor(self.optim.batch_size, self.data.unit_size)}"
            )
        return self

    @property
    def units_per_step(self) -> int:
        """M = B / m."""
        return self.optim.batch_size // self.data.unit_size

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that two equal configurations share."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Config":
        """This configuration with dotted leaves replaced, validated as a whole.

        Raises:
            ValueError: a key does not exist (the nearest spelling is named) or a value is impossible.

        >>> Config().with_overrides({"optim.epochs": 30}).optim.epochs
        30
        """
        return validated(Config, nested(overridden(self.flat(), overrides)))

    def for_images(self, num_images: int) -> "Config":  # noqa: ARG002 (other configurations follow from it)
        """The configuration of a run on that many images: this one."""
        return self

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key."""
        return flatten(self.model_dump(mode="json"))

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """Dotted keys whose values differ, with (this one's, the other's)."""
        mine, others = self.flat(), other.flat()
        return {key: (mine[key], others[key]) for key in mine if mine[key] != others[key]}

    def to_yaml(self) -> str:
        """YAML that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def overridden(flat: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their dotted keys, some of them replaced.

    Raises:
        ValueError: a key does not exist; the message names the nearest spelling.
    """
    for key in overrides:
        if key not in flat:
            raise ValueError(unknown("setting", key, flat))
    return {**flat, **overrides}


def validated(kind: type[_Config], tree: Mapping[str, Any]) -> _Config:
    """The configuration of nested settings.

    Raises:
        ValueError: a key does not exist or a value is impossible; the message names it.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ValueError(explained(error, documentation(Config))) from error


def _largest_divisor(number: int, at_most: int) -> int:
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)
