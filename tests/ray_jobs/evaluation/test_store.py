from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.evaluation.features import Features
from ray_jobs.evaluation.store import Rows, Store

SHAPE = (10, 3)


def rows(image_ids: Sequence[int], reasons: dict[int, str] | None = None) -> Rows:
    """Row i is (i, 10 i, 100 i)."""
    ids = np.array(image_ids, np.int64)
    values = (ids[:, None] * np.array([1, 10, 100])).astype(np.float32)
    return Rows(ids, values, [(reasons or {}).get(image_id, "") for image_id in image_ids])


def values_in(folder: Path) -> np.ndarray:
    return np.load(folder / "values.npy")


def stored(folder: Path, values: np.ndarray) -> np.ndarray:
    np.save(folder / "values.npy", values)
    return np.load(folder / "values.npy", mmap_mode="r")


def features(folder: Path, values: np.ndarray, image_ids: list[int], grid: tuple[int, int] | None = None) -> Features:
    return Features(np.array(image_ids), np.arange(len(image_ids)), [], stored(folder, values), grid)


def test_rows_are_found_again_by_their_image_ids_in_whatever_order_they_came(tmp_path: Path) -> None:
    with Store(tmp_path, SHAPE) as store:
        store.add(rows([7, 2]))
        store.add(rows([0, 9, 4], {9: "the file is empty"}))
    assert values_in(tmp_path).tolist() == [
        [i, 10 * i, 100 * i] if i in (0, 2, 4, 7) else [0, 0, 0] for i in range(len(values_in(tmp_path)))
    ]
    with Store(tmp_path, SHAPE) as again:
        assert np.flatnonzero(again.state == 1).tolist() == [0, 2, 4, 7]
        assert np.flatnonzero(again.state == 2).tolist() == [9]
        assert again.reasons == {9: "the file is empty"}


def test_a_line_of_the_journal_that_a_kill_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    with Store(tmp_path, SHAPE) as store:
        store.add(rows([1, 2]))
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole.replace(b"1", b"3").replace(b"2", b"4")[:-5])
    with Store(tmp_path, SHAPE) as store:
        assert np.flatnonzero(store.state).tolist() == [1, 2]
        store.add(rows([3, 4]))
    with Store(tmp_path, SHAPE) as store:
        assert np.flatnonzero(store.state).tolist() == [1, 2, 3, 4]
    assert values_in(tmp_path)[4].tolist() == [4, 40, 400]


def test_no_image_is_taken_twice(tmp_path: Path) -> None:
    with Store(tmp_path, SHAPE) as store:
        store.add(rows([1, 2], {2: "the file is empty"}))
        for image_id in (1, 2):
            with pytest.raises(AssertionError, match="twice"):
                store.add(rows([5, image_id]))


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(10)), st.integers(1, 10))
def test_values_are_the_rows_asked_for_in_the_order_asked_for(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], count: int
) -> None:
    image_ids = order[:count]
    found = features(tmp_path_factory.mktemp("store"), rows(range(10)).values, image_ids)
    assert found.values.tolist() == [[i, 10 * i, 100 * i] for i in image_ids]


@pytest.mark.parametrize("image_ids", [[3, 4, 5], [5, 3]])
def test_what_a_probe_does_to_values_stays_out_of_the_store(tmp_path: Path, image_ids: list[int]) -> None:
    found = features(tmp_path, rows(range(10)).values, image_ids)
    torch.from_numpy(found.values).zero_()
    assert values_in(tmp_path).tolist() == rows(range(10)).values.tolist()
    assert list(tmp_path.iterdir()) == [tmp_path / "values.npy"]


@pytest.mark.parametrize("image_ids", [[1, 2], [2, 0]])
def test_dense_values_are_maps_without_the_z_bar_stored_before_them(tmp_path: Path, image_ids: list[int]) -> None:
    z_bar, z = np.random.default_rng(0).normal(size=(3, 1, 5)), np.random.default_rng(1).normal(size=(3, 2, 4, 5))
    values = np.concatenate([z_bar, z.reshape(3, 8, 5)], 1).astype(np.float32)
    np.testing.assert_array_equal(features(tmp_path, values, image_ids, (2, 4)).values, z[image_ids].astype(np.float32))
