"""What the latency of an object store costs a task of the stream, beside the same images in local files.

A server of S3's protocol, a process of its own on this machine, answers each request after a delay. The units of the
preset `paper` are read, decoded and cropped in turn from local files, from the store's files and from its tars, by
tasks like those of a training. Run it at the top of the repository:

    OMP_NUM_THREADS=1 python -m benchmarks.remote --images FOLDER
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from glsd.config import Config
from glsd.data.index import Index, build_index
from glsd.data.tars import write_tar
from glsd.data.units import UnitSource, made_in_turn
from glsd.experiments import load_config
from ray_jobs.workers.stream import TASK_UNITS, use_one_core
from tests.glsd.storage.object_store import object_store


def serve(root: Path, delay_s: float, connection: Connection) -> None:
    """The server, until it is told to end."""
    with object_store(root, delay_s=delay_s) as address:
        connection.send(address)
        connection.recv()


def write_shards(index: Index, folder: Path, images_per_shard: int = 64) -> None:
    """Tars of the images."""
    folder.mkdir(parents=True)
    for first in range(0, len(index), images_per_shard):
        rows = range(first, min(first + images_per_shard, len(index)))
        with (folder / f"{first:06d}.tar").open("wb") as stream:
            write_tar(stream, ((f"{row:06d}{Path(index.place(row).uri).suffix}", index.read(row)) for row in rows))


def rate_and_cost(index: Index, config: Config, seconds: float) -> tuple[float, float]:
    """Images/s that one task process makes, again and again from the beginning of an epoch, and its ms of CPU time for
    an image, without the server's.
    """
    source = UnitSource(config, index, None, "device")
    num_images, start, used, first = 0, time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        for arrays in made_in_turn(source, range(first, first + TASK_UNITS)):
            num_images += len(arrays["unit"])
        first += TASK_UNITS
    return num_images / (time.perf_counter() - start), 1000 * (time.process_time() - used) / num_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder of at least 96 images")
    parser.add_argument("--delay", type=float, nargs="+", default=[0.03], help="of an answer, seconds")
    parser.add_argument("--seconds", type=float, default=10, help="of each pass")
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    use_one_core()
    os.environ |= dict.fromkeys(("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "true")
    config = load_config("paper", {"optim.batch_size": 32})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(options.images, root / "bucket/files")
        local = build_index(root / "bucket/files", config.data, root / "cache")
        write_shards(local, root / "bucket/tars")
        for delay_s in options.delay:
            ours, theirs = multiprocessing.Pipe()
            server = multiprocessing.get_context("spawn").Process(target=serve, args=(root, delay_s, theirs))
            server.start()
            where = f"?endpoint_override={ours.recv()}&scheme=http"
            indexes = {"local files": local} | {
                f"{kind} of the store": build_index(f"s3://bucket/{kind}{where}", config.data, root / "cache")
                for kind in ("files", "tars")
            }
            passes: dict[str, list[tuple[float, float]]] = {name: [] for name in indexes}
            for _ in range(options.passes):
                for name, index in indexes.items():
                    passes[name].append(rate_and_cost(index, config, options.seconds))
            ours.send("end")
            server.join()
            base = statistics.median(rate for rate, _ in passes["local files"])
            print(f"answers after {1000 * delay_s:.0f} ms")
            for name, values in passes.items():
                rates, costs = zip(*values, strict=True)
                median = statistics.median(rates)
                spread = f"({min(rates):.0f} to {max(rates):.0f}), x{median / base:.2f}"
                print(f"  {name}: {median:.0f} images/s {spread}, {statistics.median(costs):.2f} ms of CPU an image")


if __name__ == "__main__":
    main()
