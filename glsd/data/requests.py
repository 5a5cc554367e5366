"""What reading the images of a training from object stores costs: requests, and their price."""

import math
from collections import Counter
from typing import Final, NamedTuple

import numpy as np

from glsd.data.index import Index
from glsd.storage.uris import is_remote

PRICE_PER_MILLION: Final = 0.40
"""US dollars for a million GET or HEAD requests to S3 Standard in us-east-1 (https://aws.amazon.com/s3/pricing), and
for a million operations of class B on Google Cloud Storage Standard (https://cloud.google.com/storage/pricing), as both
were in November 2026.
"""
_MOST_LOOKED_AT: Final = 1000


class Reading(NamedTuple):
    """What an epoch reads of one object store."""

    store: str
    """Such as s3://."""
    num_images: int
    num_requests: int
    """Of images without a cache: one within a tar; two for a file of its own, a HEAD and a GET, which Google's client
    reads with one. The HEAD for each tar that a process opens is not among them."""


def readings(index: Index, image_ids: np.ndarray, num_images: int) -> list[Reading]:
    """What an epoch of so many of these images reads of each object store, judged by a thousand that are spread evenly
    over the index.
    """
    rows = np.unique(np.linspace(0, len(image_ids) - 1, min(len(image_ids), _MOST_LOOKED_AT)).astype(np.int64))
    images, requests = Counter[str](), Counter[str]()
    for image_id in image_ids[rows].tolist():
        place = index.place(image_id)
        if is_remote(place.uri) and not place.uri.startswith("file://"):
            store = f"{place.uri.partition('://')[0]}://"
            images[store] += 1
            requests[store] += 2 if place.offset < 0 and store == "s3://" else 1
    return [
        Reading(store, *(round(counts[store] * num_images / len(rows)) for counts in (images, requests)))
        for store in sorted(images)
    ]


def reading_cost(index: Index, image_ids: np.ndarray, num_images: int, epochs: int, cache_bytes: int) -> list[str]:
    """Lines that say what a training of so many images per epoch asks of object stores, and what would be cheaper.

    Args:
        index: the images.
        image_ids: those of them that are trained on.
        num_images: images of an epoch.
        epochs: of the training.
        cache_bytes: what each node keeps on its own disk.
    """
    num_bytes = int(index.lengths[image_ids].sum())
    kept, lines = min(1.0, cache_bytes / max(1, num_bytes)), list[str]()
    for store, images, requests in readings(index, image_ids, num_images):
        later = round(requests * (1 - kept))
        total = requests + (epochs - 1) * later
        each = f"{requests:,} requests per epoch"
        if kept:
            each = f"{requests:,} requests in the first epoch of a node, {later:,} in each later one"
        cost = f"{_price(total)} at ${PRICE_PER_MILLION:.2f} per million"
        lines.append(f"reading {store}: {each}, {total:,} in {epochs} epochs, about {cost}")
        if kept < 1:
            all_kept = f"--cache_gib {math.ceil(num_bytes / 2**30)} keeps all images on each node's disk"
            lines.append(f"  {all_kept}: {requests:,} requests of each node in all, about {_price(requests)}")
        if requests > images:
            packed = round(total * images / requests)
            lines.append(f"  in tars (glsd pack): {packed:,} requests in {epochs} epochs, about {_price(packed)}")
    return lines


def _price(num_requests: int) -> str:
    """Dollars, with cents below ten.

    >>> _price(384_350_100), _price(1_281_167), _price(100)
    ('$154', '$0.51', '$0.00')
    """
    dollars = num_requests / 1e6 * PRICE_PER_MILLION
    return f"${dollars:,.0f}" if dollars >= 10 else f"${dollars:.2f}"
