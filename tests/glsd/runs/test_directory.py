import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pyarrow.fs
import pytest

from glsd.config import Config, DataConfig
from glsd.data.index import build_index
from glsd.runs.checkpoints import save_checkpoint
from glsd.runs.directory import RunDirectory
from glsd.runs.lease import TIMES, LeaseTimes, read_holder
from glsd.runs.log import RunLog, read_metrics
from glsd.runs.records import LEASE, RunData, Summary, read_record, write_record
from glsd.storage.folder import Folder
from glsd.storage.uris import joined
from tests.glsd.data.encoding import write_jpegs

DATA = RunData(sources=["photos"], images=2624, digest="0123abcd")
SUMMARY = Summary(
    config_digest="89ef", steps=40, images_seen=1280, loss=3.25, knn=0.431, timm="import timm", timm_difference=0.0
)
QUICK = LeaseTimes(heartbeat_s=0.05, grace_s=0.2, lapse_s=0.3, settle_s=0.05)
PATIENT = QUICK._replace(lapse_s=60)
ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["local", "object store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunDirectory]:
    if request.param == "local":
        yield RunDirectory(tmp_path / "runs" / "mine")
        return
    memory = fsspec.filesystem("memory")
    yield RunDirectory("bucket/runs/mine", pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(memory)))
    memory.rm("/", recursive=True)


def test_a_new_directory_becomes_the_run_and_the_same_start_goes_on_in_it(run: RunDirectory) -> None:
    run.claim(Config(), DATA)
    run.claim(Config(), DATA)
    saved = json.loads(run.read("environment.json") or b"")
    assert saved["packages"]["torch"]
    assert set(saved) == {"python", "platform", "packages", "git_commit"}


def test_other_settings_are_refused_with_every_key_that_differs_and_both_values(run: RunDirectory) -> None:
    run.claim(Config(), DATA)
    other = Config().with_overrides({"optim.epochs": 200, "augment.local_sizes": [64]})
    with pytest.raises(ValueError) as refusal:
        run.claim(other, DATA)
    assert str(refusal.value).splitlines() == [
        f"{run.out} is a run with other settings:",
        "  augment.local_sizes: [96] there, [64] now",
        "  optim.epochs: 300 there, 200 now",
        "Choose another --out for a new run, or the settings it was started with to resume.",
    ]


def test_other_data_are_refused_with_what_changed(run: RunDirectory) -> None:
    run.check_data(DATA)  # it is no run yet
    run.claim(Config(), DATA)
    with pytest.raises(ValueError) as refusal:
        run.check_data(DATA.model_copy(update={"digest": "4567", "images": 2625}))
    names = "digest of all names and sizes"
    assert f'  images: 2624 there, 2625 now\n  {names}: "0123abcd" there, "4567" now\n' in str(refusal.value)
    assert "sources" not in str(refusal.value)
    with pytest.raises(ValueError, match="other data"):
        run.claim(Config(), DATA.model_copy(update={"images": 2625}))


def test_moved_and_copied_data_are_those_of_the_run_and_other_names_and_sizes_are_not(
    run: RunDirectory, tmp_path: Path
) -> None:
    write_jpegs(tmp_path, "train/frog/1.jpg", "train/toad/2.jpg", "test/frog/3.jpg", "test/toad/4.jpg")

    def identity(root: Path) -> RunData:
        train, test = (build_index(root / name, DataConfig()) for name in ("train", "test"))
        return run.identity(train, test)

    run.claim(Config(), identity(tmp_path))
    moved = Path(shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name} moved"), copy_function=shutil.copy))
    assert identity(moved) == identity(tmp_path)
    assert identity(moved).knn_sources == [str(tmp_path / "test")]
    run.claim(Config(), identity(moved))
    (moved / "test/frog/3.jpg").rename(moved / "test/frog/5.jpg")
    names = "digest of all names and sizes of the tested images"
    with pytest.raises(ValueError, match=rf'other data:\n  knn_sources: .*\n  {names}: "\w+" there, "\w+" now\n'):
        run.claim(Config(), identity(moved))
    (moved / "train/frog/1.jpg").write_bytes(b"of another size")
    with pytest.raises(ValueError, match=r'  digest of all names and sizes: "\w+" there, "\w+" now\n'):
        run.claim(Config(), identity(moved))


def test_a_run_that_was_begun_with_absolute_names_and_times_has_its_data_while_they_are_unchanged(
    run: RunDirectory, tmp_path: Path
) -> None:
    write_jpegs(tmp_path, "frog/1.jpg", "toad/2.jpg")
    index = build_index(tmp_path, DataConfig())
    run.claim(Config(), RunData(sources=[str(tmp_path)], images=2, digest=index.key))
    run.claim(Config(), run.identity(index, None))
    os.utime(tmp_path / "frog/1.jpg", ns=(1, 1))
    with pytest.raises(ValueError, match="other data"):
        run.claim(Config(), run.identity(build_index(tmp_path, DataConfig()), None))


def test_a_folder_with_other_files_is_refused_and_left_alone(run: RunDirectory) -> None:
    run.write("thesis.tex", b"\\begin{document}")
    with pytest.raises(ValueError, match=r"holds thesis\.tex but no config\.yaml, so it is not a run"):
        run.claim(Config(), DATA)
    assert run.read("config.yaml") is None


@pytest.mark.parametrize(
    ("out", "source", "is_refused"),
    [
        ("photos/run", "photos", True),
        ("photos/run", "link", True),
        ("link/run", "photos", True),
        ("photos_run", "photos", False),
        ("photos", "photos/of_one_class", False),
        ("s3://bucket/photos/run?region=eu-west-1", "s3://bucket/photos?region=eu-west-1", True),
        ("s3://bucket/runs/run?region=eu-west-1", "s3://bucket?region=eu-west-1", True),
        ("s3://bucket/runs/run?region=eu-west-1", "s3://bucket/photos?region=eu-west-1", False),
        ("photos/run", "s3://bucket?region=eu-west-1", False),
        ("photos/run", "{elsewhere,photos}", True),
        ("photos/run", "photos{1..3}", False),
        ("photos/run", "file://{folder}/photos", True),
        ("file://{folder}/photos/run", "photos", True),
        ("photos/run", "file://{folder}/photo", False),
    ],
)
def test_a_folder_within_the_images_is_refused(
    out: str, source: str, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("link").symlink_to("photos")
    with pytest.raises(ValueError, match="lies within") if is_refused else nullcontext():
        Folder(out.replace("{folder}", str(tmp_path))).check_apart(
            ["elsewhere", source.replace("{folder}", str(tmp_path))]
        )


def test_a_folder_named_with_credentials_is_refused_without_them() -> None:
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as refusal:
        RunDirectory("s3://AKIA:hidden@bucket/runs/mine?region=eu-west-1")
    assert "hidden" not in str(refusal.value)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        RunDirectory(tmp_path / "mine").claim(Config(), DATA)


def test_a_start_that_was_killed_before_its_config_was_written_starts_anew(run: RunDirectory) -> None:
    run.write("data.json", b'{"index": "of an ear')
    run.write("lease.json", b"{}")
    run.claim(Config(), DATA)
    assert read_record(run, RunData) == DATA


def test_a_config_that_is_not_ours_is_named(run: RunDirectory) -> None:
    run.write("config.yaml", b"lerning_rate: 3\n")
    with pytest.raises(ValueError, match=r"config\.yaml is not a configuration of this version of glsd"):
        run.claim(Config(), DATA)


def test_a_run_is_named_as_the_last_part_of_its_path(tmp_path: Path) -> None:
    run = RunDirectory(f"{tmp_path}/runs/größe 1/")
    assert (run.path, run.name) == (str(tmp_path / "runs/größe 1"), "größe 1")
    assert run.ascii_name == "gr%C3%B6%C3%9Fe 1"
    uri = RunDirectory((tmp_path / "runs" / "mine").as_uri())
    assert (uri.path, uri.name, uri.is_local) == (str(tmp_path / "runs/mine"), "mine", True)
    for nameless in ("", "/"):
        with pytest.raises(ValueError, match="must name a folder inside another folder or a bucket"):
            RunDirectory(nameless)
    with pytest.raises(ValueError, match="nowhere"):
        RunDirectory("nowhere://bucket/run")


def test_a_uri_names_the_same_folder_for_the_run_and_for_its_checkpoints(tmp_path: Path) -> None:
    for name in ("a b", "100% ö", "a%20b", "c?d#e"):
        (tmp_path / name).mkdir()
        uri = joined((tmp_path).as_uri(), name)
        save_checkpoint(uri, 1, {}, {})
        assert RunDirectory(uri).path == str(tmp_path / name)
        assert list(RunDirectory(uri).sizes()) == ["checkpoints"]


def test_a_location_is_the_same_folder_wherever_a_process_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("runs/mine/")
    assert (run.out, run.location) == ("runs/mine", str(tmp_path / "runs/mine"))
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(run)).location == run.location
    assert RunDirectory((tmp_path / "a b").as_uri()).location == str(tmp_path / "a b")
    uri = "s3://bucket/runs/mine?region=us-east-1"
    assert RunDirectory(uri.replace("mine?", "mine/?")).location == uri


def test_a_run_is_finished_when_its_summary_is_there(run: RunDirectory) -> None:
    assert run.finished is None
    run.finish(SUMMARY)
    assert run.finished == SUMMARY


def test_a_full_disk_leaves_the_last_good_file(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "mine")
    run.finish(SUMMARY)
    limited = (
        "import resource, signal; from glsd.runs.directory import RunDirectory;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        f"RunDirectory({str(tmp_path / 'mine')!r}).write('summary.json', bytes(10_000))"
    )
    answer = _python(limited).communicate()[1]
    assert "File too large" in answer
    assert run.finished == SUMMARY


def test_a_lease_lasts_as_long_as_its_block_even_when_that_fails(run: RunDirectory) -> None:
    tokens = list[str]()

    def interrupted() -> None:
        with run.lease(times=QUICK) as token:
            tokens.append(token)
            assert run.token == token
            assert run.holds_lease(token)
            assert not run.holds_lease("of another start")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert run.token is None
    assert not run.holds_lease(tokens[0])
    assert run.read(LEASE) is None


def test_a_lease_takes_folders_that_it_made_and_nobody_used_away_again(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="nowhere does not exist"),
        RunDirectory(tmp_path / "runs/typo").lease(times=QUICK),
    ):
        raise ValueError("nowhere does not exist")
    assert list(tmp_path.iterdir()) == []
    with RunDirectory(tmp_path / "runs/one").lease(times=QUICK):
        (tmp_path / "runs/another").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["another"]
    with RunDirectory(tmp_path / "runs/another").lease(times=QUICK):
        pass
    with RunDirectory(tmp_path / "runs/used").lease(times=QUICK):
        (tmp_path / "runs/used/config.yaml").touch()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["another", "used"]


def test_a_lease_keeps_beating(run: RunDirectory) -> None:
    with run.lease(times=QUICK):
        first = read_holder(run)
        assert first is not None
        deadline = time.monotonic() + 60
        while (later := read_holder(run)) in (None, first) and time.monotonic() < deadline:  # None: half written
            time.sleep(0.02)
        assert later is not None
        assert later.model_copy(update={"heartbeat_ns": first.heartbeat_ns}) == first
        assert later.heartbeat_ns > first.heartbeat_ns


def test_every_heartbeat_is_of_the_same_length(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "mine")
    with run.lease(times=QUICK):
        sizes, beats = set[int](), set[int]()
        deadline = time.monotonic() + 60
        while len(beats) < 5 and time.monotonic() < deadline:
            if holder := read_holder(run):
                beats.add(holder.heartbeat_ns)
            if data := run.read(LEASE):
                sizes.add(len(data))
    assert len(beats) == 5
    assert len(sizes) == 1


def test_a_lease_that_is_replaced_while_it_is_read_is_read_again(run: RunDirectory) -> None:
    with run.lease(times=QUICK._replace(heartbeat_s=60)) as token:
        whole = run.read(LEASE) or b""
        run.write(LEASE, whole[:-20])
        mend = threading.Timer(0.05, run.write, (LEASE, whole))
        mend.start()
        assert run.holds_lease(token)
        mend.join()


def test_a_worker_can_ask_for_its_drivers_lease(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "mine")
    with run.lease(times=QUICK):
        there = pickle.loads(pickle.dumps(run))
        assert there.holds_lease(there.token)
    assert not there.holds_lease(there.token)


def test_a_second_start_is_refused_while_the_first_lives_and_takes_over_after_its_death(tmp_path: Path) -> None:
    run, waits = RunDirectory(tmp_path / "mine"), list[str]()
    holder = _python(
        "import time; from glsd.runs.directory import RunDirectory\n"
        f"with RunDirectory({str(tmp_path / 'mine')!r}).lease(): print('held', flush=True); time.sleep(600)"
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lease = read_holder(run)
        assert lease is not None
        with pytest.raises(ValueError) as refusal, run.lease(waits.append, QUICK):
            pass
        assert str(refusal.value) == (
            f"{run.out} is in use by process {holder.pid} on host {lease.host} since {lease.since}; "
            "wait for its end, stop it, or choose another --out"
        )
        assert waits == []
    finally:
        holder.kill()
    # Not waited for, the killed process is a zombie: its id still exists.
    while Path(f"/proc/{holder.pid}/stat").exists() and ") Z " not in Path(f"/proc/{holder.pid}/stat").read_text():
        time.sleep(0.01)
    with run.lease(waits.append, QUICK._replace(grace_s=3.0, settle_s=TIMES.settle_s)) as token:
        assert run.holds_lease(token)
        assert not run.holds_lease(lease.token)
    holder.communicate()
    assert len(waits) == 1
    assert f"process {holder.pid}, which used {run.out}, is gone; waiting" in waits[0]


def test_a_lease_that_a_dead_process_of_this_host_left_is_taken_over(run: RunDirectory) -> None:
    with run.lease(times=QUICK):
        lease = read_holder(run)
    assert lease is not None
    of_before = {"machine": "boot 1", "process_start": "77"}  # an earlier version of glsd wrote these as well
    run.write(LEASE, json.dumps(lease.json_values() | {"heartbeat_ns": 0} | of_before).encode())
    with run.lease(times=QUICK) as token:
        assert run.holds_lease(token)


def test_a_child_that_outlives_its_driver_does_not_keep_the_lease(tmp_path: Path) -> None:
    driver = _python(
        "import os, signal, subprocess, time; from glsd.runs.directory import RunDirectory\n"
        f"with RunDirectory({str(tmp_path / 'mine')!r}).lease():\n"
        "    started = subprocess.Popen(['sleep', '600'], close_fds=False)\n"
        "    forked = os.fork() or time.sleep(600)\n"
        "    print(started.pid, forked, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert driver.stdout is not None
    children = [int(pid) for pid in driver.stdout.readline().split()]
    try:
        driver.wait()
        with RunDirectory(tmp_path / "mine").lease(times=QUICK._replace(heartbeat_s=60)) as token:
            assert RunDirectory(tmp_path / "mine").holds_lease(token)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
    driver.communicate()


def test_a_silent_host_loses_its_lease_and_one_that_beats_keeps_it(run: RunDirectory) -> None:
    with run.lease(times=QUICK):
        lease = read_holder(run)
    assert lease is not None
    elsewhere, waits = lease.model_copy(update={"host": "node7", "heartbeat_ns": 10**18}), list[str]()
    write_record(run, elsewhere)
    with run.lease(waits.append, QUICK):
        pass
    assert waits == [
        f"{run.out} was last used by process {os.getpid()} on host node7; waiting 0 s to see whether it still runs"
    ]

    write_record(run, elsewhere)
    beat = elsewhere.model_copy(update={"heartbeat_ns": 10**18 + 3})
    beating = threading.Timer(0.2, write_record, (run, beat))
    beating.start()
    with pytest.raises(ValueError, match=r"in use by process .* on host node7"), run.lease(waits.append, PATIENT):
        pass
    beating.join()


def test_of_two_starts_at_the_same_time_one_goes_on(run: RunDirectory) -> None:
    together, decided = threading.Barrier(2), threading.Barrier(2)

    def start() -> str:
        together.wait(60)
        try:
            with run.lease(times=QUICK._replace(settle_s=0.5)):
                decided.wait(60)
                return "held"
        except ValueError as error:
            decided.wait(60)
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = [start.result() for start in [pool.submit(start), pool.submit(start)]]
    (refusal,) = (outcome for outcome in outcomes if outcome != "held")
    assert "is in use by process" in refusal


def test_a_lease_that_was_taken_over_is_not_given_back_by_its_old_holder(run: RunDirectory) -> None:
    with run.lease(times=QUICK) as token:
        lease = read_holder(run)
        assert lease is not None
        other = lease.model_copy(update={"token": "theirs"})
        write_record(run, other)
        time.sleep(3 * QUICK.heartbeat_s)
        write_record(run, other)  # once more, for a beat that was under way
        time.sleep(3 * QUICK.heartbeat_s)
        assert not run.holds_lease(token)
    assert run.holds_lease("theirs")


def test_metrics_are_read_back_in_order_and_infinities_as_none(run: RunDirectory) -> None:
    with RunLog(run) as log:
        log.log(10, {"loss": 5.5, "images_per_s": 214.0})
        log.log(20, {"loss": float("inf")})
    assert read_metrics(run) == [{"step": 10, "loss": 5.5, "images_per_s": 214.0}, {"step": 20, "loss": None}]


def test_an_unwritten_log_is_empty(run: RunDirectory) -> None:
    assert read_metrics(run) == []


def test_a_resumed_run_forgets_the_metrics_after_its_checkpoint(run: RunDirectory) -> None:
    with RunLog(run) as log:
        for step in (10, 20, 30):
            log.log(step, {"loss": float(step)})
    with RunLog(run, resume_step=20) as log:
        log.log(30, {"loss": 3.5})
    assert read_metrics(run) == [{"step": 10, "loss": 10.0}, {"step": 20, "loss": 20.0}, {"step": 30, "loss": 3.5}]


@pytest.mark.parametrize("torn", [b'{"step": 20, "lo', b"\0\0\0\0", b'{"step": 20, "loss": 1.0}'])
def test_a_torn_last_line_is_dropped(run: RunDirectory, torn: bytes) -> None:
    run.write("metrics.jsonl", b'{"step": 10, "loss": 5.5}\n' + torn)
    assert read_metrics(run) == [{"step": 10, "loss": 5.5}]
    with RunLog(run, resume_step=20) as log:
        log.log(30, {"loss": 3.5})
    assert read_metrics(run) == [{"step": 10, "loss": 5.5}, {"step": 30, "loss": 3.5}]


def test_metrics_survive_a_kill_where_the_run_is_local(tmp_path: Path) -> None:
    killed = _python(
        "import os, signal; from glsd.runs.directory import RunDirectory; from glsd.runs.log import RunLog\n"
        f"log = RunLog(RunDirectory({str(tmp_path / 'mine')!r})); log.log(10, {{'loss': 5.5}})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed.communicate()
    assert read_metrics(tmp_path / "mine") == [{"step": 10, "loss": 5.5}]


def test_growing_files_reach_an_object_store_at_each_sync(tmp_path: Path) -> None:
    store = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    run = RunDirectory("runs/mine", store)
    log = RunLog(run)
    log.log(10, {"loss": 5.5})
    assert read_metrics(run) == []
    log.sync()
    assert read_metrics(run) == [{"step": 10, "loss": 5.5}]
    log.log(20, {"loss": 5.0})
    log.close()
    assert read_metrics(run)[-1] == {"step": 20, "loss": 5.0}
    assert [path.name[:6] for path in (tmp_path / "runs" / "mine" / "tensorboard").iterdir()] == ["events"]


def test_skipped_images_are_listed_once_and_those_after_the_checkpoint_are_met_again(run: RunDirectory) -> None:
    with RunLog(run) as log:
        log.skip(10, 7, "a b/ä.jpg", "truncated")
        log.skip(20, 7, "a b/ä.jpg", "truncated")
        log.skip(20, 9, "c.png", "empty file")
        assert log.num_skipped == 2
    with RunLog(run, resume_step=10) as log:
        assert log.num_skipped == 1  # as when step 10 was logged, or the share of images read so far would be too high
        log.skip(20, 7, "a b/ä.jpg", "truncated")
        log.skip(20, 9, "c.png", "empty file")
    assert [json.loads(line) for line in (run.read("skipped.jsonl") or b"").splitlines()] == [
        {"step": 10, "image_id": 7, "uri": "a b/ä.jpg", "reason": "truncated"},
        {"step": 20, "image_id": 9, "uri": "c.png", "reason": "empty file"},
    ]


def test_tensorboard_events_name_the_metrics(tmp_path: Path) -> None:
    with RunLog(RunDirectory(tmp_path / "mine")) as log:
        log.log(10, {"loss_local": 5.5})
    (events,) = (tmp_path / "mine" / "tensorboard").iterdir()
    assert b"loss_local" in events.read_bytes()


def _python(program: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
