"""The command line: help, errors, and the verbs that need no cluster."""

import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from glsd.config import Config
from glsd.encoder.encoder import untrained_encoder
from glsd.experiments import load_config
from glsd.record import documentation
from glsd.weights.timm import export_backbone
from ray_jobs.cli.main import main
from ray_jobs.cli.verbs import VERBS
from ray_jobs.settings import JobSettings
from tests.glsd.runs.sweeps import ATrial, a_sweep
from tests.images import labelled_folder


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "eine Katze ö.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)).save(path)
    return path


def test_the_help_of_a_verb_has_the_documentation_and_the_preset_s_value_of_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "demo", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for key, text in documentation(Config).items():
        assert f"--{key}" in shown
        assert text.split(" (")[0][:40] in shown
    assert (
        "Name of a timm model with a feature map or patch tokens; the default is Swin-T/7 (Sec. 4.2; Table 1). "
        "(default: test_resnet)" in shown
    )
    assert "--knn_data" in shown


def test_a_description_in_the_help_has_no_line_breaks_of_the_code():
    assert not [name for name, field in JobSettings.model_fields.items() if "\n" in str(field.description)]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    preset = ["demo"] if VERBS[verb][1] == "" else []
    with pytest.raises(SystemExit) as ended:
        main([verb, *preset, "--help"])
    assert ended.value.code == 0
    assert f"Example: glsd {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "there is no verb 'pretrian', did you mean pretrain? glsd has demo, "),
        (["xyz"], "there is no verb 'xyz'; glsd has demo, "),
        (["pretrain"], "needs a preset first: demo, food101, imagenet100"),
        (["config", "papre"], "did you mean 'paper'"),
        (["config", "demo", "--optim.batch_size", "48"], "use data.unit_size 24"),
        (["config", "demo", "--augment.num_local_crops", "0"], "without local crops both it and"),
        (["preview", "nowhere.jpg"], "nowhere.jpg cannot be read"),
        (["preview", "cat.png", "--out", "./cat.png"], "--out ./cat.png is the image itself; name another file"),
        (
            ["config", "demo", "--optim.epochs", "0"],
            "optim.epochs: Input should be greater than or equal to 1, not '0'",
        ),
        (["config", "demo", "--optim.epochs"], "--optim.epochs needs a value"),
        (
            ["embed", "run", "--data", "a", "--data=b", "--out", "x"],
            "--data is given twice; give all its values after one",
        ),
        (["sweep", "threshold", "--seeds", "0", "--seeds", "1"], "--seeds is given twice"),
        (["config", "demo", "30"], "'30' belongs to no option"),
        (["pretrain", "demo", "--data", ".", "--out", "mine", "--worker", "2"], "did you mean '--workers'?"),
        (
            ["pretrain", "demo", "--data", ".", "--out", "mine", "--workers", "0"],
            "workers: 0 is neither a number of workers nor a range of them; write 4, or 1:4",
        ),
        (
            ["config", "small_data", "--data.unit_size", "24"],
            "optim.batch_size 512 is not a multiple of data.unit_size",
        ),
        (["config", "demo", "--optim.epochs=few"], "optim.epochs: Input should be a valid integer"),
        (["config", "demo", "--data.value_range", "10", "5"], "data: value_range must be [black, white]"),
        (["config", "demo", "--augment.local_sizes", "48", "32"], "augment"),
        (["pack", ".", "../shards", "--shard_mib", "0"], "--shard_mib must be 1 or more, not 0"),
        (["pretrain", "demo", "--data", "", "--out", "mine"], "--data: no data named; give a folder of images"),
        (["evaluate", "nowhere", "--data", "."], "nowhere is not a run"),
        (["evaluate", "nowhere", "--data", ".", "--out", "mine"], "mine lies within ."),
        (
            ["pretrain", "demo", "--data", "photos", "more", "--out", "more/runs/1"],
            "more/runs/1 lies within more",
        ),
        (["sweep", "threshold", "--data", "photos", "--out", "photos/sweep"], "photos/sweep lies within "),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_status_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert "pydantic" not in text


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["pretrain", "demo", "--data", "nowhere", "--out", "mine"], "--data"),
        (["pretrain", "demo", "--data", "images", "--knn_data", "nowhere", "--out", "mine"], "--knn_data"),
        (["evaluate", "backbone", "--data", "images", "--test", "nowhere"], "--test"),
    ],
)
def test_data_that_do_not_exist_are_named_with_their_option(arguments, option, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    labelled_folder(tmp_path / "images", 4)
    export_backbone(untrained_encoder(load_config("demo", {"model.backbone": "test_resnet"})), "backbone")
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.splitlines()[-1] == f"glsd: {option}: {tmp_path}/nowhere does not exist"


@pytest.mark.parametrize(
    ("arguments", "phase"),
    [
        (["convert", "nowhere.pth", "backbone"], "converting nowhere.pth"),
        (["export", "nowhere"], "exporting the backbone of nowhere"),
        (["report", "nowhere"], "reporting nowhere"),
        (["pretrain", "demo", "--data", "nowhere", "--out", "run"], "importing libraries\nindexing images"),
        (["embed", "nowhere", "--data", ".", "--out", "features.parquet"], "importing libraries"),
    ],
)
def test_a_verb_that_takes_long_says_what_it_does_before_it_is_done(arguments, phase, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.startswith(f"{phase}\nglsd: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrain", "demo", "--data", "{uri}", "--out", "run"],
        ["pretrain", "demo", "--data=photos", "--out={uri}"],
        ["pretrain", "demo", "--data", "photos", "--out", "run", "--init_from", "{uri}"],
        ["export", "{uri}", "--out", "backbone"],
        ["evaluate", "{uri}", "--data", "photos"],
        ["sweep", "learning_rate", "--base", "demo", "--data", "mine={uri}", "--out", "sweep"],
        ["report", "{uri}"],
        ["embed", "timm:resnet18", "--data", "photos", "--out", "{uri}"],
        ["pack", "{uri}", "shards"],
    ],
)
@pytest.mark.parametrize("uri", ["s3://AKIA:hidden@bucket/x", "s3://bucket/x?access_key=hidden"])
def test_credentials_in_a_uri_are_refused_before_anything_is_shown(arguments, uri, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([argument.replace("{uri}", uri) for argument in arguments])
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("glsd: a URI that begins with s3:// holds credentials")
    assert "hidden" not in text
    assert not list(tmp_path.iterdir())


def test_a_misspelt_setting_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["config", "demo", "--optim.epoch", "3"])
    assert ended.value.code == 2
    said = "glsd: there is no option '--optim.epoch'; did you mean '--optim.epochs'?\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (["--optim.epochs", "30", "--optim.epochs", "40"], "  epochs: 40"),
        (["--augment.local_sizes", "96", "--augment.local_sizes", "64"], "  local_sizes: [64]"),
        (["--augment.local_sizes", "--augment.num_local_crops", "--objective.setting", "vanilla"], "  local_sizes: []"),
        (["--data.image_column", "null"], "  image_column: 'null'"),
        (["--optim.base_lr", "1e-4"], "  base_lr: 0.0001"),
        (["--augment.local-sizes", "96", "64", "--augment.num_local_crops=4", "2"], "  num_local_crops: [4, 2]"),
        (["--data.value_range", "0", "4095"], "  value_range: [0.0, 4095.0]"),
        (["--model.norm_last_layer"], "  norm_last_layer: true"),
        (["--model.norm_last_layer", "--model.no_norm_last_layer"], "  norm_last_layer: false"),
    ],
)
def test_the_last_of_equal_flags_counts_and_names_stay_what_they_are(given, printed, capsys):
    main(["config", "small_data", *given])
    assert f"\n{printed}\n" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--data.fraction", "null"], ["--data.fraction=null"], ["--data.fraction", "None"]])
def test_no_value_is_null_on_the_command_line_too(given, capsys):
    main(["config", "demo", *given])
    assert "\n  fraction: null\n" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{metadata.version('glsd')}\n")


@pytest.mark.parametrize("arguments", [["config", "paper"], ["--help"]])
def test_a_reader_may_leave_before_the_end(arguments):
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "ray_jobs.cli.main", *arguments]
    ended = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (ended.stderr, ended.returncode) == ("", 128 + signal.SIGPIPE)


def shell(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`glsd` with these arguments and the shell's redirections behind them."""
    words = ["sh", "-c", f'"$@" {command}', "glsd", sys.executable, "-m", "ray_jobs.cli.main", *arguments]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_verb_does_its_work_with_streams_closed(closed, photograph, tmp_path):
    ended = shell(closed, "preview", str(photograph), "--out", str(tmp_path / "preview.png"))
    assert (ended.returncode, ended.stderr) == (0, "")
    with Image.open(tmp_path / "preview.png") as picture:
        picture.load()
    assert (shell(closed, "config", "demo").returncode, shell(closed, "config", "nothing").returncode) == (0, 2)


def test_a_verb_goes_on_when_nobody_reads_its_progress(tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    folder = a_sweep(tmp_path / "sweep", [ATrial({"seed": 0})])
    command = [sys.executable, "-m", "ray_jobs.cli.main", "report", str(folder)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=write_end, text=True)
    os.close(write_end)
    assert (ended.returncode, ended.stdout) == (0, f"{folder / 'report.html'}\n")


def test_a_full_disk_behind_the_progress_ends_no_verb(tmp_path):
    ended = shell("2>/dev/full", "report", str(a_sweep(tmp_path / "sweep", [ATrial({"seed": 0})])))
    assert (ended.returncode, ended.stdout) == (0, f"{tmp_path / 'sweep' / 'report.html'}\n")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_what_a_terminal_s_encoding_lacks_is_escaped(encoding):
    ended = shell("", "config", "paper", PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"\u0304" in ended.stdout
    assert Config.model_validate(yaml.safe_load(ended.stdout)) == load_config("paper")
    refused = shell("", "preview", "łąka.jpg", PYTHONIOENCODING=encoding)
    assert refused.stderr == r"glsd: \u0142\u0105ka.jpg cannot be read: No such file or directory" + "\n"


def test_preview_draws_an_image(photograph, tmp_path):
    main(["preview", str(photograph), "--out", str(tmp_path / "preview.png")])
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_tasks_that_decode_import_no_torch_and_ray_trains_controller_no_model():
    code = """
import sys
import ray_jobs.evaluation.decoding, ray_jobs.workers.stream
assert "torch" not in sys.modules
import ray_jobs.workers.fit
assert not {"timm", "torchvision", "glsd.models"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_and_config_import_no_torch_and_preview_no_ray(photograph, tmp_path):
    code = """
import sys
from ray_jobs.cli.main import main
verbs = ((["--help"], {"ray", "torch"}), (["config", "demo"], {"ray", "torch"}), (["preview", *sys.argv[1:]], {"ray"}))
for arguments, left_alone in verbs:
    try: main(arguments)
    except SystemExit as ended: assert not ended.code
    assert not left_alone & set(sys.modules), (arguments, left_alone & set(sys.modules))
"""
    arguments = [sys.executable, "-c", code, str(photograph), "--out", str(tmp_path / "p.png"), "--preset", "demo"]
    subprocess.run(arguments, check=True, capture_output=True)
    assert (tmp_path / "p.png").exists()
