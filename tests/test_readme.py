"""The documents: their commands run or say why not, and the settings, files and places that they name exist."""

import re
from pathlib import Path

import pytest
from PIL import Image

from glsd.config import Config
from glsd.experiments import load_config, presets
from ray_jobs.cli.main import main, parse
from ray_jobs.cli.verbs import VERBS
from tests.documents import DOCUMENTS, NOT_RUN, ON_RAY, ROOT, WITHOUT_RAY, arguments, blocks, commands
from tests.images import labelled_folder, picture

GLSD = [command for command in commands() if "glsd " in command]
LONGEST_README = 90


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the commands name."""
    Image.fromarray(picture("rings", 0)).save(tmp_path / "photo.jpg")
    labelled_folder(tmp_path / "train", num_images=64)
    labelled_folder(tmp_path / "val", num_images=8)
    (tmp_path / "photos").symlink_to("train")
    (grid,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(grid)
    network = {"model.backbone": "test_convnext", "model.drop_path": 0.0}
    (tmp_path / "small.yaml").write_text(load_config("small_data").with_overrides(network).to_yaml())
    monkeypatch.setenv("GLSD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_documented_command_is_run_or_it_says_why_not():
    run = [*WITHOUT_RAY, *ON_RAY, *NOT_RUN]
    assert sorted(run) == commands()


@pytest.mark.parametrize("command", GLSD)
def test_a_documented_command_is_understood(command):
    parse(arguments(command))


@pytest.mark.parametrize("command", WITHOUT_RAY)
def test_a_documented_command_of_seconds_runs(command, folder, capsys):
    main(arguments(command, WITHOUT_RAY[command]))
    assert capsys.readouterr().out


def test_the_documents_show_a_command_of_every_verb():
    assert {arguments(command)[0] for command in GLSD} | {"demo"} == VERBS.keys()  # `make demo` is `glsd demo`


def named() -> list[tuple[str, str]]:
    """Documents, and words in backticks that they contain outside of blocks."""
    prose = {path: re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.S) for path in DOCUMENTS}
    return [
        (path.relative_to(ROOT).as_posix(), word)
        for path, text in prose.items()
        for span in re.findall(r"`([^`\n]+)`", text)
        for word in span.split()
    ]


def test_flags_that_the_documents_name_exist(capsys):
    for verb, (_, preset) in VERBS.items():
        with pytest.raises(SystemExit):
            parse([verb, *(["demo"] if preset == "" else []), "--help"])
    others = {"--version", "--logdir", "--labels", "--runtime-env-json"}  # the second is TensorBoard's, then Ray's
    known = {*re.findall(r"--[\w.]+", capsys.readouterr().out), *others}
    assert [(where, word) for where, word in named() if word.startswith("--") and word not in known] == []


def test_settings_that_the_documents_name_exist():
    settings = Config().flat()
    sections = {key.partition(".")[0] for key in settings if "." in key}
    keys = {(where, word) for where, word in named() if re.fullmatch(rf"({'|'.join(sections)})\.[a-z_]+", word)}
    assert len(keys) > 10
    files = ("json", "safetensors")
    assert [key for key in keys if key[1] not in settings and not key[1].endswith(files)] == []


def test_every_preset_is_documented():
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    assert [preset for preset in presets() if f"`{preset}`" not in text] == []


def anchors(path: Path) -> set[str]:
    """The places of a document that a link can name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [path.relative_to(ROOT).as_posix() for path in DOCUMENTS])
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            place = (path.parent / file).resolve() if file else path
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize("package", ["glsd", "ray_jobs"])
def test_the_map_of_a_package_names_every_room(package):
    text = (ROOT / package / "README.md").read_text("utf-8")
    rooms = [
        path for path in (ROOT / package).iterdir() if not path.name.startswith("_") and path.suffix in ("", ".py")
    ]
    named = [f"({path.name})" for path in rooms if path.is_dir() or path.suffix == ".py"]
    assert [room for room in named if room not in text] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= LONGEST_README


def test_names_of_a_map_stand_in_the_files_that_it_links():
    found = []
    for document in DOCUMENTS:
        listed = re.findall(r"((?:`[^`\n]+`(?:, | and )?)+) in \[[^\]]+\]\(([^)]+\.py)\)", document.read_text("utf-8"))
        found += [
            (document.parent / file, name) for names, file in listed for name in re.findall(r"`([A-Za-z_.]+)", names)
        ]
    assert len(found) > 50
    assert [(path.name, name) for path, name in found if name.split(".")[-1] not in path.read_text("utf-8")] == []


def test_modules_that_the_documents_name_exist():
    modules = [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts]
    names = {(where, word) for where, word in named() if re.fullmatch(r"[\w/]+\.py", word)}
    assert len(names) > 20
    assert [name for name in names if not any(module.endswith(f"/{name[1]}") for module in modules)] == []
