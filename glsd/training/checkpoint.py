"""Checkpoints that are whole or not there, on local disks and object stores.

A checkpoint is a folder `checkpoints/step_00000120` with `state.pt`, tensors and plain values only, and `manifest.json`
with sizes and digests. The manifest is written last, so a checkpoint with a manifest is complete; on a local disk the
folder is also renamed into place. Only what reads or writes a state imports torch.
"""

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from glsd.data.filesystems import is_remote, joined, resolved, sync_folder, synced

_NAME = re.compile(r"step_(\d{8,})")


def save_checkpoint(
    run: str,
    step: int,
    state: dict[str, Any],
    facts: dict[str, Any],
    may_publish: Callable[[], bool] = lambda: True,
) -> str:
    """Write a checkpoint of the run; at any moment it is complete or does not count.

    Args:
        run: the run's directory, local or a URI.
        step: steps done.
        state: what `torch.load(weights_only=True)` reads back.
        facts: JSON values that are read without the state, such as the k-NN accuracy.
        may_publish: asked when the state is written and before the checkpoint counts, since writing may take so long
            that the run has been taken over in the meantime.

    Raises:
        RuntimeError: it may not be published; earlier checkpoints are untouched.
        OSError: the disk is full or gone; earlier checkpoints are untouched.
    """
    import torch

    filesystem, root = _place(run)
    name = f"step_{step:08d}"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    manifest = json.dumps(
        {"step": step, "files": {"state.pt": {"bytes": len(content), "sha256": _digest(content)}}, **facts}, indent=1
    ).encode()

    def check() -> None:
        if not may_publish():
            raise RuntimeError(f"another start has taken {run} over; the checkpoint of step {step} is not published")

    if isinstance(filesystem, pafs.LocalFileSystem):
        _save_locally(Path(root) / "checkpoints", name, {"state.pt": content, "manifest.json": manifest}, check)
    else:
        _upload(filesystem, f"{root}/checkpoints/{name}/state.pt", content)
        check()
        _upload(filesystem, f"{root}/checkpoints/{name}/manifest.json", manifest)
    return joined(run, f"checkpoints/{name}")


def checkpoints(run: str) -> dict[int, str]:
    """Complete checkpoints of a run by step, in order."""
    filesystem, root = _place(run)
    found = filesystem.get_file_info(pafs.FileSelector(f"{root}/checkpoints", allow_not_found=True))
    steps = {int(match[1]): info.path for info in found if (match := _NAME.fullmatch(info.base_name))}
    complete = [
        step
        for step, path in steps.items()
        if filesystem.get_file_info(f"{path}/manifest.json").type == pafs.FileType.File
    ]
    return {step: joined(run, f"checkpoints/{Path(steps[step]).name}") for step in sorted(complete)}


def newest_checkpoint(run: str) -> str | None:
    """The run's newest complete checkpoint."""
    return next(reversed(checkpoints(run).values()), None)


def manifest(checkpoint: str) -> dict[str, Any]:
    """Step, files and facts of a complete checkpoint."""
    filesystem, path = _place(checkpoint)
    with filesystem.open_input_stream(f"{path}/manifest.json") as stream:
        facts: dict[str, Any] = json.loads(stream.read())
    return facts


def load_checkpoint(checkpoint: str) -> dict[str, Any]:
    """The state that was saved, on the CPU; nothing is unpickled but tensors and plain values.

    Raises:
        ValueError: the files are not those of the manifest.
    """
    import torch

    filesystem, path = _place(checkpoint)
    expected = manifest(checkpoint)["files"]["state.pt"]
    with filesystem.open_input_stream(f"{path}/state.pt") as stream:
        content = stream.read()
    if len(content) != expected["bytes"] or _digest(content) != expected["sha256"]:
        raise ValueError(
            f"{checkpoint}/state.pt is damaged: it is not what its manifest.json describes; use another one"
        )
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def prune_checkpoints(run: str, keep: set[int]) -> None:
    """Delete the run's checkpoints of other steps, and what a killed run left half written."""
    filesystem, root = _place(run)
    for info in filesystem.get_file_info(pafs.FileSelector(f"{root}/checkpoints", allow_not_found=True)):
        match = _NAME.fullmatch(info.base_name)
        if match is None or int(match[1]) not in keep:
            # Without its manifest a checkpoint no longer counts, should this be killed half-way.
            if filesystem.get_file_info(f"{info.path}/manifest.json").type == pafs.FileType.File:
                filesystem.delete_file(f"{info.path}/manifest.json")
            filesystem.delete_dir(info.path)


def _place(uri: str) -> tuple[pafs.FileSystem, str]:
    return resolved(uri) if is_remote(uri) else (pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))


def _upload(filesystem: pafs.FileSystem, path: str, content: bytes | memoryview) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


def _save_locally(folder: Path, name: str, files: dict[str, bytes | memoryview], check: Callable[[], None]) -> None:
    partial = folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file, content in files.items():
            with synced(partial / file) as stream:
                stream.write(content)
        sync_folder(partial)
        check()
        shutil.rmtree(folder / name, ignore_errors=True)
        partial.rename(folder / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder)


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
