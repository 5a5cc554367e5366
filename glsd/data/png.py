"""The chunks of a PNG, so that a decoder gets those that matter to the picture and none of the others."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(name, content) of each chunk; the last one is short where the file is cut off."""
    return ((bytes(chunk[4:8]), chunk[8:-4]) for chunk in _whole_chunks(data))


def with_chunks(data: bytes, is_kept: Callable[[bytes, memoryview], bool]) -> bytes:
    """The PNG without the chunks whose name and content are not kept."""
    whole = (chunk for chunk in _whole_chunks(data) if is_kept(bytes(chunk[4:8]), chunk[8:-4]))
    return b"".join(chain([SIGNATURE], whole))


def _whole_chunks(data: bytes) -> Iterator[memoryview]:
    """Each chunk with its length, name, content and checksum."""
    rest = memoryview(data)[len(SIGNATURE) :]
    while rest:
        size = 12 + int.from_bytes(rest[:4], "big")
        yield rest[:size]
        rest = rest[size:]
