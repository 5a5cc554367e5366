"""Checkpoints that are whole or not there, on local disks and object stores.

A checkpoint is a folder `checkpoints/step_00000120` with `state.pt`, tensors and plain values only, and `manifest.json`
with sizes and digests. The manifest is written last, so a checkpoint with a manifest is complete; on a local disk the
folder is also renamed into place. Only what reads or writes a state imports torch.
"""

import hashlib
import io
import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from glsd.runs.records import Manifest, parsed_record
from glsd.storage.files import insistently, read, write_file
from glsd.storage.replacing import whole_folder
from glsd.storage.uris import absolute, is_remote, joined, resolved

_NAME = re.compile(r"step_(\d{8}|[1-9]\d{8,})")
_PARTIAL = re.compile(rf"\.{_NAME.pattern}\.[0-9a-f]+\.partial(\.replaced)?")
_STATE, _MANIFEST = "state.pt", "manifest.json"


def save_checkpoint(
    run: str, step: int, state: dict[str, Any], facts: dict[str, Any], may_publish: Callable[[], bool] = lambda: True
) -> str:
    """Write a checkpoint of the run; at any moment it is complete or does not count.

    Args:
        run: the run's directory, local or a URI.
        step: steps done.
        state: what `torch.load(weights_only=True)` reads back.
        facts: JSON values that are read without the state, such as the k-NN accuracy.
        may_publish: asked when the state is written and before the checkpoint counts, since the run may be taken over
            in the meantime.

    Raises:
        RuntimeError: it may not be published.
        OSError: the disk is full or gone.
    """
    import torch

    filesystem, root = _place(run)
    name = f"step_{step:08d}"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    manifest = json.dumps(
        {"step": step, "files": {_STATE: {"bytes": len(content), "sha256": _digest(content)}}, **facts}, indent=1
    ).encode()

    def check() -> None:
        if not may_publish():
            raise RuntimeError(f"another start has taken {run} over; the checkpoint of step {step} is not published")

    try:
        if isinstance(filesystem, pafs.LocalFileSystem):
            folder = Path(root) / "checkpoints"
            partial = folder / f".{name}.{secrets.token_hex(8)}.partial"  # a start that has lost the run has its own
            with whole_folder(folder / name, partial, check):
                (partial / _STATE).write_bytes(content)
                (partial / _MANIFEST).write_bytes(manifest)
        else:
            write_file(filesystem, f"{root}/checkpoints/{name}/{_STATE}", content)
            check()
            write_file(filesystem, f"{root}/checkpoints/{name}/{_MANIFEST}", manifest)
    except OSError as error:
        raise OSError(
            f"the checkpoint of step {step} could not be written to {run}: {error}; earlier ones stay. "
            "Make room or reach the disk again, then rerun the command to resume"
        ) from error
    return joined(run, f"checkpoints/{name}")


def checkpoints(run: str) -> dict[int, str]:
    """Complete checkpoints of a run by step, in order."""
    found = _found(run).items()
    steps = {int(match[1]): name for name, files in found if _MANIFEST in files and (match := _NAME.fullmatch(name))}
    return {step: joined(run, f"checkpoints/{steps[step]}") for step in sorted(steps)}


def newest_checkpoint(run: str) -> str | None:
    """The run's newest complete checkpoint."""
    return next(reversed(checkpoints(run).values()), None)


def manifest(checkpoint: str) -> Manifest:
    """Step, files and facts of a complete checkpoint."""
    file = joined(absolute(checkpoint), _MANIFEST)
    return parsed_record(read(file)[0], Manifest, file)


def load_checkpoint(checkpoint: str) -> dict[str, Any]:
    """The state that was saved, on the CPU; nothing is unpickled but tensors and plain values.

    Raises:
        ValueError: the files are not those of the manifest, or not of a checkpoint.
    """
    from glsd.runs.tensors import from_torch_save

    expected = manifest(checkpoint).files.get(_STATE)
    if expected is None:
        raise ValueError(f"{checkpoint}/{_MANIFEST} names no {_STATE}, so it is not that of a checkpoint")
    content, _ = read(joined(absolute(checkpoint), _STATE))
    if len(content) != expected.bytes or _digest(content) != expected.sha256:
        raise ValueError(f"{checkpoint}/state.pt is damaged: its manifest.json describes another; use an earlier one")
    state = from_torch_save(io.BytesIO(content), f"{checkpoint}/{_STATE}")
    if not isinstance(state, dict):
        raise ValueError(f"{checkpoint}/{_STATE} holds a {type(state).__name__}, and not the state of a training")
    return state


def prune_checkpoints(run: str, keep: set[int]) -> None:
    """Delete the run's checkpoints of other steps, and what a killed run left half written.

    Nothing else in `checkpoints/` is touched, such as the copy of a checkpoint under another name, nor a file that
    someone added to a checkpoint.
    """
    filesystem, root = _place(run)
    for name, files in _found(run).items():
        match = _NAME.fullmatch(name)
        if int(match[1]) in keep if match else not _PARTIAL.fullmatch(name):
            continue
        folder = f"{root}/checkpoints/{name}"
        # Without its manifest, deleted first, a checkpoint no longer counts, should this be killed half-way.
        for file in (_MANIFEST, _STATE):
            if file in files:
                filesystem.delete_file(f"{folder}/{file}")
        is_there = filesystem.get_file_info(folder).type == pafs.FileType.Directory  # object stores need not have any
        if is_there and set(files) <= {_MANIFEST, _STATE}:
            filesystem.delete_dir(folder)


def _found(run: str) -> dict[str, list[str]]:
    """The folders of checkpoints, complete or not, and the files in each: Google's store lists only files."""
    filesystem, root = _place(run)
    folder = f"{root}/checkpoints"
    folders: dict[str, list[str]] = {}
    selector = pafs.FileSelector(folder, allow_not_found=True, recursive=True)
    for info in insistently(f"listing {folder}", lambda: filesystem.get_file_info(selector), filesystem):
        name, _, file = info.path.removeprefix(f"{folder}/").partition("/")
        folders.setdefault(name, []).extend([file] if file and info.type == pafs.FileType.File else [])
    return folders


def _place(uri: str) -> tuple[pafs.FileSystem, str]:
    return resolved(uri) if is_remote(uri) else (pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
