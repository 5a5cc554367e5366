"""A run directory, local or on an object store: what identifies a run, and who works on it.

`config.yaml`, `data.json` and `environment.json` are written once and hold a run to its settings and data; `lease.json`
keeps a second driver out; `summary.json`, written last, marks the end.
"""

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import yaml
from pydantic import ValidationError

from glsd.config import Config
from glsd.data.index import Index
from glsd.runs.environment import environment
from glsd.runs.lease import NAME as LEASE
from glsd.runs.lease import TIMES, LeaseTimes, held_lease, holds_lease, read_holder
from glsd.storage.folder import Folder

CONFIG, DATA, ENVIRONMENT, SUMMARY = "config.yaml", "data.json", "environment.json", "summary.json"
EVALUATION = "evaluation.json"  # of `glsd evaluate`, in a folder of its own
BACKBONE = "backbone"


_DATA_NAMES = {
    "digest": "digest of all names and sizes",
    "knn_digest": "digest of all names and sizes of the tested images",
}


class RunDirectory(Folder):
    """The folder `out` of a run, local or on an object store."""

    token: str | None = None
    """Token of the lease that is held; it travels to the workers."""

    @property
    def name(self) -> str:
        """The run's name: the last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def ascii_name(self) -> str:
        """The name for Ray, whose metrics take no other letters and which makes a folder of it: written as in a URI."""
        return quote(self.name, safe=" ")[:200]

    def check_config(self, config: Config) -> None:
        """Refuse a run of another configuration, and a directory that is no run; neither needs the data's index.

        Raises:
            ValueError: the run has other settings, each named with both values, or the directory holds other files.
        """
        content = self.read(CONFIG)
        if content is None:
            # A start that was killed before it wrote config.yaml leaves some of its files behind.
            self.check_own("run", CONFIG, (LEASE, DATA, ENVIRONMENT))
            return
        try:
            saved = Config.model_validate(yaml.safe_load(content))
        except (ValidationError, yaml.YAMLError) as error:
            raise ValueError(f"{self.out}/{CONFIG} is not a configuration of this version of glsd: {error}") from error
        self._refuse("settings", saved.differences(config))

    def claim(self, config: Config, data: Mapping[str, Any]) -> None:
        """Make this the run of `config` on `data`, or check that it is.

        Args:
            config: the run's settings.
            data: what identifies its images, such as the index's digest, their number and sources; JSON values.

        Raises:
            ValueError: the directory holds another run, with all that differs, or files that are not a run's.
        """
        self.check_config(config)
        self.check_data(data)
        if self.read(CONFIG) is None:
            self.write(DATA, _json(data))
            self.write(ENVIRONMENT, _json(environment()))
            self.write(CONFIG, config.to_yaml().encode())  # last: with it the directory is a run

    def identity(self, index: Index, tested: Index | None) -> dict[str, Any]:
        """What identifies the images of a run, and where they lie: for the images that it was begun with as they were
        written then, wherever they lie now.
        """
        saved = json.loads(self.read(DATA) or b"{}")
        identity: dict[str, Any] = {}
        for prefix, images in (("", index), ("knn_", tested)):
            if images is not None:
                facts = {"sources": images.sources, "images": len(images), "digest": images.digest}
                identity |= {prefix + name: fact for name, fact in facts.items()}
                if images.has_digest(saved.get(f"{prefix}digest")):
                    identity |= {key: saved[key] for key in (f"{prefix}sources", f"{prefix}digest")}
        return identity

    def check_data(self, data: Mapping[str, Any]) -> None:
        """Refuse a run on other data.

        Raises:
            ValueError: the run has other data; the message says in what they differ.
        """
        if self.read(CONFIG) is None:
            return
        saved, given = json.loads(self.read(DATA) or b"{}"), json.loads(_json(data))
        keys = [*saved, *(key for key in given if key not in saved)]
        self._refuse(
            "data",
            {
                _DATA_NAMES.get(key, key): (saved.get(key), given.get(key))
                for key in keys
                if saved.get(key) != given.get(key)
            },
        )

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as finished; the last file that it writes."""
        self.write(SUMMARY, _json(summary))

    @property
    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run; None while it is not finished."""
        content = self.read(SUMMARY)
        return None if content is None else dict(json.loads(content))

    @contextmanager
    def lease(self, on_wait: Callable[[str], None] = print, times: LeaseTimes = TIMES) -> Iterator[str]:
        """Keep other drivers out for the length of a `with` block; its token is also `self.token`.

        Args:
            on_wait: told in a sentence when the start waits for the end of an earlier driver.
            times: seconds to reckon with.

        Raises:
            ValueError: another driver is at work; the message names host, process and since when.
        """
        with held_lease(self, on_wait, times) as self.token:
            try:
                yield self.token
            finally:
                self.token = None

    def holds_lease(self, token: str) -> bool:
        """Whether the lease with this token is current: a worker asks before it publishes a checkpoint."""
        return holds_lease(self, token)

    def check_reached(self, token: str) -> None:
        """Refuse a worker that sees another folder than the driver that started it, before it reads or writes there.

        Args:
            token: of the lease that the driver holds.

        Raises:
            ValueError: there is no lease, so the folder is not shared, or another start has taken the run over.
        """
        holder = read_holder(self)
        if holder is None:
            raise ValueError(
                f"the worker on host {socket.gethostname()} does not find {self.uri(LEASE)}, which the command that "
                "started it wrote; name an --out that all nodes reach"
            )
        if holder.token != token:
            raise ValueError(f"process {holder.pid} on host {holder.host} has taken {self.out} over; this start ends")

    def _refuse(self, kind: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
        if differences:
            lines = [
                f"  {key}: {json.dumps(old)} there, {json.dumps(new)} now" for key, (old, new) in differences.items()
            ]
            raise ValueError(
                f"{self.out} is a run with other {kind}:\n" + "\n".join(lines) + "\n"
                f"Choose another --out for a new run, or the {kind} it was started with to go on."
            )


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(content), indent=2) + "\n").encode()
