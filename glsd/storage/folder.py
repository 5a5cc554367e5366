"""A folder that jobs write to, local or on an object store, in which every file appears whole or not at all.

Locally a file is renamed into place; an object store shows an object only when its upload is complete.
"""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import pyarrow.fs

from glsd.storage.files import insistently, read_file, write_file
from glsd.storage.listing import expanded
from glsd.storage.replacing import replace_file, replacing
from glsd.storage.uris import absolute, check_uri, is_remote, joined, resolved

_UPLOAD_BYTES: Final = 16 << 20


class Folder:
    """A local folder, or a URI such as `s3://bucket/runs/mine`, as `glsd.data` reads them; it can be sent to workers.

    Args:
        out: a path or URI; with `filesystem`, a path on it.
        filesystem: an object store that no URI can name.

    Raises:
        ValueError: `out` is not a path or URI of a folder.
    """

    def __init__(self, out: str | os.PathLike[str], filesystem: pyarrow.fs.FileSystem | None = None) -> None:
        text = os.fspath(out)
        check_uri(text)
        self.out = absolute(text) if is_remote(text) else text.rstrip("/") or text
        """As the user names it."""
        self.filesystem, self.path = (filesystem, self.out) if filesystem is not None else _place(self.out)
        parent, _, name = self.path.rpartition("/")
        if not text or not parent or not name:
            raise ValueError(f"{text!r} must name a folder inside another folder or a bucket")

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine, at `path`."""
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    @property
    def location(self) -> str:
        """The folder's absolute path, or its URI if there is one, for functions that take either, in any process."""
        return self.path if self.is_local else self.out

    def uri(self, name: str) -> str:
        """How a user names a file of the folder."""
        return joined(self.out, name)

    def beside(self, ending: str) -> "Folder":
        """The folder whose name has this ending more."""
        location, mark, options = self.out.partition("?") if is_remote(self.out) else (self.out, "", "")
        return Folder(f"{location}{ending}{mark}{options}")

    def sizes(self) -> dict[str, int]:
        """Names and sizes in bytes of what is in the folder, without what a killed process left unfinished."""
        if self.filesystem.get_file_info(self.path).type == pyarrow.fs.FileType.File:
            raise ValueError(f"{self.out} is a file; name a folder")
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        entries = insistently(f"listing {self.out}", lambda: self.filesystem.get_file_info(selector), self.filesystem)
        return {
            entry.base_name: entry.size or 0
            for entry in sorted(entries, key=lambda entry: entry.base_name)
            if not (entry.base_name.startswith(".") and entry.base_name.endswith(".tmp"))
        }

    def check_own(self, kind: str, mark: str, own: Collection[str] = ()) -> None:
        """Refuse a folder that is not a `kind`, since it lacks the file `mark`, and holds more than `own`."""
        if mark in (there := self.sizes()):
            return
        if foreign := [name for name in there if name not in own]:
            named = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
            article = "an" if kind[0] in "aeiou" else "a"
            raise ValueError(
                f"--out {self.out} holds {named} but no {mark}, so it is not {article} {kind}; name a new or an empty "
                "folder"
            )

    def check_apart(self, sources: str | Path | Iterable[str | Path]) -> None:
        """Refuse a folder within one of the sources of images: what is written there would be data of the next call."""
        for source in [sources] if isinstance(sources, str | Path) else sources:
            if not str(source):
                continue  # is refused when it is indexed
            for uri in expanded(absolute(source)):  # perhaps a whole bucket, which is not a `Folder`
                filesystem, root = _place(uri)
                if filesystem.type_name == self.filesystem.type_name and self.path.startswith(f"{root.rstrip('/')}/"):
                    raise ValueError(
                        f"{self.out} lies within {source}, so that what is written there would count as images; "
                        "name a folder elsewhere"
                    )

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        try:
            return read_file(self.filesystem, f"{self.path}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Create or replace a file, at once."""
        target = f"{self.path}/{name}"
        folder = target.rpartition("/")[0]
        if self.is_local:
            self.filesystem.create_dir(folder, recursive=True)
            replace_file(Path(target), data)
            return
        insistently(f"making {folder}", lambda: self.filesystem.create_dir(folder, recursive=True), self.filesystem)
        write_file(self.filesystem, target, data)

    @contextmanager
    def replacing(self, name: str) -> Iterator[BinaryIO]:
        """A stream whose content becomes a file when the block ends, unless it ends by an exception."""
        with _replacing(self.filesystem, f"{self.path}/{name}") as stream:
            yield stream

    def delete(self) -> None:
        """Remove the folder with all that is in it."""
        self.filesystem.delete_dir(self.path)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.filesystem.delete_file(f"{self.path}/{name}")


@contextmanager
def replacing_uri(uri: str) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file at a path or URI when the block ends, unless it ends by an exception."""
    with _replacing(*(resolved(uri) if is_remote(uri) else (pyarrow.fs.LocalFileSystem(), uri))) as stream:
        yield stream


@contextmanager
def _replacing(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[BinaryIO]:
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as stream:
            yield stream
        return
    with tempfile.TemporaryFile() as file:  # what an object store has begun to receive, it may keep
        yield file

        def upload() -> None:
            file.seek(0)
            with filesystem.open_output_stream(path) as uploaded:
                shutil.copyfileobj(file, uploaded, _UPLOAD_BYTES)

        insistently(f"writing {path}", upload, filesystem)


def _place(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a folder and the path on it, without symbolic links."""
    filesystem, path = resolved(uri) if is_remote(uri) else (pyarrow.fs.LocalFileSystem(), uri)
    is_local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    return filesystem, str(Path(path).expanduser().resolve()) if is_local else path
