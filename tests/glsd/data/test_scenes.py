"""Lists of photographs of a flat scene: what they say, and what is said when they are wrong."""

from pathlib import Path

import numpy as np
import pytest

from glsd.data.scenes import read_scenes
from tests.glsd.data.encoding import write_jpegs

SHIFT = "1 0 4  0 1 0  0 0 1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jpegs(tmp_path / "photos", "0.jpg", "1 ü.jpg")
    return tmp_path


def listed(folder: Path, *lines: str) -> str:
    path = folder / "scenes.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_pair_lies_beside_its_list_and_its_homography_is_read_row_by_row(folder: Path) -> None:
    lines = ("homography,image_a,image_b", f"{SHIFT},photos/0.jpg,{folder}/photos/1 ü.jpg")
    (scene,) = read_scenes(listed(folder, *lines))
    assert scene.image_a == str(folder / "photos" / "0.jpg")
    assert scene.image_b == str(folder / "photos" / "1 ü.jpg")
    assert np.array_equal(scene.homography @ [10, 20, 1], [14, 20, 1])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image_a,image_b", "a,b"], "has no column 'homography'; its first line has image_a, image_b"),
        (["image_a,image_b,homography"], "lists no pair of images below its first line"),
        (["image_a,image_b,homography", f"photos/0.jpg,gone.jpg,{SHIFT}"], r"line 2: .*/gone.jpg is not a file"),
        (["image_a,image_b,homography", "photos/0.jpg,photos/0.jpg,1 0 4"], "line 2: .* is not nine numbers"),
        (["image_a,image_b,homography", "", "photos/0.jpg,photos/0.jpg,1 0 4 0 1 0 0 0 x"], "line 3: .* not nine"),
        (["image_a,image_b,homography", "photos/0.jpg,photos/0.jpg,1 0 4 1 0 4 0 0 1"], "cannot be inverted"),
        (["image_a,image_b,homography", "photos/0.jpg,photos/0.jpg"], "line 2: 2 columns where the first line has 3"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_its_line(folder: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_scenes(listed(folder, *lines))


def test_a_list_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.csv is not a file that exists; name a CSV file with the columns"):
        read_scenes(str(folder / "gone.csv"))
