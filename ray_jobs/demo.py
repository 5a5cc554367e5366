"""The demo: 2,624 photographs of solar cells with expert labels, in minutes on two CPU cores.

The package elpv-dataset has the photographs in its folder. Its licence, CC BY-NC-SA 4.0, forbids commercial use, so
each user downloads them, and they are not part of glsd.
"""

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

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
    photographs = pd.read_csv(folder / "labels.csv", sep=r"\s+", names=["path", "probability", "cell"])
    photographs["label"] = [CLASSES[round(3 * probability)] for probability in photographs["probability"]]
    tested = set[str]()
    for _, paths in photographs.groupby("label")["path"]:
        shuffled = np.random.default_rng(0).permutation(sorted(paths)).tolist()
        tested.update(shuffled[: round(_TESTED * len(shuffled))])
    is_tested = photographs["path"].isin(tested)
    photographs["path"] = [str(folder / path) for path in photographs["path"]]
    lists = cache_folder() / "solar-cells-train.csv", cache_folder() / "solar-cells-test.csv"
    for path, rows in zip(lists, (photographs[~is_tested], photographs[is_tested]), strict=True):
        text = rows.sort_values("path").to_csv(columns=["path", "label"], index=False, lineterminator="\n")
        replace_file(path, text.encode())
    return lists
