"""A network of hosts with sshd on one machine, made of Linux namespaces: what `ray up` takes for machines of a lab.

A host has a network, processes, a name, a home, /tmp, /run and /dev/shm of its own. Its name leads to 127.0.1.1, as on
Debian, and there is no name server. The rest of the disk, with Python and glsd, is shared, but nothing that a test
writes is. The laptop, from which hosts are reached, is the network's own namespace. All of it ends with the process
that made it, however that ends: the laptop's first process waits for the end of its input, and takes all others along.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from tests.documents import ROOT

NETWORK: Final = "10.77.0"
LAPTOP: Final = f"{NETWORK}.1"
_PROGRAMS: Final = ("ip", "mount", "nsenter", "rsync", "ssh", "ssh-keygen", "sshd", "unshare")
_PATH: Final = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# A /tmp of its own, in which the places given as arguments are seen, and a /run of its own.
_OWN_FOLDERS: Final = """
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/sshd /run/machine
mount --rbind /tmp /run/machine
mount -t tmpfs tmpfs /tmp
for place; do
    case $place in /tmp/*) mkdir -p "$place"; mount --bind "/run/machine/${place#/tmp/}" "$place";; esac
done
umount --lazy /run/machine
"""
_LAPTOP: Final = f"""
{_OWN_FOLDERS}
ip link set lo up
ip link add lab type bridge
ip addr add {LAPTOP}/24 dev lab
ip link set lab up
echo up
exec cat
"""
_HOST: Final = f"""
name=$1 folder=$2 home=$3
shift 3
{_OWN_FOLDERS}
mkdir -p "$home"
mount --bind "$folder/home" "$home"
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/passwd" /etc/passwd
mount -t tmpfs -o size=2g tmpfs /dev/shm
hostname "$name"
exec "$(command -v sshd)" -D -e -f "$folder/sshd_config"
"""


def lack(*programs: str) -> str:
    """Why no lab can be made here whose hosts have these programs beside; empty if one can."""
    if os.geteuid():
        return "needs root"
    if missing := [program for program in (*_PROGRAMS, *programs) if shutil.which(program, path=_PATH) is None]:
        return f"needs the programs {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Host:
    """A machine of the lab."""

    name: str
    address: str
    folder: Path
    """Its home and its files for sshd."""
    process: "subprocess.Popen[str] | None" = None
    """Leads to its first process, while it has power."""


@dataclass
class Lab:
    """The laptop, and hosts by name."""

    folder: Path
    environment: Mapping[str, str]
    """Of all that runs on the hosts and the laptop, beside PATH and PYTHONPATH."""
    pid: int
    """The laptop's first process."""
    started: ExitStack
    """Processes of the laptop."""
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def key(self) -> Path:
        """The key for ssh."""
        return self.folder / "key"

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": _PATH, "PYTHONPATH": str(ROOT), **self.environment}

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "env", f"--chdir={self.home}"]

    @property
    def home(self) -> Path:
        """The laptop's."""
        return self.folder / "laptop"

    def start(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        """Start a command in the laptop's home, which ends with the lab at the latest."""
        options = {"text": True, "env": self._environment | {"HOME": str(self.home)}, **options}
        return self.started.enter_context(subprocess.Popen([*self._enter, *command], **options))

    def run(self, *command: str, check: bool = True, timeout: float = 600) -> str:
        """What a command on the laptop prints. Its end with another status than 0 is an error that shows this."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        printed, _ = process.communicate(timeout=timeout)
        assert not (check and process.returncode), f"{shlex.join(command)}:\n{printed}"
        return printed

    def ssh(self, name: str, command: str, *, check: bool = True) -> str:
        """What a command on a host prints."""
        options = "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectionAttempts=20"
        ssh = ["ssh", "-i", str(self.key), *(part for option in options for part in ("-o", option))]
        return self.run(*ssh, f"root@{self.hosts[name].address}", command, check=check)

    def add(self, name: str) -> None:
        """Make a host, and boot it."""
        number = 10 + len(self.hosts)
        host = Host(name, f"{NETWORK}.{number}", self.folder / name)
        home = self.folder / "home"  # where each host has its own
        (host.folder / "home").mkdir(parents=True)
        passwd = Path("/etc/passwd").read_text()
        (host.folder / "passwd").write_text(re.sub(r"(?m)^root:.*$", f"root:x:0:0:root:{home}:/bin/bash", passwd))
        (host.folder / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in self._environment.items()]
        for profile in (".bashrc", ".profile"):
            (host.folder / "home" / profile).write_text("".join(lines))
        for key in ("key", "key.pub"):
            shutil.copy(self.folder / key, host.folder)
        (host.folder / "sshd_config").write_text(
            f"ListenAddress {host.address}\nHostKey {host.folder}/key\nAuthorizedKeysFile {host.folder}/key.pub\n"
            f"StrictModes no\nPermitRootLogin yes\nPidFile none\nMaxStartups 50\n"
        )
        veth, address = f"v-{name}", f"{host.address}/24"
        self.run(
            "sh", "-ec", f"ip netns add {name}; ip link add {veth} type veth peer name eth0 netns {name}; "
            f"ip link set {veth} master lab; ip -n {name} link set lo up; ip -n {name} addr add {address} dev eth0; "
            f"ip -n {name} link set eth0 up; ip link set {veth} up; ip -n {name} route add default via {LAPTOP}",
        )  # fmt: skip
        self.hosts[name] = host
        self.boot(name)

    def boot(self, name: str) -> None:
        """Give a host power: it has no processes, and its home is as it was."""
        host = self.hosts[name]
        self.run("ip", "link", "set", f"v-{name}", "up")
        own = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        arguments = [name, str(host.folder), str(self.folder / "home"), *_seen(host.folder)]
        with (host.folder / "boot.log").open("ab") as log:
            booted = ["ip", "netns", "exec", name, *own, "sh", "-ec", _HOST, "sh", *arguments]
            host.process = self.start(*booted, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def cut_power(self, name: str) -> None:
        """End all processes of a host. Nobody hears of it, as its cable is pulled first."""
        host = self.hosts[name]
        self.run("ip", "link", "set", f"v-{name}", "down")
        assert host.process is not None
        (unshare,) = psutil.Process(host.process.pid).children()
        unshare.kill()
        host.process.wait()
        host.process = None


def _seen(*places: Path) -> list[str]:
    """The places under /tmp that a machine of the lab sees: these, Python and glsd."""
    return [str(place) for place in (ROOT, Path(sys.prefix), *places)]


@contextmanager
def lab(folder: Path, environment: Mapping[str, str], names: Sequence[str]) -> Iterator[Lab]:
    """A lab whose hosts have these names and addresses from 10.77.0.10 on.

    Args:
        folder: for homes and logs; the laptop sees it.
        environment: of what is run on the hosts and on the laptop.
        names: of the hosts.
    """
    (folder / "laptop").mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*own, "sh", "-ec", _LAPTOP, "sh", *_seen(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with ExitStack() as started:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            (first,) = psutil.Process(process.pid).children()
            made = Lab(folder, environment, first.pid, started)
            for name in names:
                made.add(name)
            yield made
        finally:
            process.kill()
            process.communicate()
