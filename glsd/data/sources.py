"""What a user names as data, told apart and listed: folders, lists, WebDataset tars and Parquet files.

Listing opens no image: names, sizes and times are enough to know whether an index is still true. Several sources may
be given at once, each of its own kind.
"""

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from glsd.config import DataConfig
from glsd.data.images import IMAGE_EXTENSIONS
from glsd.data.labels import CLASS_NAMES, Labels
from glsd.data.lists import PATH_COLUMNS, Listed, listed_images, read_csv, read_parquet, read_text
from glsd.record import parsed_json
from glsd.storage.columns import PARQUET, Texts, reading_arrow, texts
from glsd.storage.files import open_file, read
from glsd.storage.listing import Files, expanded, stat_files, walk, what_is_at
from glsd.storage.uris import absolute, beside, is_remote, unquote_key, unquoted

Sources = str | Path | Sequence[str | Path]
PACK_PLAN: Final = "pack.json"
"""Beside tars: what `glsd pack` writes there, `shards` being (name, first image, last image, bytes) of each."""
Kind = Literal["images", "tars", "compressed tars", "Parquet files"]

_EXTENSIONS: Final[dict[Kind, tuple[str, ...]]] = {
    "images": IMAGE_EXTENSIONS,
    "tars": (".tar",),
    "compressed tars": (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
    "Parquet files": (".parquet", ".pq"),
}
_NOT_READ: Final = (
    *(".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".jpm", ".jxl", ".jxr", ".wdp", ".jng", ".apng"),
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".raf", ".rw2", ".pef", ".srw"),
    *(".raw", ".x3f", ".iiq", ".3fr", ".rwl", ".mrw", ".dcm", ".dicom", ".ima", ".nii", ".mha", ".mhd", ".nrrd"),
    *(".fits", ".fit", ".fts", ".svs", ".ndpi", ".mrxs", ".scn", ".vsi", ".czi", ".lif", ".nd2", ".oib", ".oif"),
    *(".exr", ".hdr", ".pfm", ".pbm", ".pgm", ".ppm", ".pnm", ".pam", ".tga", ".ico", ".icns", ".psd", ".psb", ".xcf"),
    *(".svg", ".svgz", ".eps", ".pcx", ".dds", ".ecw", ".sid"),
)
"""Suffixes of images of kinds that are not read."""
_NO_IMAGES: Final = (
    *("authors", "changelog", "changes", "checksums", "contributing", "copying", "dockerfile", "license", "licence"),
    *("makefile", "md5sums", "notice", "readme", "sha1sums", "sha256sums", "sha512sums", "todo", "version", "_success"),
)
"""Lower-case names of files without a suffix that are surely no images."""


class Source(NamedTuple):
    """One source: its files in order, and for images their labels and their places within the files.

    Image i lies in file i, or in `file_ids[i]` where a list names files several times; `offsets` and `lengths` are
    given where it names byte ranges, or rows, which have an `image_column`. `class_names` are those of the class ids
    within tars. `content` stands for what files cannot tell: the digest of a list, or the class names.
    """

    name: str
    kind: Kind
    files: Files
    labels: Labels | None = None
    file_ids: NDArray[np.int32] | None = None
    offsets: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None
    image_column: Texts | None = None
    class_names: list[str] | None = None
    content: str = ""


def find_sources(sources: Sequence[str | Path], config: DataConfig, tick: Callable[[int], None]) -> list[Source]:
    """Lists every source.

    Raises:
        ValueError: a source does not exist, is of no known kind, is empty, names what does not exist or is a pack that
            is not complete.
    """
    if not sources or not all(map(str, sources)):
        raise ValueError("no data named; give a folder of images, a list, tars or Parquet files")
    return _with_class_names([_source(uri, config, tick) for source in sources for uri in expanded(absolute(source))])


def _source(uri: str, config: DataConfig, tick: Callable[[int], None]) -> Source:
    what = what_is_at(uri)
    if what is None:
        is_link = not is_remote(uri) and Path(uri).is_symlink()
        why = "is a link to a file that does not exist; remove it" if is_link else "does not exist"
        raise ValueError(f"{uri} {why}")
    if what == "folder":
        return _folder(uri, config, tick)
    name = unquote_key(uri).lower()
    if name.endswith(".txt"):
        return _of_list(uri, read_text(uri), config, tick)
    if name.endswith(".csv"):
        return _of_list(uri, read_csv(uri, tick), config, tick)
    for kind, extensions in _EXTENSIONS.items():
        if name.endswith(extensions):
            files = stat_files(texts([uri]), lambda _: None)
            return _parquet(uri, files, config, tick) if kind == "Parquet files" else Source(uri, kind, files)
    known = ", ".join((".txt", ".csv", *itertools.chain.from_iterable(_EXTENSIONS.values())))
    raise ValueError(f"{uri} is not a known kind of data; name a folder or a file that ends in {known}")


def _folder(uri: str, config: DataConfig, tick: Callable[[int], None]) -> Source:
    others = Counter[str]()
    suffixes = tuple(itertools.chain.from_iterable(_EXTENSIONS.values()))
    files = walk(uri, suffixes, tick, lambda name: others.update(kind_not_read(name)))
    names = pc.utf8_lower(unquoted(files.uris))
    counts = {kind: _num_ending(names, extensions) for kind, extensions in _EXTENSIONS.items()}
    kinds = [kind for kind, count in counts.items() if count]
    if not kinds:
        held = f". It holds {counted(others)}; convert them, for example to PNG" if others else ""
        raise ValueError(
            f"{uri} holds no image; images end in {', '.join(IMAGE_EXTENSIONS)} (or are in .tar, .parquet){held}"
        )
    if len(kinds) > 1:
        held = " and ".join(f"{counts[kind]} {kind}" for kind in kinds)
        raise ValueError(f"{uri} holds {held}; name a folder or a list of only one kind")
    if kinds == ["Parquet files"]:
        return _parquet(uri, files, config, tick)
    if kinds == ["tars"]:
        _check_packs(files)
    if kinds == ["images"] and others:
        warnings.warn(f"{uri} also holds {counted(others)}; if they are images, convert them", stacklevel=4)
    return Source(uri, kinds[0], files, _class_folders(uri, files) if kinds[0] == "images" else None)


def _num_ending(names: Texts, extensions: tuple[str, ...]) -> int:
    return sum(pc.sum(pc.ends_with(names, extension), min_count=0).as_py() for extension in extensions)


def kind_not_read(name: str) -> list[str]:
    """The suffix of a file that looks like an image of a kind that is not read, else nothing.

    Without a suffix, or with a number for one as in names of DICOM files, a file may be an image of any kind.
    """
    suffix = Path(name).suffix.lower()
    if not suffix.removeprefix(".").isdecimal() and suffix:
        return [suffix] if suffix in _NOT_READ else []
    return [] if name.lower() in _NO_IMAGES else ["no suffix"]


def counted(kinds: Counter[str]) -> str:
    """How many files of which kinds are not read, in words."""
    total = kinds.total()
    listed = ", ".join(f"{kind} {kinds[kind]:,}" for kind in sorted(kinds, key=lambda kind: (-kinds[kind], kind)))
    return f"{total:,} {'file of a kind that is' if total == 1 else 'files of kinds that are'} not read: {listed}"


def _check_packs(files: Files) -> None:
    """Refuse shards of a pack that was killed, is at work, or was copied in part; some may be named one by one."""
    uris = files.uris.to_pylist()
    sizes = dict(zip(uris, files.sizes.tolist(), strict=True))
    for plan in dict.fromkeys(beside(uri, PACK_PLAN) for uri in uris):
        if what_is_at(plan) != "file":
            continue
        try:
            shards = {name: num_bytes for name, _, _, num_bytes in parsed_json(read(plan)[0], plan)["shards"]}
        except (ValueError, KeyError, TypeError):
            continue  # somebody else's file of that name
        lacking = [name for name, size in shards.items() if sizes.get(beside(plan, name)) != size]
        if lacking:
            raise ValueError(
                f"{plan} names {len(shards)} shards, of which {len(lacking)} are missing or of another size, such as "
                f"{lacking[0]}: the pack is not complete; give the command `glsd pack` that began it again, or name "
                "the tars that are to be used"
            )


def _with_class_names(found: list[Source]) -> list[Source]:
    """The sources, those of tars in one folder with the class names that lie beside them."""
    class_names = cache(_class_names)  # read once for a thousand tars
    result = []
    for source in found:
        uris = source.files.uris.to_pylist() if "tars" in source.kind else []
        lists = {beside(uri, CLASS_NAMES) for uri in uris}
        if len(lists) == 1 and (names := class_names(*lists)):
            source = source._replace(class_names=names, content=json.dumps(names))
        result.append(source)
    return result


def _class_names(uri: str) -> list[str] | None:
    """A JSON list of names by class id, or of objects with a `label` and its `name` (or `words`)."""
    if what_is_at(uri) != "file":
        return None
    try:
        entries = parsed_json(read(uri)[0], uri)
        if all(isinstance(entry, dict) for entry in entries):
            by_label = {entry["label"]: entry.get("name", entry.get("words")) for entry in entries}
            entries = [by_label[label] for label in range(len(entries))]
    except (ValueError, KeyError, TypeError):
        entries = None
    are_names = isinstance(entries, list) and all(isinstance(name, str) for name in entries)
    if not are_names or len(set(entries)) < len(entries):
        warnings.warn(f"{uri} is not used: it is not a JSON list of different names by class id", stacklevel=5)
        return None
    are_ids = entries == [str(label) for label in range(len(entries))]  # what ids are called that have no names
    return None if are_ids else entries


def _class_folders(root: str, files: Files) -> Texts | None:
    """The folder of each image as its class, where every image lies exactly one folder deep."""
    within = pc.utf8_slice_codeunits(unquoted(files.uris), len(unquote_key(root).rstrip("/")) + 1)
    is_elsewhere = pc.not_equal(pc.count_substring(within, "/"), 1)
    elsewhere = pc.sum(is_elsewhere).as_py()
    if elsewhere and elsewhere < 0.1 * len(within):
        warnings.warn(
            f"the folders of {root} are not taken for classes, since {elsewhere} of {len(within)} images are not "
            f"exactly one folder deep, such as {files.uris[pc.index(is_elsewhere, True).as_py()]}",
            stacklevel=5,
        )
    return None if elsewhere else pc.replace_substring_regex(within, "(?s)/.*", "")


def _parquet(uri: str, files: Files, config: DataConfig, tick: Callable[[int], None]) -> Source:
    """Parquet files of images; or of paths, as a CSV list has them."""
    first = str(files.uris[0])
    with open_file(first) as stream, reading_arrow(first, PARQUET):
        names = pq.read_schema(stream).names
    if config.image_column in names or not set(PATH_COLUMNS) & set(names):
        return Source(uri, "Parquet files", files)
    if len(files.uris) > 1:
        raise ValueError(f"{uri} holds {len(files.uris)} Parquet files that list images; name each of them as a source")
    return _of_list(uri, read_parquet(first, config.label_column, tick), config, tick)


def _of_list(uri: str, listed: Listed, config: DataConfig, tick: Callable[[int], None]) -> Source:
    images = listed_images(listed, config.label_column, tick)
    return Source(uri, "images", content=listed.content, **images._asdict())
