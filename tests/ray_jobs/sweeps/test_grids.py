"""What a sweep varies."""

import math
from pathlib import Path

import pytest

from glsd.config import Config
from ray_jobs.sweeps.grids import GRIDS, load_space, named_sources, trial_name, trials


def names(grid: str, *changes: str, seeds: tuple[int, ...] = (0,), data: tuple[str, ...] = ("data",)) -> list[str]:
    return [values(trial.name) for trial in trials(load_space(grid, changes, seeds), data)]


def values(name: str) -> str:
    """A trial's name without its digest."""
    return name.rpartition("-")[0]


@pytest.mark.parametrize("grid", GRIDS)
def test_every_named_grid_has_possible_trials_of_distinct_names(grid: str) -> None:
    cells = trials(load_space(grid, seeds=(0, 1)), ["data"])
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({Config().with_overrides(cell.overrides).digest for cell in cells}) == len(cells)


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
    assert [values(cell.name) for cell in cells] == ["base_lr_0.0001-seed_0", "base_lr_0.0005-seed_0"]
    assert {cell.overrides["optim.epochs"] for cell in cells} == {7}
    assert [cell.overrides["optim.base_lr"] for cell in cells] == [1e-4, 5e-4]


def test_draws_lie_in_their_range_and_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("optim.base_lr: {loguniform: [1e-5, 1e-3]}\nobjective.setting: [vanilla, geometric]\n")
    space = load_space(str(grid))
    drawn = [trials(space, ["data"], samples=20, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 40
    rates = [cell.overrides["optim.base_lr"] for cell in drawn[0]]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert sum(math.log10(rate) < -4 for rate in rates) == pytest.approx(20, abs=12)  # half of them on a log scale


def test_a_value_that_is_drawn_again_makes_no_second_trial(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("model.num_prototypes: {choice: [1024, 4096]}\n")
    cells = trials(load_space(str(grid)), ["data"], samples=10)
    assert {values(cell.name) for cell in cells} == {"seed_0-num_prototypes_1024", "seed_0-num_prototypes_4096"}
    assert len(cells) == 2


def test_draws_that_look_alike_have_names_of_their_own_however_many_there_are(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("optim.teacher_momentum: {uniform: [0.9950, 0.9951]}\n")
    space = load_space(str(grid))
    few, many = (trials(space, ["data"], samples=samples) for samples in (3, 30))
    assert many[:3] == few
    assert values(few[0].name) == f"seed_0-teacher_momentum_{few[0].overrides['optim.teacher_momentum']:.4g}"
    assert len({cell.name for cell in many}) == len({cell.overrides["optim.teacher_momentum"] for cell in many}) == 30


def test_values_that_look_alike_are_told_apart_by_a_digest() -> None:
    first, second = (trial_name("data", {"optim.base_lr": rate, "seed": 0}) for rate in (0.00012341, 0.00012342))
    assert values(first) == values(second) == "base_lr_0.0001234-seed_0"
    assert first != second


def test_a_value_that_an_axis_lists_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"base_lr_0\.001-seed_0-\w+; name each value of an axis once"):
        names("learning_rate", "optim.base_lr=1e-3,0.001")


def test_a_key_has_one_axis() -> None:
    for change in ("model.backbone=resnet50", "model.backbone=resnet50,vit"):
        with pytest.raises(ValueError, match=r"model\.backbone is set by the axis backbone and by model\.backbone"):
            load_space("matching_by_dataset", [change])
    with pytest.raises(ValueError, match="--grid names an axis twice"):
        load_space("learning_rate", ["optim.base_lr=1", "optim.base_lr=2"])
    anew = ["backbone={model.backbone: resnet50, model.drop_path: 0.0}", "objective.setting=vanilla"]
    assert names("matching_by_dataset", *anew) == ["backbone_resnet50-drop_path_0-setting_vanilla-seed_0"]


PAIRED = """
augment.local_sizes: [[96], [96, 64], [64, 32]]
optim.base_lr: [1e-4, 1e-3]
augment.num_local_crops: [[8], [4, 4], [2, 6]]
together: [[augment.local_sizes, augment.num_local_crops]]
"""
SIZES, CROPS = "augment.local_sizes", "augment.num_local_crops"


def a_grid(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def test_values_of_axes_that_go_together_are_taken_one_by_one(tmp_path: Path) -> None:
    cells = trials(load_space(a_grid(tmp_path, PAIRED)), ["data"])
    found = [(cell.overrides[SIZES], cell.overrides[CROPS], cell.overrides["optim.base_lr"]) for cell in cells]
    pairs = [([96], [8]), ([96, 64], [4, 4]), ([64, 32], [2, 6])]
    assert found == [(*pair, rate) for pair in pairs for rate in (1e-4, 1e-3)]
    assert values(cells[2].name) == "local_sizes__96_64_-num_local_crops__4_4_-base_lr_0.0001-seed_0"
    assert len({cell.name for cell in cells}) == 6
    assert Config().with_overrides(cells[2].overrides).augment.num_local_crops == (4, 4)


def test_axes_go_together_on_the_command_line_as_in_a_file(tmp_path: Path) -> None:
    axes = ["augment.local_sizes=[96],[96,64],[64,32]", "augment.num_local_crops=[8],[4,4],[2,6]"]
    together = "together=[augment.local_sizes,augment.num_local_crops]"
    given = load_space("learning_rate", [*axes, together, "optim.base_lr=1e-4,1e-3"])
    in_file = load_space(a_grid(tmp_path, PAIRED))
    assert given.together == in_file.together == [[SIZES, CROPS]]
    same = [[cell.overrides for cell in trials(space, ["data"])] for space in (given, in_file)]
    assert all(overrides in same[1] for overrides in same[0])
    assert len(same[0]) == len(same[1]) == 6
    replaced = load_space(a_grid(tmp_path, PAIRED), ["augment.local_sizes=[32]", "augment.num_local_crops=[6]"])
    assert [cell.overrides[SIZES] + cell.overrides[CROPS] for cell in trials(replaced, ["data"])] == [[32, 6]] * 2
    assert replaced.together == [[SIZES, CROPS]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["augment.local_sizes=[96],[64]"],
            r"need equal numbers of values, and augment\.local_sizes has 2, augment\.num_local_crops has 3",
        ),
        (["together=augment.local_sizes,optim.base_lr"], r"must hold lists of axes, such as \[\[augment\.local_sizes"),
        (["together=[augment.local_sizes]"], "must hold lists of axes"),
        (
            ["together=[augment.local_sizes,optim.epochs]"],
            r"together names optim\.epochs, which is not an axis with a list",
        ),
        (["together=[optim.base_lr,optim.base_lr]"], r"together names optim\.base_lr twice"),
        (["together=[optim.base_lr,augment.local_sizes],[seed,optim.base_lr]"], r"names optim\.base_lr twice"),
    ],
)
def test_axes_that_cannot_go_together_are_refused_with_the_numbers(
    tmp_path: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_space(a_grid(tmp_path, PAIRED), changes)


def test_a_distribution_goes_together_with_nothing(tmp_path: Path) -> None:
    text = "a.b: [1, 2]\noptim.base_lr: {uniform: [0, 1]}\ntogether: [[a.b, optim.base_lr]]\n"
    with pytest.raises(ValueError, match=r"together names optim\.base_lr, which is not an axis with a list"):
        load_space(a_grid(tmp_path, text))


@pytest.mark.parametrize(
    "change",
    [
        "optim.base_lr=uniform(0, 1)",
        "optim.base_lr=1e-4,tune.loguniform(1e-5, 1e-3)",
        "optim.base_lr={loguniform: [1e-5, 1e-3]}",
    ],
)
def test_a_distribution_in_the_grid_option_is_answered_with_where_it_belongs(change: str) -> None:
    with pytest.raises(ValueError, match=r"names a distribution, .* optim\.base_lr: {loguniform: \[1e-5, 1e-3\]}"):
        load_space("threshold", [change])


def test_no_value_is_null_or_none_in_a_file_and_in_the_grid_option(tmp_path: Path) -> None:
    text = "data.images_per_class: [5, null, ~]\ndata.fraction: {choice: [None, 0.5]}\n"
    space = load_space(a_grid(tmp_path, text), ["objective.threshold_scale=None"])
    assert space.axes["data.images_per_class"] == [5, None, None]
    assert space.distributions["data.fraction"].choices == (None, 0.5)
    assert space.fixed == {"objective.threshold_scale": None}
    given = names("matching_by_regime", "data.images_per_class=5,None", "objective.setting=vanilla")
    assert given == ["setting_vanilla-images_per_class_5-seed_0", "setting_vanilla-images_per_class_none-seed_0"]
    column = load_space("threshold", ["data.image_column=None,image"]).axes["data.image_column"]
    assert column == ["None", "image"]  # which is a name


def test_a_seed_beside_other_keys_is_the_trial_s(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("pair: [{optim.epochs: 30, seed: 5}, {optim.epochs: 40, seed: 6}]\n")
    assert [Config().with_overrides(cell.overrides).seed for cell in trials(load_space(str(grid)), ["data"])] == [5, 6]
    with pytest.raises(ValueError, match="the grid has an axis seed already"):
        load_space(str(grid), seeds=(0,))


def test_a_search_knows_the_settings_that_it_may_have_drawn(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("optim.base_lr: {loguniform: [1e-4, 1e-2]}\ndata.images_per_class: {randint: [10, 20]}\n")
    space = load_space(str(grid), ["optim.epochs=7", "objective.setting=vanilla,geometric"])
    drawn = {
        "optim.base_lr": 1e-3, "data.images_per_class": 10, "objective.setting": "vanilla", "optim.epochs": 7, "seed": 0
    }  # fmt: skip
    assert space.holds(drawn)
    others = {
        "optim.base_lr": 1e-5, "data.images_per_class": 20, "objective.setting": "similarity", "optim.epochs": 8
    }  # fmt: skip
    assert not any(space.holds(drawn | {key: value}) for key, value in others.items())
    assert not space.holds(drawn | {"optim.weight_decay": 0.1})
    assert not space.holds({key: value for key, value in drawn.items() if key != "optim.base_lr"})


def test_a_long_name_is_cut_and_stays_distinct() -> None:
    long = [trial_name("x" * 200, {"seed": number}) for number in range(2)]
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
        ("optim.base_lr: uniform(0, 1)", r"such as {loguniform: \[1e-5, 1e-3\]}, not 'uniform\(0, 1\)'"),
        ("optim.base_lr: [{loguniform: [1e-5, 1e-3]}]", "axis optim.base_lr must be a list"),
        ("optim.base_lr: {loguniform: [1]}", "axis optim.base_lr: loguniform cannot take"),
        ("optim.base_lr: {loguniform: [0, 1]}", "give it two numbers, the lower one first and above 0"),
        ("optim.base_lr: {uniform: [1, 0]}", "give it two numbers, the lower one first"),
        ("optim.epochs: {randint: [1.5, 3]}", "give it two whole numbers"),
        ("optim.epochs: {choice: 3}", "give it a list of values"),
        ("- 1", "must map dotted keys"),
        ("1: [2, 3]", "1 is not a setting; an axis is a dotted key"),
        ("pair: [{1: 2}]", "1 is not a setting; an axis is a dotted key"),
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
        [Config().with_overrides(cell.overrides) for cell in trials(space, ["data"])]
    with pytest.raises(ValueError, match=r"did you mean 'optim\.base_lr'"):
        [
            Config().with_overrides(cell.overrides)
            for cell in trials(load_space("threshold", ["optim.bas_lr=1,2"]), ["data"])
        ]


def test_an_axis_seed_and_seeds_beside_it_are_one_too_many(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("seed: [3, 4]\n")
    assert [values(cell.name) for cell in trials(load_space(str(grid)), ["data"])] == ["seed_3", "seed_4"]
    with pytest.raises(ValueError, match="the grid has an axis seed already"):
        load_space(str(grid), seeds=(0,))


def test_a_value_is_the_same_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("optim.base_lr: [1e-4]\naugment.local_sizes: [[32, 64]]\n")
    given = load_space("learning_rate", ["optim.base_lr=1e-4", "augment.local_sizes=[32,64],[32]"])
    assert load_space(str(grid)).axes["optim.base_lr"] == given.axes["optim.base_lr"] == [1e-4]
    assert given.axes["augment.local_sizes"] == [[32, 64], [32]]


def test_a_whole_number_is_the_same_trial_as_the_number_with_a_point() -> None:
    assert [
        [cell.name for cell in trials(load_space("learning_rate", [f"optim.base_lr={rates}"]), ["data"])]
        for rates in ("1,2", "1.0,2.0")
    ] == [[trial_name("data", {"optim.base_lr": rate, "seed": 0}) for rate in (1.0, 2.0)]] * 2


def test_sources_without_a_name_are_one_data_set() -> None:
    assert named_sources(["/a=b/c", "s3://bucket/d", "e"]) == {"data": ["/a=b/c", "s3://bucket/d", "e"]}
