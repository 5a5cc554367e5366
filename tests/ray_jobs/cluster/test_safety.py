"""What a run on one machine shows to others: the addresses at which it listens, and what its files hold."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from tests.documents import SMALL_NETWORK, TINY
from tests.images import labelled_folder

pytestmark = pytest.mark.ray
SECRETS = {
    name: f"never-to-be-seen-{number:04d}"
    for number, name in enumerate(("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "HF_TOKEN"))
}


def listening(process: psutil.Process) -> set[tuple[str, str]]:
    """(program, address) of all sockets at which it and its descendants listen."""
    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            places = [place.laddr for place in one.net_connections("tcp") if place.status == psutil.CONN_LISTEN]
            found |= {(" ".join(one.cmdline())[:80], place.ip) for place in places}
        except psutil.NoSuchProcess:
            continue
    return found


def is_loopback(address: str) -> bool:
    ip = ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def test_a_run_listens_on_this_machine_only_and_its_files_hold_no_secrets(tmp_path: Path) -> None:
    labelled_folder(tmp_path / "photos", num_images=32)
    with tempfile.TemporaryDirectory(prefix="r") as rays:  # the paths of Ray's sockets must be short
        words = f"-m ray_jobs.cli.main pretrain small_data --data photos --out run {TINY} {SMALL_NETWORK}"
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with subprocess.Popen(
            [sys.executable, *shlex.split(words)],
            cwd=tmp_path,
            env=environment | SECRETS | {"RAY_TMPDIR": rays, "PYTHONPATH": str(Path.cwd())},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            tree, places = psutil.Process(process.pid), set[tuple[str, str]]()
            while process.poll() is None:
                places |= listening(tree)
                time.sleep(2)
            assert process.stdout is not None
            said = process.stdout.read()
        assert process.returncode == 0, said.decode()
        assert any("raylet" in program for program, _ in places)
        # torch's rendezvous of training workers knows no address to listen at.
        open_to_all = {program for program, address in places if not is_loopback(address)}
        assert {program.partition("Worker")[0] for program in open_to_all} <= {"ray::RayTrain"}
        written = [path for folder in (tmp_path, Path(rays)) for path in folder.rglob("*") if path.is_file()]
        assert any(path.name.startswith("worker-") for path in written), "Ray's logs are looked through"
        for content in (said, *(path.read_bytes() for path in written)):
            assert b"never-to-be-seen" not in content
