"""What the stream itself costs: units that cost nothing to make, on their way to one or more training workers.

The peer is one Ray Data execution for the whole training, in which every unit is a block of its own, made by
`repartition` and dealt out by one `streaming_split`. Its memory grows by the unit until it ends.

Prints for each: units per second once the first has come, seconds to the first, CPU milliseconds of coordinators and
workers for each unit, blocks made ahead of what was consumed, and the memory of the largest coordinator over time.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import ray.data
from ray.data import Dataset, ExecutionOptions

from glsd.data.order import Order
from glsd.data.units import EncodedUnit
from ray_jobs.workers.stream import Stream, share

COORDINATOR = "SplitCoordinator"


@dataclass(frozen=True)
class Empty:
    """Units of 32 images that cost nothing to make."""

    num_units: int
    unit_bytes: int

    @property
    def order(self) -> Order:
        return Order(0, 32, 32, 32)

    def read(self, k: int) -> EncodedUnit:
        return EncodedUnit(k, 0, [])

    def made(self, unit: EncodedUnit) -> dict[str, np.ndarray]:
        return self.blank(unit.k)

    def blank(self, k: int) -> dict[str, np.ndarray]:
        return {"unit": np.full(32, k), "crops": np.zeros((32, self.unit_bytes // 32), np.uint8)}


def one_execution(source: Empty) -> Dataset:
    """The peer."""
    units = ray.data.range(source.num_units, override_num_blocks=max(1, source.num_units // 1000))
    units = units.repartition(target_num_rows_per_block=1).map_batches(
        partial(_unit, source=source), batch_size=None, batch_format="numpy", num_cpus=1
    )
    units.context.execution_options = ExecutionOptions(preserve_order=True)
    return units


def _unit(rows: dict[str, np.ndarray], source: Empty) -> dict[str, np.ndarray]:
    return source.blank(int(rows["id"][0]))


@ray.remote(num_cpus=0.01)
class Consumer:
    """A training worker that does nothing with its units but check their order."""

    def consume(self, source: Any, rank: int, workers: int, seconds: float, every: int) -> dict[str, Any]:
        start = time.perf_counter()
        if isinstance(source, Stream):
            units: Iterator[Any] = source.of_rank(0, rank, workers)
        else:
            units = iter(source.iter_batches(batch_size=32, batch_format="numpy", prefetch_batches=2))
        own = psutil.Process()
        cpu = sum(own.cpu_times()[:2])
        first, count, memory = 0.0, 0, []
        for count, unit in enumerate(units, 1):
            assert unit["unit"].tolist() == [(count - 1) * workers + rank] * 32
            first = first or time.perf_counter() - start
            if count % every == 0:
                memory.append((count * workers, _largest_coordinator()))
            if time.perf_counter() - start > seconds:
                break
        passed = time.perf_counter() - start
        cpu = sum(own.cpu_times()[:2]) - cpu
        return {"units": count, "first": first, "seconds": passed - first, "cpu": cpu, "memory": memory}


def _coordinators() -> list[psutil.Process]:
    return [
        process for process in psutil.process_iter(["cmdline"]) if COORDINATOR in "".join(process.info["cmdline"] or ())
    ]


def _largest_coordinator() -> int:
    """Private bytes."""
    return max((process.memory_full_info().uss for process in _coordinators()), default=0)


def measured(shape: str, source: Empty, workers: int, seconds: float, every: int) -> dict[str, Any]:
    """What workers received within the time."""
    if shape == "glsd":
        sources: list[Any] = [share(source, {})] * workers
    else:
        sources = one_execution(source).streaming_split(workers, equal=True)
    consumers = [Consumer.remote() for _ in sources]  # type: ignore[attr-defined]
    asked = [
        consumer.consume.remote(one, rank, workers, seconds, every)
        for rank, (consumer, one) in enumerate(zip(consumers, sources, strict=True))
    ]
    found = ray.get(asked)
    for consumer in consumers:
        ray.kill(consumer)
    units = sum(one["units"] for one in found)
    longest = max(one["seconds"] for one in found)
    return {
        "units": units,
        "units_per_second": units / longest,
        "first_unit_seconds": max(one["first"] for one in found),
        "worker_cpu_ms_per_unit": 1000 * sum(one["cpu"] for one in found) / units,
        "memory": found[0]["memory"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=20_000)
    parser.add_argument("--unit_bytes", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60, help="of each shape, at most")
    parser.add_argument("--shapes", nargs="+", default=["glsd", "one execution"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=options.workers + 2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=2**31,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    source = Empty(options.units, options.unit_bytes)
    rows = {}
    for shape in options.shapes:
        row = measured(shape, source, options.workers, options.seconds, max(1, options.units // (20 * options.workers)))
        rows[shape] = row
        print(
            f"{shape}: {row['units']:,} units, {row['units_per_second']:.0f} units/s, first after "
            f"{row['first_unit_seconds']:.1f} s, {row['worker_cpu_ms_per_unit']:.2f} ms of a worker's CPU per unit"
        )
        for units, size in row["memory"]:
            print(f"  {units:>12,} units: {size / 2**20:.0f} MiB")
    if options.json:
        options.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
