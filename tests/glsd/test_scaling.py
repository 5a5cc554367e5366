"""Settings that follow from the number of images."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glsd.config import SCALED, Config, load_config
from glsd.scaling import scaled

AUTO = Config().with_overrides({"auto": SCALED})


@given(num_images=st.integers(32, 10**7))
@settings(max_examples=200, deadline=None)
def test_every_number_of_images_gives_a_possible_configuration(num_images: int) -> None:
    config = scaled(load_config("small_data"), num_images)
    assert config.auto == ()
    assert config.optim.batch_size <= num_images
    assert config.optim.batch_size % config.data.unit_size == 0
    assert config.optim.warmup_epochs <= config.optim.epochs


@given(few=st.integers(100, 10**6), more=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_more_images_have_no_fewer_prototypes_and_no_more_epochs(few: int, more: int) -> None:
    small, large = scaled(AUTO, few), scaled(AUTO, few + more)
    assert small.model.num_prototypes <= large.model.num_prototypes
    assert small.optim.batch_size <= large.optim.batch_size
    assert small.optim.epochs >= large.optim.epochs
    num_steps = small.checkpoint_every_epochs * (few // small.optim.batch_size)
    assert num_steps >= 100 or small.checkpoint_every_epochs == 10
    assert small.objective.teacher_temperature <= large.objective.teacher_temperature


def test_images_of_imagenet_have_the_papers_prototypes_batch_momentum_and_temperature() -> None:
    config, paper = scaled(AUTO, 1_281_167), load_config("paper")
    assert config.model.num_prototypes == paper.model.num_prototypes
    assert config.optim.batch_size == paper.optim.batch_size
    assert config.optim.teacher_momentum == paper.optim.teacher_momentum
    assert config.objective.teacher_temperature == paper.objective.teacher_temperature


def test_two_thousand_images() -> None:
    config = scaled(AUTO, 2000)
    assert config.optim.batch_size == 64  # the power of two below 2000 / 16
    assert config.optim.epochs == 750  # 1.5 million images
    assert config.optim.warmup_epochs == 25  # a thirtieth
    assert config.optim.teacher_momentum == 0.98  # 50 steps, as an epoch has only 31
    assert config.model.num_prototypes == 1024
    assert config.objective.teacher_temperature == 0.04
    assert config.objective.teacher_temperature_warmup_epochs == 75  # a tenth
    assert config.checkpoint_every_epochs == 5  # 155 steps


def test_what_is_given_stays_and_what_depends_on_it_follows() -> None:
    config = AUTO.with_overrides({"optim.epochs": 60, "model.num_prototypes": 4096})
    derived = scaled(config, 2000)
    assert (derived.optim.epochs, derived.model.num_prototypes) == (60, 4096)
    assert derived.optim.warmup_epochs == 2
    assert derived.objective.teacher_temperature_warmup_epochs == 6


def test_checkpoints_are_written_where_they_are_kept_and_before_the_end() -> None:
    def every(epochs: int, keep: int | None) -> int:
        config = AUTO.with_overrides({"optim.epochs": epochs, "keep_every_epochs": keep})
        return scaled(config, 1000).checkpoint_every_epochs  # 31 steps an epoch

    assert [every(100, None), every(100, 10), every(100, 8), every(100, 3), every(3, None)] == [5, 5, 2, 1, 2]


def test_a_configuration_without_auto_stays_as_it_is() -> None:
    assert scaled(load_config("paper"), 2000) == load_config("paper")


def test_only_settings_that_have_a_rule_can_be_derived() -> None:
    with pytest.raises(ValueError, match=r"auto cannot hold 'optim.clip_grad'"):
        Config().with_overrides({"auto": ["optim.clip_grad"]})
