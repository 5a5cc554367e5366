"""Work that falls into pieces, such as a tar each: done by threads of this process, or by whatever a caller gives."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar, runtime_checkable

Piece = TypeVar("Piece")
Result = TypeVar("Result")
_THREADS: Final = 8


@runtime_checkable
class Each(Protocol):
    """What does all pieces, side by side, and gives their results in order."""

    def __call__(self, function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
        """What the function returns for each piece; what it raises is raised."""


def in_threads(function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> Iterator[Result]:
    """Threads of this process, as an `Each`."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(function, pieces)
