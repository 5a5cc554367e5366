"""Settings that follow from the number of images."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.config import Config
from glsd.experiments import ScaledConfig, load_config
from glsd.scaling import small_data


@given(num_images=st.integers(32, 10**7))
@settings(max_examples=200, deadline=None)
def test_every_number_of_images_gives_a_possible_configuration(num_images: int) -> None:
    config = load_config("small_data").for_images(num_images)
    assert type(config) is Config
    assert config.optim.batch_size <= num_images
    assert config.optim.batch_size % config.data.unit_size == 0
    assert config.optim.warmup_epochs <= config.optim.epochs


@given(few=st.integers(100, 10**6), more=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_more_images_have_no_fewer_prototypes_and_no_more_epochs(few: int, more: int) -> None:
    small, large = small_data(few), small_data(few + more)
    for key in ("model.num_prototypes", "optim.batch_size", "objective.teacher_temperature"):
        assert small[key] <= large[key]
    assert small["optim.epochs"] >= large["optim.epochs"]
    num_steps = small["checkpoint_every_epochs"] * (few // small["optim.batch_size"])
    assert num_steps >= 100 or small["checkpoint_every_epochs"] == 10


def test_images_of_imagenet_have_the_papers_prototypes_batch_momentum_and_temperature() -> None:
    found, paper = small_data(1_281_167), load_config("paper").flat()
    for key in (
        "model.num_prototypes",
        "optim.batch_size",
        "optim.teacher_momentum",
        "objective.teacher_temperature",
    ):
        assert found[key] == paper[key]


def test_the_settings_of_two_thousand_images() -> None:
    assert small_data(2000) == {
        "optim.batch_size": 64,  # the power of two below 2000 / 16
        "optim.epochs": 750,  # 1.5 million images
        "optim.warmup_epochs": 25,  # a thirtieth
        "optim.teacher_momentum": 0.98,  # 50 steps, as an epoch has only 31
        "model.num_prototypes": 1024,
        "objective.teacher_temperature": 0.04,
        "objective.teacher_temperature_warmup_epochs": 75,  # a tenth
        "checkpoint_every_epochs": 5,  # 155 steps
    }


def test_what_is_given_stays_and_what_depends_on_it_follows() -> None:
    derived = load_config("small_data", {"optim.epochs": 60, "model.num_prototypes": 4096}).for_images(2000)
    assert (derived.optim.epochs, derived.model.num_prototypes) == (60, 4096)
    assert derived.optim.warmup_epochs == 2
    assert derived.objective.teacher_temperature_warmup_epochs == 6


def test_checkpoints_are_written_where_they_are_kept_and_before_the_end() -> None:
    def every(epochs: int, keep: int | None) -> int:
        given = {"optim.epochs": epochs, "keep_every_epochs": keep}
        return load_config("small_data", given).for_images(1000).checkpoint_every_epochs  # 31 steps an epoch

    assert [every(100, None), every(100, 10), every(100, 8), every(100, 3), every(3, None)] == [5, 5, 2, 1, 2]


def test_a_configuration_that_does_not_follow_from_the_images_stays_as_it_is() -> None:
    assert load_config("paper").for_images(2000) == load_config("paper")


def test_a_file_builds_on_a_preset_and_what_it_gives_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: small_data\noptim.epochs: 60\naugment: {vertical_flip: 0.5}\n")
    config = load_config(path)
    assert config == load_config("small_data", {"optim.epochs": 60, "augment.vertical_flip": 0.5})
    assert config.for_images(2000).optim.warmup_epochs == 2
    path.write_text("preset: demo\nseed: 3\n")
    assert load_config(path) == load_config("demo", {"seed": 3})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"data.unit_size": 24}, "for 8,192 images: optim.batch_size 512 is not a multiple of data.unit_size 24"),
        ({"optim.warmup_epochs": 801}, "optim.warmup_epochs 801 is more than optim.epochs 183"),
        ({"optim.epochs": 5, "optim.warmup_epochs": 6}, "optim.warmup_epochs 6 is more than optim.epochs 5"),
    ],
)
def test_what_no_number_of_images_makes_possible_is_refused_at_once(overrides: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config("small_data", overrides)


def test_what_some_number_of_images_makes_possible_is_refused_when_the_number_is_known() -> None:
    config = load_config("small_data", {"optim.warmup_epochs": 700, "seed": 1})
    assert config.for_images(1000).optim.warmup_epochs == 700
    with pytest.raises(ValueError, match=r"for 10,000 images: optim\.warmup_epochs 700 is more than optim\.epochs 150"):
        config.for_images(10_000)


def test_a_configuration_travels_to_another_process_with_what_it_waits_for() -> None:
    config = load_config("small_data", {"optim.epochs": 60})
    assert isinstance(config, ScaledConfig)
    other = pickle.loads(pickle.dumps(config))
    assert (other, other.derived) == (config, config.derived)
    assert config != load_config("small_data")
