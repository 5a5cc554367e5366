"""Settings: presets, overrides, their errors, and their documentation."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from glsd.config import Config, LinearConfig, documentation, load_config, presets
from ray_jobs.cli import documented_yaml

SOURCE = r"(Sec\. [1-4A](\.\d)*|Table \d|Eq\. \d|Algorithm \d|authors' code|glsd)"


@pytest.mark.parametrize("name", presets())
def test_every_preset_survives_the_way_through_yaml(name, tmp_path):
    config = load_config(name)
    path = tmp_path / "mine.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert load_config(path).digest == config.digest


def test_the_paper_preset_has_the_papers_values():
    flat = load_config("paper").flat()
    expected = {
        "augment.global_size": 224,
        "augment.local_sizes": [96],
        "augment.num_local_crops": [8],
        "augment.vertical_flip": 0.0,
        "model.backbone": "swin_tiny_patch4_window7_224",
        "model.num_prototypes": 65536,
        "objective.setting": "geometric",
        "optim.batch_size": 512,
        "optim.epochs": 300,
        "optim.base_lr": 5e-4,
        "optim.teacher_momentum": 0.996,
    }
    assert {key: flat[key] for key in expected} == expected


def test_the_global_loss_has_weight_one_without_a_local_loss_and_one_half_with_it():
    assert load_config("paper", {"objective.setting": "vanilla"}).objective.weights == (1.0, 0.0)
    assert load_config("paper").objective.weights == (0.5, 0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.epoch", 3, "there is no setting 'optim.epoch'; did you mean 'optim.epochs'"),
        ("optim.epochs", "many", "optim.epochs: .* not 'many'"),
        ("objective.setting", "geometry", "objective.setting: .*'geometric'.* not 'geometry'"),
        ("data.unit_size", 24, "optim.batch_size 512 is not a multiple of data.unit_size 24; use data.unit_size 16"),
        ("augment.global_scale", (0.9, 0.4), "global_scale must be"),
        ("augment.num_local_crops", (8, 4), "one entry for each size"),
        ("augment.num_local_crops", (0,), "num_local_crops holds a 0; .* both it and local_sizes are empty lists"),
        ("augment.hue", 0.7, "augment.hue"),
        ("evaluation.crop", 257, "crop 257 is cut from resize 256"),
        ("data.value_range", (5.0, 5.0), "value_range must be"),
        ("optim.warmup_epochs", 301, "optim.warmup_epochs 301 is more than optim.epochs 300"),
    ],
)
def test_an_impossible_setting_is_an_error_that_names_its_key(key, value, message):
    with pytest.raises(ValueError, match=message):
        load_config("paper", {key: value})


def test_checkpoints_that_are_kept_are_some_that_are_written():
    settings = {"checkpoint_every_epochs": 2, "keep_every_epochs": 3}
    with pytest.raises(ValueError, match="keep_every_epochs 3 is not a multiple of checkpoint_every_epochs 2"):
        load_config("paper", settings)
    assert load_config("paper", settings | {"keep_every_epochs": 4}).keep_every_epochs == 4


def test_an_unknown_preset_and_an_unknown_key_in_a_file_are_named_with_the_nearest_spelling(tmp_path):
    with pytest.raises(ValueError, match="no preset 'papr'; did you mean 'paper'"):
        load_config("papr")
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lr: 1}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: there is no setting 'optim\.lr'"):
        load_config(path)


def test_every_setting_is_documented_and_its_sources_stand_last():
    assert documentation().keys() == Config().flat().keys()
    documents = documentation() | documentation(LinearConfig, "linear.")
    sourced = re.compile(rf"\S.+ \({SOURCE}(; {SOURCE})*\)\.")
    assert [key for key, text in documents.items() if not sourced.fullmatch(text)] == []


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_differences_name_exactly_the_settings_that_were_changed(epochs, drop_path):
    base = Config()
    changed = base.with_overrides({"optim.epochs": epochs, "optim.warmup_epochs": 0, "model.drop_path": drop_path})
    expected = {"optim.epochs": epochs, "optim.warmup_epochs": 0, "model.drop_path": drop_path}
    flat = base.flat()
    assert base.differences(changed) == {
        key: (flat[key], value) for key, value in expected.items() if flat[key] != value
    }
    assert (base.digest == changed.digest) == (base == changed)


@pytest.mark.parametrize("name", presets())
def test_the_printed_configuration_is_yaml_of_the_same_settings(name):
    config = load_config(name)
    assert Config.model_validate(yaml.safe_load(documented_yaml(config))) == config


def comments_above_settings(printed: str) -> dict[str, list[str]]:
    """What stands above each setting of a printed configuration, by its dotted key."""
    found, comments, section = {}, [], ""
    for line in printed.splitlines():
        name, _, value = line.strip().partition(":")
        if line.strip().startswith("# "):
            comments.append(line.strip().removeprefix("# "))
            continue
        if name and value:
            found[f"{section}.{name}" if line.startswith(" ") else name] = comments
        elif name:
            section = name
        comments = []
    return found


@pytest.mark.parametrize("name", presets())
def test_above_a_printed_setting_stand_its_documentation_and_its_default_where_it_has_another_value(name):
    config, defaults = load_config(name), Config().flat()
    found = comments_above_settings(documented_yaml(config))
    assert found.keys() == defaults.keys()
    for key, comments in found.items():
        assert comments[0] == documentation()[key]
        printed = [yaml.safe_load(line) for line in comments if line.startswith("Default: ")]
        assert printed == ([] if config.flat()[key] == defaults[key] else [{"Default": defaults[key]}])


def test_a_printed_setting_that_a_run_derives_from_the_number_of_its_images_says_so_until_it_is_given():
    config = load_config("small_data", {"optim.epochs": 30})
    found = comments_above_settings(documented_yaml(config))
    derived = {key for key, comments in found.items() if any(line.startswith("In auto: ") for line in comments)}
    assert derived == set(load_config("small_data").auto) - {"optim.epochs"}
