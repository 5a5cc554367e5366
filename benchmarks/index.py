"""What an index of millions of images costs: seconds, peak memory and size, each made by a process of its own.

Lists name byte ranges within a thousand sparse files, or separate files whose sizes they tell, so that no file is
looked at. Tars hold small images, and are scanned by threads of one process and by tasks of Ray Data.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.data.pieces import in_threads
from glsd.data.tars import write_tar
from ray_jobs.cluster.pieces import each_on
from ray_jobs.settings import JobSettings

_SHARD_IMAGES = 10_000
_IMAGE_BYTES = 1500


def ranges(folder: Path, num_images: int) -> pa.Table:
    """Byte ranges in sparse files."""
    rows = np.arange(num_images)
    names = [f"{number:05d}.bin" for number in range(-(-num_images // _SHARD_IMAGES))]
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(_SHARD_IMAGES * _IMAGE_BYTES)
    return pa.table(
        {
            "path": pa.array(names).take(pa.array(rows // _SHARD_IMAGES)),
            "offset": rows % _SHARD_IMAGES * _IMAGE_BYTES,
            "length": np.full(num_images, _IMAGE_BYTES),
            "label": rows % 1000,
        }
    )


def files(num_images: int) -> pa.Table:
    """Separate files of 46 letters that nobody looks at."""
    rows = np.arange(num_images)
    folder = pc.utf8_lpad(pa.array(rows % 1000).cast(pa.string()), 4, "0")
    name = pc.utf8_lpad(pa.array(rows).cast(pa.string()), 9, "0")
    paths = pc.binary_join_element_wise("/data/mission/images/class", folder, "/image_", name, ".jpg", "")
    return pa.table({"path": paths, "file_size": np.full(num_images, _IMAGE_BYTES), "label": rows % 1000})


def tars(folder: Path, num_images: int) -> None:
    """Tars of ten thousand images."""
    data = b"\xff\xd8\xff" + bytes(_IMAGE_BYTES - 3)
    folder.mkdir()
    for first in range(0, num_images, _SHARD_IMAGES):
        with (folder / f"{first // _SHARD_IMAGES:05d}.tar").open("wb") as file:
            numbers = range(first, min(num_images, first + _SHARD_IMAGES))
            write_tar(file, ((f"{number:09d}.jpg", data) for number in numbers))


def measured(source: str, cache: str, *, by_tasks: bool = False) -> dict[str, float]:
    """An index that is made, and found again."""
    start, cpu, told = time.perf_counter(), time.process_time(), list[float]()
    each = each_on(JobSettings(gpu=False)) if by_tasks else in_threads
    index = build_index(
        source, DataConfig(), cache, lambda count: told.append(time.perf_counter() - start) if count else None, each
    )
    made, cpu = time.perf_counter() - start, time.process_time() - cpu
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    peak = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    build_index(source, DataConfig(), cache)
    return {
        "images": len(index),
        "seconds": made,
        "cpu": cpu,
        "first": told[0],
        "again": time.perf_counter() - start - made,
        "peak": peak / 1e9,
        "file": index.path.stat().st_size / 1e9,
    }


def _in_a_process(function: Callable[..., dict[str, float]], *arguments: str) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the lists")
    parser.add_argument("--tar_images", type=int, default=1_000_000)
    options = parser.parse_args()
    print("| source | images | s | own CPU s | first told s | found again s | peak GB | index GB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        sources = {}
        for name, table in (("byte ranges", ranges(root, options.rows)), ("separate files", files(options.rows))):
            pq.write_table(table, root / f"{name}.parquet")
            pyarrow.csv.write_csv(table, root / f"{name}.csv", pyarrow.csv.WriteOptions(quoting_style="none"))
            sources |= {f"{kind} of {name}": (root / f"{name}.{kind}", measured) for kind in ("parquet", "csv")}
        tars(root / "tars", options.tar_images)
        sources["tars, by threads"] = root / "tars", measured
        sources["tars, by tasks"] = root / "tars", partial(measured, by_tasks=True)
        for number, (name, (source, function)) in enumerate(sources.items()):
            row = _in_a_process(function, str(source), str(root / f"cache-{number}"))
            print(f"| {name} | {row.pop('images'):,} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
