"""Optuna's search over a space, from what is known of its trials."""

import pytest

from ray_jobs.sweeps.grids import load_space
from ray_jobs.sweeps.rounds import suggest

pytest.importorskip("optuna")


def test_suggestions_are_settings_of_the_space_and_the_same_for_the_same_history(tmp_path) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("optim.base_lr: {loguniform: [1e-4, 1e-2]}\ndata.images_per_class: {randint: [10, 12]}\n")
    space = load_space(str(grid), ["objective.setting=vanilla,geometric"])
    first = suggest(space, [], count=20, seed=0)
    assert all(space.holds(draw) for draw in first)
    assert {draw["data.images_per_class"] for draw in first} == {10, 11}
    assert suggest(space, [], count=20, seed=0) == first
    assert suggest(space, [(first[0], 0.5)], count=1, seed=0) != first[:1]


def test_later_suggestions_lie_where_trials_did_well() -> None:
    space = load_space("learning_rate", ["optim.base_lr=1e-4,2.5e-4,5e-4,1e-3,2e-3"])
    rates = space.axes["optim.base_lr"]
    ended = [({"optim.base_lr": rate, "seed": 0}, 0.9 if rate == 5e-4 else 0.1) for rate in rates * 6]
    drawn = [suggest(space, ended, 1, seed)[0]["optim.base_lr"] for seed in range(30)]
    assert drawn.count(5e-4) > 15  # of 30, where chance would be 6


def test_keys_that_are_set_together_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot set several keys together, as axis backbone does"):
        suggest(load_space("matching_by_dataset"), [], 1, 0)
