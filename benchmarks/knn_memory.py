"""Peak memory of the k-NN evaluation at the size of ImageNet-1k: 1.28 million anchors of 768 numbers in float16.

The anchors are made of noise, in memory or, with --mapped, in a file that is mapped and read tile by tile, and k-NN
with k in {10, 20, 100, 200} is run once. On the CPU the figure is the largest resident size of this process from its
start to its end, with Python, torch and the features in it; on a GPU it is what torch allocated there, where only tiles
of the anchors go.

    python benchmarks/knn_memory.py [--device cuda] [--mapped]
"""

import argparse
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from glsd.evaluation.knn import Labelled, knn_accuracies

KS = (10, 20, 100, 200)
NUM_CLASSES = 1000
ROWS = 1 << 13  # anchors drawn at once


def fill(anchors: np.ndarray) -> None:
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(anchors), ROWS):
        rows = anchors[start : start + ROWS]
        rows[:] = torch.randn(rows.shape, generator=generator).half().numpy()


def mapped(shape: tuple[int, int], folder: str) -> np.ndarray:
    path = Path(folder) / "anchors.npy"
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    fill(written)
    written.flush()
    del written
    return np.load(path, mmap_mode="c")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anchors", type=int, default=1_280_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mapped", action="store_true", help="anchors in a file")
    arguments = parser.parse_args()

    shape = (arguments.anchors, arguments.dim)
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(arguments.queries, arguments.dim, generator=generator).to(arguments.device)
    labels, anchor_labels = (
        torch.randint(NUM_CLASSES, (num,), generator=generator) for num in (arguments.queries, arguments.anchors)
    )
    with tempfile.TemporaryDirectory() as folder:
        if arguments.mapped:
            anchors = mapped(shape, folder)
        else:
            anchors = np.empty(shape, np.float16)
            fill(anchors)
        before = peak_bytes()
        start = time.perf_counter()
        voting, tested = Labelled(torch.from_numpy(anchors), anchor_labels), Labelled(queries, labels)
        results = knn_accuracies(voting, tested, KS, temperature=0.07, num_classes=NUM_CLASSES)
        seconds = time.perf_counter() - start
    print(f"{shape[0]:,} anchors x {shape[1]} in float16: {anchors.nbytes / 1e9:.2f} GB; {len(queries)} queries")
    print(f"k = {', '.join(str(result.k) for result in results)}: {seconds:.0f} s, torch {torch.__version__}")
    if arguments.device.startswith("cuda"):
        print(f"{torch.cuda.get_device_name()}: peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB allocated")
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    print(f"{machine}: peak {peak_bytes() / 1e9:.2f} GB resident, of it {before / 1e9:.2f} GB before the search")


def peak_bytes() -> int:
    """Largest resident size of this process so far; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


if __name__ == "__main__":
    main()
