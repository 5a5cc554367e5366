"""The demo: 2,624 photographs of solar cells with expert labels, in minutes on two CPU cores.

The package elpv-dataset has the photographs in its folder. Its licence, CC BY-NC-SA 4.0, forbids commercial use, so
each user downloads them, and they are not part of glsd.
"""

import csv
import io
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from glsd.config import Config
from glsd.reporting.console import closing_words
from glsd.storage.cache import cache_folder
from glsd.storage.replacing import replace_file
from ray_jobs.pretraining.job import pretrain
from ray_jobs.pretraining.options import PretrainOptions
from ray_jobs.progress import duration_text
from ray_jobs.settings import JobSettings

CLASSES = ("functional", "possibly defective", "likely defective", "defective")
"""The experts' probability of a defect in thirds: 0, 1/3, 2/3, 1."""
_TESTED = 0.2


def demonstrate(config: Config, out: str, job: JobSettings) -> None:
    """Pretrain on four fifths of the photographs, test by k-NN on the others, and print the results.

    Raises:
        ValueError: the photographs are not installed.
    """
    print("elpv-dataset: photographs of solar cells, CC BY-NC-SA 4.0, not for commercial use.")
    train, test = photograph_lists()
    start = time.monotonic()
    run = pretrain(config, str(train), out, PretrainOptions(knn_data=(str(test),)), job)
    print(f"\ntraining and evaluation: {duration_text(time.monotonic() - start)}\n")
    print(closing_words(run.out, run.summary))


def photograph_lists() -> tuple[Path, Path]:
    """Lists of the training and the test photographs: a seeded split, 80/20 within each class.

    Raises:
        ValueError: the package with the photographs is not installed.
    """
    package = find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise ValueError(
            "the demo's photographs are the package elpv-dataset; install it with: pip install 'glsd[demo]'"
        )
    folder = Path(package.origin).parent / "data"
    by_class: dict[str, list[str]] = defaultdict(list)
    for line in (folder / "labels.csv").read_text("utf-8").splitlines():
        path, probability, _ = line.split()
        by_class[CLASSES[round(3 * float(probability))]].append(path)
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for name, paths in sorted(by_class.items()):
        shuffled = np.random.default_rng(0).permutation(sorted(paths)).tolist()
        tested = round(_TESTED * len(shuffled))
        rows["test"] += [(path, name) for path in shuffled[:tested]]
        rows["train"] += [(path, name) for path in shuffled[tested:]]
    lists = {name: cache_folder() / f"solar-cells-{name}.csv" for name in rows}
    for name, listed in lists.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label"])
        writer.writerows((str(folder / image), label) for image, label in sorted(rows[name]))
        replace_file(listed, text.getvalue().encode())
    return lists["train"], lists["test"]
