"""What a sweep varies."""

import math
from pathlib import Path

import pytest

from glsd.config import Config
from ray_jobs.grids import GRIDS, load_space, named_sources, trial_name, trials


def names(grid: str, *changes: str, seeds: tuple[int, ...] = (0,), data: tuple[str, ...] = ("data",)) -> list[str]:
    return [trial.name for trial in trials(load_space(grid, changes, seeds), data)]


@pytest.mark.parametrize("grid", GRIDS)
def test_every_named_grid_has_possible_trials_of_distinct_names(grid: str) -> None:
    cells = trials(load_space(grid, seeds=(0, 1)), ["data"])
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({cell.config(Config()).digest for cell in cells}) == len(cells)


def test_the_regimes_of_figure_4_are_all_settings_at_all_sizes() -> None:
    cells = trials(load_space("matching_by_regime", seeds=(0,)), ["data"])
    found = {(cell.overrides["objective.setting"], cell.overrides["data.images_per_class"]) for cell in cells}
    assert found == {(s, n) for s in ("vanilla", "similarity", "geometric") for n in (10, 20, 50, 100, 200, None)}


def test_the_deeper_swin_of_table_3_drops_more_paths() -> None:
    rates = {
        cell.overrides["model.backbone"]: cell.overrides["model.drop_path"]
        for cell in trials(load_space("matching_by_dataset"), ["food", "nct"])
    }
    assert rates == {
        "swin_tiny_patch4_window7_224": 0.1,
        "swin_tiny_patch4_window14_224": 0.1,
        "swin_small_patch4_window7_224": 0.2,
    }


def test_several_data_sets_are_part_of_the_name() -> None:
    assert names("threshold", "objective.threshold_scale=1.0", data=("food", "nct")) == [
        "food-setting_geometric-threshold_scale_1-seed_0",
        "nct-setting_geometric-threshold_scale_1-seed_0",
    ]


def test_a_change_replaces_an_axis_and_more_seeds_keep_the_names() -> None:
    one = names("matching_by_regime", "data.images_per_class=5,null", "objective.setting=vanilla")
    assert one == ["setting_vanilla-images_per_class_5-seed_0", "setting_vanilla-images_per_class_none-seed_0"]
    assert set(one) < set(names("matching_by_regime", "data.images_per_class=5,null", seeds=(0, 1)))


def test_a_single_value_beside_the_grid_is_for_all_trials_and_in_no_name() -> None:
    cells = trials(load_space("learning_rate", ["optim.epochs=7", "optim.base_lr=1e-4,5e-4"]), ["data"])
    assert [cell.name for cell in cells] == ["base_lr_0.0001-seed_0", "base_lr_0.0005-seed_0"]
    assert {cell.overrides["optim.epochs"] for cell in cells} == {7}
    assert [cell.overrides["optim.base_lr"] for cell in cells] == [1e-4, 5e-4]


def test_draws_lie_in_their_range_and_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("optim.base_lr: {loguniform: [1e-5, 1e-3]}\nobjective.setting: [vanilla, geometric]\n")
    space = load_space(str(grid))
    drawn = [trials(space, ["data"], samples=20, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 40
    values = [cell.overrides["optim.base_lr"] for cell in drawn[0]]
    assert all(1e-5 <= value <= 1e-3 for value in values)
    assert sum(math.log10(value) < -4 for value in values) == pytest.approx(20, abs=12)  # half of them on a log scale


def test_a_long_name_is_cut_and_stays_distinct() -> None:
    long = [trial_name(["x" * 200, str(number)]) for number in range(2)]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 120


@pytest.mark.parametrize(
    ("grid", "changes", "message"),
    [
        ("matching", (), "there is no grid 'matching'; choose from matching_by_regime"),
        ("threshold", ("optim.base_lr",), "--grid 'optim.base_lr' must be KEY=VALUE,VALUE"),
    ],
)
def test_a_wrong_grid_is_named(grid: str, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_space(grid, changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.base_lr: 3", "axis optim.base_lr must be a list"),
        ("optim.base_lr: {normal: [0, 1]}", "axis optim.base_lr must be a list"),
        ("optim.base_lr: {loguniform: [1]}", "axis optim.base_lr: loguniform cannot take"),
        ("- 1", "must map dotted keys"),
    ],
)
def test_a_wrong_axis_is_named(tmp_path: Path, text: str, message: str) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_space(str(grid))


def test_a_key_or_value_that_does_not_exist_fails_as_it_does_everywhere() -> None:
    space = load_space("learning_rate", ["optim.base_lr=-1,1"])
    with pytest.raises(ValueError, match=r"optim\.base_lr"):
        [cell.config(Config()) for cell in trials(space, ["data"])]
    with pytest.raises(ValueError, match=r"did you mean 'optim\.base_lr'"):
        [cell.config(Config()) for cell in trials(load_space("threshold", ["optim.bas_lr=1,2"]), ["data"])]


def test_an_axis_seed_and_seeds_beside_it_are_one_too_many(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("seed: [3, 4]\n")
    assert [cell.name for cell in trials(load_space(str(grid)), ["data"])] == ["seed_3", "seed_4"]
    with pytest.raises(ValueError, match="the grid has an axis seed already"):
        load_space(str(grid), seeds=(0,))


def test_a_value_is_the_same_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("optim.base_lr: [1e-4]\naugment.local_sizes: [[32, 64]]\n")
    given = load_space("learning_rate", ["optim.base_lr=1e-4", "augment.local_sizes=[32,64],[32]"])
    assert load_space(str(grid)).axes["optim.base_lr"] == given.axes["optim.base_lr"] == [1e-4]
    assert given.axes["augment.local_sizes"] == [[32, 64], [32]]


def test_sources_without_a_name_are_one_data_set() -> None:
    assert named_sources(["/a=b/c", "s3://bucket/d", "e"]) == {"data": ["/a=b/c", "s3://bucket/d", "e"]}
