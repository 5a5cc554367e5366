"""The JSON files of a run, an evaluation and a sweep: one frozen record for each format.

A record is written with the keys that it was made with, and keys of a file that it does not know are kept, so that
folders of other versions of glsd can be read and added to.
"""

import json
import time
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from glsd.record import explained
from glsd.storage.folder import Folder

SWEEP, OUTCOME, ENDED = "sweep.json", "outcome.json", "ended.json"
DATA, ENVIRONMENT, SUMMARY, EVALUATION = "data.json", "environment.json", "summary.json", "evaluation.json"
LEASE, FAILURE, LOGGERS = "lease.json", "failure.json", "loggers.json"

Status = Literal["finished", "stopped", "collapsed", "not finite", "failed"]
"""How a trial ended: at its last epoch, by the scheduler, by its collapse, by a loss that is not finite (the table's
NA), or by an error, after which it is tried again when the sweep is started again."""


class FileRecord(BaseModel):
    """What a JSON file, or a part of one, holds."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)
    FILE: ClassVar[str]
    """Name of the file in its folder."""

    def json_values(self) -> dict[str, Any]:
        """The keys that were given, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


AnyRecord = TypeVar("AnyRecord", bound=FileRecord)


def read_record(folder: Folder, kind: type[AnyRecord], below: str = "") -> AnyRecord | None:
    """The record in a folder, or in one `below` it such as `evaluation/`; None where there is no such file.

    Raises:
        ValueError: the file is not one of this version of glsd.
    """
    content = folder.read(below + kind.FILE)
    return None if content is None else parsed_record(content, kind, folder.uri(below + kind.FILE))


def parsed_record(content: bytes, kind: type[AnyRecord], source: str) -> AnyRecord:
    """The record that a file holds, `source` being its name for messages, see `read_record`."""
    try:
        return kind.model_validate(json.loads(content))
    except RecursionError as error:
        raise ValueError(f"{source} is not a file of glsd: {error}") from error
    except ValueError as error:
        why = explained(error) if isinstance(error, ValidationError) else error
        raise ValueError(
            f"{source} is not a file of this version of glsd: {why}; delete it or read it with the version that "
            "wrote it"
        ) from error


def write_record(folder: Folder, record: FileRecord) -> None:
    """Create or replace the file of a record."""
    folder.write(record.FILE, (json.dumps(record.json_values(), indent=2) + "\n").encode())


class Holder(FileRecord):
    """`lease.json`: who holds the lease of a folder."""

    FILE: ClassVar[str] = LEASE
    host: str
    pid: int
    token: str
    since: str
    heartbeat_ns: int
    """Since 1970. A lease is written again and again, and has the same length every time: an object store tells the
    length first, so that a reader could be left with half of a longer one.
    """

    @property
    def silent_s(self) -> float:
        """Seconds since the last heartbeat, if the clocks of both hosts agree."""
        return time.time() - self.heartbeat_ns / 1e9


class Failure(FileRecord):
    """`failure.json`: why the workers of a start failed."""

    FILE: ClassVar[str] = FAILURE
    token: str
    """Of the lease of that start."""
    kind: str
    """Of the error."""
    message: str


class LoggedAs(FileRecord):
    """`loggers.json`: what a run is called at Weights & Biases or MLflow."""

    FILE: ClassVar[str] = LOGGERS
    id: str


class Environment(FileRecord):
    """`environment.json`: what a result may depend on besides settings and data."""

    FILE: ClassVar[str] = ENVIRONMENT
    python: str
    platform: str = ""
    packages: dict[str, str | None]
    """Version by name; null is not installed."""
    git_commit: str | None = None


class RunData(FileRecord):
    """`data.json`: what identifies the images of a run, and where they lie."""

    FILE: ClassVar[str] = DATA
    sources: list[str]
    images: int
    digest: str
    """Of all names and sizes."""
    knn_sources: list[str] | None = None
    """Images that k-NN tests, where they are named."""
    knn_images: int | None = None
    knn_digest: str | None = None
    init_from: str | None = None
    """The model that the run starts from."""
    init_digest: str | None = None


class Summary(FileRecord):
    """`summary.json`: what a finished run reached; accuracies are shares."""

    FILE: ClassVar[str] = SUMMARY
    config_digest: str
    steps: int
    images_seen: int
    loss: float
    init_from: str | None = None
    knn: float | None = None
    """Of the teacher; unset, as all up to `num_queries`, where images have no labels."""
    knn_untrained: float | None = None
    """Of the backbone before training."""
    knn_majority: float | None = None
    """Of the most frequent class."""
    knn_k: int | None = None
    num_anchors: int | None = None
    num_queries: int | None = None
    figures: bool = True
    """Whether figures were drawn."""
    timm: str
    """Python that loads the exported backbone."""
    timm_difference: float
    """Largest difference between the exported backbone and ours."""


class StoredFile(FileRecord):
    """A file of a checkpoint."""

    bytes: int
    sha256: str


class Manifest(FileRecord):
    """`manifest.json` of a checkpoint."""

    FILE: ClassVar[str] = "manifest.json"
    step: int
    files: dict[str, StoredFile]
    metrics: dict[str, Any] = {}
    """What was logged at the step."""


class SkippedImage(FileRecord):
    """An image that could not be decoded."""

    image_id: int
    uri: str
    reason: str


class SkippedLine(SkippedImage):
    """A line of `skipped.jsonl`."""

    step: int
    """The step up to which the image was met."""


class KnnScore(FileRecord):
    """Accuracies of a vote."""

    k: int
    top1: float
    top5: float
    """Of the `num_top` best classes."""
    num_top: int


class KnnFound(FileRecord):
    """k-NN, next to the untrained backbone."""

    temperature: float
    num_anchors: int
    num_queries: int
    majority: float
    results: list[KnnScore]
    untrained: list[KnnScore]


class Accuracy(FileRecord):
    """Of a linear layer."""

    top1: float
    top5: float
    """Of the `num_top` best classes."""
    num_top: int


class LinearFound(Accuracy):
    """The linear layer that is trained on crops."""

    epochs: int
    settings: dict[str, Any]
    """Those of `LinearConfig`."""


class QuickLinearFound(Accuracy):
    """Logistic regression."""

    strength: float
    """The regularisation that was chosen."""
    validation: list[tuple[float, float]]
    """(strength, accuracy on held-out training images) of each strength."""
    num_train: int
    num_test: int


class Matched(FileRecord):
    """How right matched locations are: means over the pairs of views that have a true location."""

    accuracy: float
    error_px: float
    accuracy_top: float
    """Of the `num_top` most similar pairs of locations."""
    error_top_px: float
    num_top: int
    """The most of any pair of views."""
    num_images: int
    """Pairs of views."""


class SceneFound(Matched):
    """The correspondence of two photographs of a flat scene."""

    image_a: str
    image_b: str
    num_locations: int
    untrained: Matched


class ScenesFound(FileRecord):
    """The photographs of a file of scenes."""

    file: str
    pairs: list[SceneFound]


class CorrespondenceFound(Matched):
    """The correspondence of images and their augmented views, next to the untrained backbone."""

    size: int
    """Of the views, in pixels."""
    untrained: Matched
    scenes: ScenesFound | None = None


class CollapseFound(FileRecord):
    """The verdict on a model, and the measures behind it that are finite."""

    verdict: Literal["healthy", "collapsed"]
    reasons: list[str]
    metrics: dict[str, float]


class Evaluation(FileRecord):
    """`evaluation.json`: what was evaluated on which images, and what each probe found; accuracies are shares."""

    FILE: ClassVar[str] = EVALUATION
    model: str
    backbone: str
    data: list[str]
    test: list[str] | None
    num_images: int
    classes: list[str] | None
    resize: int
    crop: int
    model_digest: str
    data_digest: str
    test_digest: str | None
    anchors: str
    skipped: list[SkippedImage]
    environment: Environment
    knn: KnnFound | None = None
    linear: LinearFound | None = None
    linear_quick: QuickLinearFound | None = None
    correspondence: CorrespondenceFound | None = None
    collapse: CollapseFound | None = None


class TrialImages(FileRecord):
    """What identifies the images of a trial."""

    digest: str
    pairs: int
    """Images of the correspondence."""
    test_digest: str | None = None


class SweepTrial(FileRecord):
    """A trial as a sweep asked for it."""

    data: str
    """Name of its data set."""
    overrides: dict[str, Any]
    """Dotted keys that make this trial."""
    images: TrialImages | None = None
    num_images: int
    steps: int
    """Of the whole run."""
    gpus: float = 0.0
    """GPUs that its workers use; 0 is CPUs."""


class SweepFile(FileRecord):
    """`sweep.json`: the newest call, and every trial that was ever asked for in the folder."""

    FILE: ClassVar[str] = SWEEP
    grid: str = ""
    command: list[str] = []
    together: list[list[str]] = []
    """Keys that a grid sets together."""
    trials: dict[str, SweepTrial] = {}
    """By name, in the order in which they were asked for."""


class Outcome(FileRecord):
    """`outcome.json`: how a trial ended."""

    FILE: ClassVar[str] = OUTCOME
    status: Status
    message: str
    gpus: float


class Ended(FileRecord):
    """`ended.json`: how training ended that cannot go further; the trial is still to be evaluated."""

    FILE: ClassVar[str] = ENDED
    status: Status
    message: str

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, content: Any) -> Any:
        """Earlier versions of glsd wrote a list of both."""
        return dict(zip(cls.model_fields, content, strict=True)) if isinstance(content, list) else content
