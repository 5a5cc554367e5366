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

from glsd.config import Config, validated
from glsd.data.index import Index
from glsd.record import parsed_yaml
from glsd.runs.environment import environment
from glsd.runs.lease import TIMES, LeaseTimes, held_lease, holds_lease, read_holder
from glsd.runs.records import DATA, ENVIRONMENT, LEASE, RunData, Summary, read_record, write_record
from glsd.storage.folder import Folder

CONFIG, BACKBONE = "config.yaml", "backbone"
_DIGEST = "digest of all names and sizes"
_DATA_NAMES = {"digest": _DIGEST, "knn_digest": f"{_DIGEST} of the tested images"}


def in_ascii(name: str) -> str:
    """A name, not too long, written as in a URI."""
    return quote(name, safe=" ")[:200]


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
        return in_ascii(self.name)

    @property
    def config(self) -> Config | None:
        """The settings of the run, if it has any; a ValueError if they are not of this version of glsd."""
        if (content := self.read(CONFIG)) is None:
            return None
        source = self.uri(CONFIG)
        tree = parsed_yaml(content, source)
        try:
            return validated(Config, tree)
        except ValueError as error:
            raise ValueError(f"{source} is not a configuration of this version of glsd: {error}") from error

    def check_config(self, config: Config) -> None:
        """Refuse a run of other settings, each named with both values, and a directory that holds other files."""
        saved = self.config
        if saved is None:
            # A start that was killed before it wrote config.yaml leaves some of its files behind.
            self.check_own("run", CONFIG, (LEASE, DATA, ENVIRONMENT))
            return
        self._refuse("settings", saved.differences(config))

    def claim(self, config: Config, data: RunData) -> None:
        """Make this the run of `config` on `data`, or check that it is.

        Raises:
            ValueError: the directory holds another run, with all that differs, or files that are not a run's.
        """
        self.check_config(config)
        self.check_data(data)
        if self.read(CONFIG) is None:
            write_record(self, data)
            write_record(self, environment())
            self.write(CONFIG, config.to_yaml().encode())  # last: with it the directory is a run

    def identity(self, index: Index, tested: Index | None) -> RunData:
        """What identifies the images of a run, and where they lie.

        Images that the run was started with keep their names of then, also where they have been moved since.
        """
        saved = read_record(self, RunData)
        identity: dict[str, Any] = {}
        for prefix, images in (("", index), ("knn_", tested)):
            if images is not None:
                facts = {"sources": images.sources, "images": len(images), "digest": images.digest}
                if saved is not None and images.has_digest(getattr(saved, f"{prefix}digest")):
                    facts |= {name: getattr(saved, prefix + name) for name in ("sources", "digest")}
                identity |= {prefix + name: fact for name, fact in facts.items()}
        return RunData(**identity)

    def check_data(self, data: RunData) -> None:
        """Refuse a run on other data, and say in what they differ."""
        saved = None if self.read(CONFIG) is None else read_record(self, RunData)
        if saved is not None:
            pairs = {key: (getattr(saved, key), getattr(data, key)) for key in RunData.model_fields}
            self._refuse("data", {_DATA_NAMES.get(key, key): pair for key, pair in pairs.items() if pair[0] != pair[1]})

    def finish(self, summary: Summary) -> None:
        """Mark the run as finished; its last file."""
        write_record(self, summary)

    @property
    def finished(self) -> Summary | None:
        """The summary of a finished run; None while it is not finished."""
        return read_record(self, Summary)

    @contextmanager
    def lease(self, on_wait: Callable[[str], None] = print, times: LeaseTimes = TIMES) -> Iterator[str]:
        """Keep other drivers out for the length of a `with` block, see `held_lease`; its token is also `self.token`."""
        with held_lease(self, on_wait, times) as self.token:
            try:
                yield self.token
            finally:
                self.token = None

    def holds_lease(self, token: str) -> bool:
        """Whether the lease with this token is current: a worker asks before it publishes a checkpoint."""
        return holds_lease(self, token)

    def check_reached(self, token: str) -> None:
        """Refuse a worker that does not see the lease of the driver that started it, before it reads or writes.

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
            pairs = ((key, json.dumps(old), json.dumps(new)) for key, (old, new) in differences.items())
            lines = "\n".join(f"  {key}: {old} there, {new} now" for key, old, new in pairs)
            raise ValueError(
                f"{self.out} is a run with other {kind}:\n{lines}\n"
                f"Choose another --out for a new run, or the {kind} it was started with to resume."
            )
