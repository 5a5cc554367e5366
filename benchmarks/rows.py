"""What reading an image costs where it is a row of a Parquet file, by the number of rows in a row group, and in a tar.

Files are local and in memory (the page cache), images random bytes, which no codec makes smaller, written with the
defaults of pyarrow. Row groups that are too large to be read in place are read so nevertheless.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glsd.config import DataConfig
from glsd.data.index import build_index
from glsd.data.parquet import read_row
from glsd.data.tars import write_tar

_ROUNDS = 5


def measured(read: Callable[[int], object], image_ids: list[int]) -> tuple[float, float]:
    """Microseconds per image of one thread, the median of five rounds in turn, and images/s of 32 threads."""
    alone, together = [], []
    with ThreadPoolExecutor(32) as readers:
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            for image_id in image_ids:
                read(image_id)
            alone.append(1e6 * (time.perf_counter() - start) / len(image_ids))
            start = time.perf_counter()
            list(readers.map(read, image_ids))
            together.append(len(image_ids) / (time.perf_counter() - start))
    return statistics.median(alone), statistics.median(together)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--bytes", type=int, nargs="+", default=[15_000, 110_000], help="of an image")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64], help="of a row group")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    image_ids = rng.integers(0, options.images, 1000).tolist()
    print("| image | where | read per image | us per image, one thread | images/s, 32 threads | index s |")
    print("|---|---|---|---|---|---|")
    for num_bytes in options.bytes:
        images = [b"\xff\xd8\xff" + rng.bytes(num_bytes - 3) for _ in range(options.images)]
        with tempfile.TemporaryDirectory() as place:
            tar, cache = Path(place) / "a.tar", Path(place) / "cache"
            with tar.open("wb") as file:
                write_tar(file, ((f"{number:09d}.jpg", data) for number, data in enumerate(images)))
            start = time.perf_counter()
            index = build_index(tar, DataConfig(), cache)
            seconds = time.perf_counter() - start
            alone, together = measured(index.read, image_ids)
            print(f"| {num_bytes:,} B | tar | {num_bytes:,} B | {alone:.0f} | {together:,.0f} | {seconds:.1f} |")
            for num_rows in options.rows:
                path = Path(place) / f"{num_rows}.parquet"
                pq.write_table(
                    pa.table({"image": images, "label": image_ids[:1] * len(images)}), path, row_group_size=num_rows
                )
                size = path.stat().st_size
                chunk = pq.read_metadata(path).row_group(0).column(0).total_compressed_size
                start = time.perf_counter()
                build_index(path, DataConfig(), cache)
                seconds = time.perf_counter() - start

                def read(row: int, uri: str = str(path), size: int = size) -> bytes:
                    return read_row(uri, size, "image", row, "")[0]

                assert all(read(row) == images[row] for row in image_ids[:10])
                alone, together = measured(read, image_ids)
                where = f"{num_rows} rows per group"
                print(f"| | {where} | {chunk:,} B | {alone:.0f} | {together:,.0f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
