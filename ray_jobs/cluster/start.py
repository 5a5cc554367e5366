"""Which Ray runs a job: the connected one, that of RAY_ADDRESS, or one started for the job."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar
from urllib.parse import urlsplit

import ray
import ray.data
from ray._private import ray_constants

from ray_jobs.cluster.deaths import DEATHS, death
from ray_jobs.cluster.stopping import sigterm_ends
from ray_jobs.settings import JobSettings, num_cores

Started = TypeVar("Started")

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune would print tables of its own
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin at a barrier would take the cores from the stream
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # glsd has one progress line of its own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same on workers as for the user
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # each report waits for the next check
}
_LISTED: Final = "RAY_TRAIN_ENABLE_STATE_TRACKING"
"""Has the dashboard list trainings, by an actor that stays."""


@contextmanager
def cluster(settings: JobSettings) -> Iterator[None]:
    """The Ray that is already connected, that of RAY_ADDRESS, or one started on this machine for this job.

    Raises:
        ValueError: RAY_ADDRESS is not the address of a cluster, or the path of Ray's sockets would be too long.
        ConnectionError: no Ray answers at RAY_ADDRESS, or this machine is not a node of it.
        ProcessDied: while it was used.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().print_on_execution_start = False
    try:
        if ray.is_initialized():
            os.environ.setdefault(_LISTED, "1")
            yield
        elif not starts_own_ray():
            os.environ.setdefault(_LISTED, "1")
            address = os.environ["RAY_ADDRESS"]
            check_address(address)
            _connect(address)
            with _ended():
                yield
        else:
            _check_socket_paths(settings.dashboard)
            port = _dashboard_port() if settings.dashboard else None
            with _environment(_of_own_ray(port)):
                _start(port)
                with _ended():
                    yield
    except DEATHS as error:
        raise death(error) from None


def starts_own_ray() -> bool:
    """Whether `cluster` would start a Ray on this machine, which is its only node."""
    return not ray.is_initialized() and os.environ.get("RAY_ADDRESS", "") in ("", "local")


_LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_ANSWER_S: Final = 10
_CHECK_S = 50
"""For the whole check: Ray bounds only the connection."""
_OTHERWISE = "start a cluster with `ray start --head`, or unset RAY_ADDRESS and glsd starts a Ray of its own"


def check_address(address: str) -> None:
    """Refuse a RAY_ADDRESS where no Ray answers, before `ray.init` waits minutes for it and ignores Ctrl-C.

    A process of its own asks first, as it can be ended at any time and what Ray logs stays in it.

    Raises:
        ValueError: it is neither HOST:PORT nor `auto`.
        ConnectionError: nothing answers within half a minute, or what answers is not a Ray that this one understands.
    """
    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"RAY_ADDRESS {address} is that of a dashboard, which takes jobs from `ray job submit` and belongs in "
            "RAY_API_SERVER_ADDRESS; set RAY_ADDRESS to HOST:PORT of the cluster, such as HOST:6379, or unset it"
        )
    if address.startswith("ray://"):
        raise ValueError(
            f"RAY_ADDRESS {address} is that of Ray Client, through which Ray does not train; run glsd on a node of "
            "the cluster with RAY_ADDRESS=auto, or hand it over with `ray job submit`"
        )
    if address != "auto":
        try:
            parts = urlsplit(f"//{address}")
            place = parts.hostname, parts.port
        except ValueError:
            place = None, None
        if None in place or parts.netloc != address:
            raise ValueError(f"RAY_ADDRESS {address!r} is neither HOST:PORT, such as 10.0.0.1:6379, nor auto")
        try:
            socket.create_connection(place, _ANSWER_S).close()
        except OSError as error:
            raise ConnectionError(f"nothing answers at RAY_ADDRESS {address} ({error}); {_OTHERWISE}") from None
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "status", "--address", address]
    bounded = os.environ | {"RAY_py_gcs_connect_timeout_s": str(_ANSWER_S)}
    try:
        asked = subprocess.run(
            command, env=bounded, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=_CHECK_S
        )
    except subprocess.TimeoutExpired:
        raise ConnectionError(f"what is at RAY_ADDRESS {address} gives no answer; {_OTHERWISE}") from None
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        raise ConnectionError(f"no Ray answers at RAY_ADDRESS {address}; {_OTHERWISE}. Ray says: {said}")


def _connect(address: str) -> None:
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConnectionError(
            f"a Ray answers at RAY_ADDRESS {address}, but it has no node on this machine; run glsd on a node of it, "
            "make this machine one with `ray start --address=HOST:PORT`, or hand the job over with `ray job submit`. "
            f"Ray says: {error.__cause__ or error}"
        ) from None


_LONGEST_SOCKET_PATH: Final = 103 if sys.platform == "darwin" else 107
"""Bytes that the operating system takes."""


def _check_socket_paths(dashboard: bool) -> None:
    """Refuse a folder for temporary files in which the paths of Ray's sockets would be too long."""
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ or sys.platform == "darwin" else "TMPDIR"
    folder = os.environ.get(variable, "/tmp")
    longest = "dash_MetricsHead" if dashboard else "plasma_store"
    below = f"/ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/{longest}"
    room = _LONGEST_SOCKET_PATH - len(below)
    if (length := len(os.fsencode(folder))) > room:
        raise ValueError(
            f"{variable} {folder} is {length} bytes long, and Ray's sockets have room for {room} in it; set RAY_TMPDIR "
            "to a shorter folder, such as RAY_TMPDIR=/tmp"
        )


def _of_own_ray(dashboard_port: int | None) -> dict[str, str | None]:
    """The environment of a Ray that is started for a job.

    What frees the resources of a killed trial asks the dashboard whether the trial lives. It must be this Ray's
    dashboard, as others do not know the trial. Without its address Ray would look for one, and give up where there are
    several.
    """
    return {
        _LOOPBACK: "0",
        "RAY_API_SERVER_ADDRESS": None if dashboard_port is None else f"http://127.0.0.1:{dashboard_port}",
        _LISTED: os.environ.get(_LISTED, "0" if dashboard_port is None else "1"),
        # Where the machine of such a Ray is taken away, the job's driver goes too.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"),
    }


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set the environment variables, and remove those of None; afterwards they are as they were."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set(values)
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})


def _start(dashboard_port: int | None) -> None:
    """A Ray of this machine."""
    with _on_loopback():
        insist(
            partial(
                ray.init,
                address="local",
                # One slot more than cores: the training worker takes a hair of one, which would cost the stream a task.
                num_cpus=num_cores() + 1,
                include_dashboard=dashboard_port is not None,
                dashboard_port=dashboard_port,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Within it a Ray starts at 127.0.0.1, as it does on macOS and Windows, which nobody else reaches.

    On Linux it would listen at all addresses of the machine, and whoever connects may run code. Its processes read the
    variable; this one has read it when Ray was imported, so it is told by the constant that Ray made of it.
    """
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def insist(start: Callable[[], Started]) -> Started:
    """What `start` returns, which starts a node of Ray. Ray waits 30 s for it, which a busy machine may exceed; then it
    is started again.

    Raises:
        RuntimeError: three starts took too long. Other errors of `start` pass.
    """
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            # When the 30 s are over, Ray raises the class Exception itself (ray/_private/node.py). No narrower class
            # catches that, so its type and text are asked, and every other error passes.
            if type(error) is not Exception or "timed out during startup" not in str(error):
                raise
    raise RuntimeError("Ray did not start within 30 s, three times: the machine is too busy; rerun the command")


def _dashboard_port() -> int:
    """Ray's usual port, or the next free one."""
    for port in range(8265, 8365):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise ValueError("the ports 8265 to 8364 are all taken; Ray's dashboard needs one of them")


@contextmanager
def _ended() -> Iterator[None]:
    """End the connection to Ray afterwards, also at SIGTERM."""
    with sigterm_ends():
        try:
            yield
        finally:
            ray.shutdown()
