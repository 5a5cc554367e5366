"""docs/slurm.sbatch on a SLURM cluster: a training that is longer than its time limit is queued again, and resumes."""

import re
import secrets
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.cluster.lab import Lab, lab, lack
from tests.cluster.store import start_store
from tests.cluster.test_lab import ENVIRONMENT
from tests.cluster.training import check_as_alone
from tests.documents import ROOT
from tests.ray_jobs.runs import brief_run, complete_checkpoints

LACK: Final = lack("munged", "slurmctld", "slurmd")
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.skipif(bool(LACK), reason=LACK)]

CONFIGURATION: Final = """
ClusterName=lab
SlurmctldHost=control({control})
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
StateSaveLocation=/run/slurm
SlurmdSpoolDir=/run/slurm
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
NodeName=node-1 NodeAddr={node_1} CPUs=2 State=UNKNOWN
NodeName=node-2 NodeAddr={node_2} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""
RUN: Final = brief_run(**{"optim.epochs": 24, "evaluation.knn_every_epochs": 0})
READING_S: Final = 0.25
"""How long the store takes for an answer: the run is longer than SLURM takes to end it."""
TIMEOUT_S: Final = 1800


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A host that controls, on which jobs are submitted, and two on which they run."""
    folder = tmp_path_factory.mktemp("slurm") / "lab"
    munge_key, token = secrets.token_bytes(128), secrets.token_hex(32)
    with lab(folder, ENVIRONMENT, ["control", "node-1", "node-2"]) as made:
        addresses = {name.replace("-", "_"): host.address for name, host in made.hosts.items()}
        for name, host in made.hosts.items():
            home = host.folder / "home"
            (home / "slurm.conf").write_text(CONFIGURATION.format(**addresses))
            (home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # of which no part is used
            (home / "munge.key").write_bytes(munge_key)
            (home / "munge.key").chmod(0o600)
            (home / ".ray").mkdir()
            (home / ".ray" / "auth_token").write_text(token)
            for profile in (".bashrc", ".profile"):
                with (home / profile).open("a") as lines:
                    lines.write("export SLURM_CONF=~/slurm.conf\n")
            daemon = "slurmctld" if name == "control" else "slurmd"
            munge = "munged --force --key-file=$HOME/munge.key --log-file=$HOME/munged.log"
            made.ssh(name, f"mkdir -p /run/munge /run/slurm; {munge}; {daemon} -L ~/{daemon}.log")
        yield made


def test_a_training_that_is_longer_than_the_time_limit_is_queued_again_and_ends_as_one_that_is_not(slurm: Lab) -> None:
    store = start_store(slurm, READING_S)
    home = slurm.hosts["control"].folder / "home"
    command = f"glsd pretrain run.yaml --data '{store.uri('flat')}' --out '{store.uri('run')}' --workers 2"
    script, changed = re.subn(
        r"^command=\(.*\)$", f"command=({command})", (ROOT / "docs/slurm.sbatch").read_text(), flags=re.M
    )
    assert changed == 1
    (home / "slurm.sbatch").write_text(script)
    for host in slurm.hosts.values():
        (host.folder / "home" / "run.yaml").write_text(RUN.to_yaml())

    slurm.ssh("control", "until sinfo --noheader --states=idle --format=%D | grep -qx 2; do sleep 1; done")
    job = slurm.ssh("control", "sbatch --parsable --output=glsd.log slurm.sbatch").strip()
    end, seen = time.monotonic() + TIMEOUT_S, list[str]()
    while not seen or seen[-1] not in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"):
        assert time.monotonic() < end
        told = slurm.ssh("control", f"scontrol show job {job}")
        (state,) = re.findall(r"JobState=(\w+)", told)
        if state not in seen[-1:]:
            seen.append(state)
        if "TimeLimit=04:00:00" in told and "Restarts=0" in told and complete_checkpoints(store.folder / "run"):
            # The limit is near, however long a busy machine took until here: SIGTERM comes two minutes before it.
            (minutes,) = re.findall(r"RunTime=00:(\d+):", told)
            slurm.ssh("control", f"scontrol update JobId={job} TimeLimit={int(minutes) + 3}")
        if state == "PENDING" and "Restarts=1" in told:  # for two minutes, by SLURM
            slurm.ssh("control", f"scontrol update JobId={job} StartTime=now TimeLimit=04:00:00", check=False)
        time.sleep(2)
    said = "".join(path.read_text() for path in slurm.folder.glob("node-*/home/glsd.log"))
    assert seen[-1] == "COMPLETED", said
    assert re.search(r"SIGTERM: a checkpoint is saved", said)
    assert re.search(r"stopped at step \d+ of 120, which is saved", said)
    assert re.search(r"resuming at step \d+ of 120", said)
    assert max(complete_checkpoints(store.folder / "run")) == 120
    check_as_alone(store.folder / "run", RUN, store.folder / "flat")
