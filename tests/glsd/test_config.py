"""Settings: presets, overrides, their errors, and their documentation."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from glsd.config import Config, LinearConfig
from glsd.experiments import load_config, presets
from glsd.record import documentation
from ray_jobs.cli.settings import documented_yaml

SOURCE = r"(Sec\. [1-4A](\.\d)*|Table \d|Eq\. \d|Algorithm \d|authors' code|glsd)"


@pytest.mark.parametrize("name", presets())
def test_every_preset_survives_the_way_through_yaml(name, tmp_path):
    config = load_config(name)
    path = tmp_path / "mine.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config
    assert load_config(path).for_images(2000).digest == config.for_images(2000).digest


def test_the_paper_preset_has_the_papers_values():
    flat = load_config("paper").flat()
    expected = {
        "augment.global_size": 224,
        "augment.global_scale": [0.4, 1.0],
        "augment.local_sizes": [96],
        "augment.num_local_crops": [8],
        "augment.local_scale": [0.05, 0.4],
        "augment.aspect_ratio": [3 / 4, 4 / 3],
        "augment.horizontal_flip": 0.5,
        "augment.vertical_flip": 0.0,
        "augment.jitter_probability": 0.8,
        "augment.brightness": 0.4,
        "augment.contrast": 0.4,
        "augment.saturation": 0.2,
        "augment.hue": 0.1,
        "augment.grayscale_probability": 0.2,
        "augment.blur_probability": [1.0, 0.1, 0.5],
        "augment.blur_radius": [0.1, 2.0],
        "augment.solarize_probability": [0.0, 0.2, 0.0],
        "augment.solarize_threshold": 128,
        "augment.mean": [0.485, 0.456, 0.406],
        "augment.std": [0.229, 0.224, 0.225],
        "model.backbone": "swin_tiny_patch4_window7_224",
        "model.drop_path": 0.1,
        "model.hidden_dim": 2048,
        "model.bottleneck_dim": 256,
        "model.num_prototypes": 65536,
        "model.norm_last_layer": False,
        "objective.setting": "geometric",
        "objective.threshold_scale": 1.0,
        "objective.student_temperature": 0.1,
        "objective.warmup_teacher_temperature": 0.04,
        "objective.teacher_temperature": 0.07,
        "objective.teacher_temperature_warmup_epochs": 30,
        "objective.center_momentum": 0.9,
        "optim.epochs": 300,
        "optim.batch_size": 512,
        "optim.base_lr": 5e-4,
        "optim.min_lr": 1e-6,
        "optim.warmup_epochs": 10,
        "optim.weight_decay": 0.04,
        "optim.weight_decay_end": 0.4,
        "optim.clip_grad": 3.0,
        "optim.freeze_last_layer_epochs": 1,
        "optim.teacher_momentum": 0.996,
        "optim.precision": "auto",
        "evaluation.k": 20,
        "evaluation.temperature": 0.07,
        "evaluation.resize": 256,
        "evaluation.crop": 224,
    }
    assert {key: flat[key] for key in expected} == expected


def test_the_linear_evaluation_has_the_papers_values():
    linear = LinearConfig()
    assert (linear.epochs, linear.base_lr, linear.momentum) == (100, 1e-3, 0.9)
    assert (linear.scale, linear.num_blocks) == ((0.08, 1.0), 1)


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
        ("data.value_range", (float("nan"), 1.0), "data.value_range.0: .* finite number, not nan"),
        ("data.value_range", (0.0, float("inf")), "data.value_range.1: .* finite number, not inf"),
        ("optim.base_lr", float("inf"), "optim.base_lr: .* finite number, not inf"),
        ("augment.mean", (float("nan"), 0.0, 0.0), "augment.mean.0: .* finite number, not nan"),
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


def test_the_configuration_of_a_run_of_version_0_1_is_read():
    assert Config.model_validate({"auto": [], "seed": 3}) == Config(seed=3)
    with pytest.raises(ValueError, match="auto"):
        Config.model_validate({"auto": ["optim.epochs"]})


def test_a_file_may_spell_its_settings_nested_or_dotted(tmp_path):
    nested, dotted = tmp_path / "nested.yaml", tmp_path / "dotted.yaml"
    nested.write_text("seed: 3\noptim: {epochs: 30, batch_size: 64}\ndata: {value_range: [0, 4095]}\n")
    dotted.write_text("seed: 3\noptim.epochs: 30\noptim: {batch_size: 64}\ndata.value_range: [0, 4095]\n")
    assert load_config(dotted) == load_config(nested)
    assert load_config(dotted).differences(Config()).keys() == {
        "seed",
        "optim.epochs",
        "optim.batch_size",
        "data.value_range",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- optim\n- epochs\n", "holds no settings; write one per line"),
        (b"just words\n", "holds no settings"),
        (b"seed: \xff\n", "is not UTF-8 text"),
        (b"[]\n", "holds no settings"),
        (b"seed: 2020-13-45\n", "is not valid YAML: month must be in"),
        (b"optim: 3\noptim.epochs: 3\n", "optim is given twice"),
        (b"optim.epochs: 3\noptim:\n", "optim is given twice"),
        (b"optim: {epochs: 3}\noptim.epochs: 4\n", r"optim\.epochs is given twice"),
        (b"seed.x: 3\nseed: 1\n", "seed is given twice"),
        (b"optim: {foo: {}}\n", r"there is no setting 'optim\.foo'"),
        (b"seed: {}\n", "seed: Input should be a valid integer"),
        (b"3: 4\n", "there is no setting '3'"),
        (b"preset: papr\n", "there is no preset 'papr'; did you mean 'paper'"),
        (b"preset: small_data\noptim.epoch: 4\n", r"there is no setting 'optim\.epoch'; did you mean 'optim\.epochs'"),
        (b"derived: []\n", "there is no setting 'derived'"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_with_what_is_wrong(content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"mine\.yaml:? {message}"):
        load_config(path)


def test_every_setting_is_documented_and_its_sources_stand_last():
    assert documentation(Config).keys() == Config().flat().keys()
    documents = documentation(Config) | documentation(LinearConfig, "linear.")
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
def test_the_printed_configuration_is_yaml_of_the_same_settings(name, tmp_path):
    config = load_config(name)
    (tmp_path / "mine.yaml").write_text(documented_yaml(config))
    assert load_config(tmp_path / "mine.yaml") == config


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
    config, defaults = load_config(name).for_images(2000), Config().flat()
    found = comments_above_settings(documented_yaml(config))
    assert found.keys() == defaults.keys()
    for key, comments in found.items():
        assert comments[0] == documentation(Config)[key]
        printed = [yaml.safe_load(line) for line in comments if line.startswith("Default: ")]
        assert printed == ([] if config.flat()[key] == defaults[key] else [{"Default": defaults[key]}])


def test_a_setting_that_follows_from_the_number_of_images_is_printed_without_a_value_until_it_is_given():
    config = load_config("small_data", {"optim.epochs": 30})
    printed = documented_yaml(config)
    assert Config().flat().keys() - comments_above_settings(printed).keys() == set(config.derived)
    assert "optim.epochs" not in config.derived
    assert "# warmup_epochs follows from the number of images" in printed
