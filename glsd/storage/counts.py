"""What this process has done so far: requests to object stores, and images that its node's disk had or lacked."""

import threading
from collections import Counter
from typing import Final, Literal

Counted = Literal["requests", "cache_hits", "cache_misses"]
_so_far: Final = Counter[Counted]()
_counting: Final = threading.Lock()


def count(what: Counted, number: int = 1) -> None:
    """Add to a count."""
    with _counting:
        _so_far[what] += number


def counted() -> Counter[Counted]:
    """The counts up to now, of which earlier ones are subtracted."""
    with _counting:
        return _so_far.copy()
