"""Lists that were indexed before: their content and the files that they name say whether an index of them is true.

A list that tells the sizes of its files, or names places within few files, is not read row by row again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from typing_extensions import TypedDict

from glsd.config import DataConfig
from glsd.data.lists import content_of
from glsd.data.sources import Source
from glsd.storage.columns import texts
from glsd.storage.listing import stat_files, what_is_at
from glsd.storage.uris import absolute

_MOST_FILES: Final = 10_000
"""Files that are looked at again, in all."""


class KnownLists(TypedDict):
    """What tells whether lists have changed."""

    asked: list[str]
    """The sources, and the columns that are read."""
    contents: dict[str, str]
    """The digest of each list."""
    looked_at: dict[str, tuple[int, int]]
    """(size, time) of the files whose sizes no list tells."""


def known_lists(sources: Sequence[str | Path], found: Sequence[Source], config: DataConfig) -> KnownLists | None:
    """What tells whether these lists have changed, for `are_unchanged`; None if a source is no list, or the lists name
    more than 10,000 files whose sizes they do not tell.
    """
    looked_at = dict[str, tuple[int, int]]()
    for source in found:
        if source.kind != "images" or not source.content:
            return None
        uris, sizes, mtimes = source.files
        of_files = np.flatnonzero(mtimes != -1)
        if len(looked_at) + of_files.size > _MOST_FILES:
            return None
        facts = zip(sizes[of_files].tolist(), mtimes[of_files].tolist(), strict=True)
        looked_at |= zip(uris.take(of_files).to_pylist(), facts, strict=True)
    contents = {source.name: source.content for source in found}
    return {"asked": _asked(sources, config), "contents": contents, "looked_at": looked_at}


def are_unchanged(known: KnownLists | None, sources: Sequence[str | Path], config: DataConfig) -> bool:
    """Whether these sources are those lists, with the same content, and the files that were looked at are the same."""
    if known is None or known["asked"] != _asked(sources, config):
        return False
    for uri, content in known["contents"].items():
        if what_is_at(uri) != "file" or content_of(uri)[1] != content:
            return False
    _, sizes, mtimes = stat_files(texts(known["looked_at"]), lambda _: None)
    return np.array_equal(np.stack([sizes, mtimes], 1), np.array(list(known["looked_at"].values())).reshape(-1, 2))


def _asked(sources: Sequence[str | Path], config: DataConfig) -> list[str]:
    return [*map(absolute, sources), config.image_column, config.label_column]
