from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from glsd.reporting.figures.canvas import save_figure, save_png_and_svg
from glsd.reporting.figures.charts import draw_charts
from glsd.reporting.figures.crops import draw_crops
from glsd.reporting.figures.curves import run_charts
from tests.glsd.reporting.figures.drawn import photo

SVG = "{http://www.w3.org/2000/svg}"


def test_a_figure_that_cannot_be_drawn_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "figure.png"
    save_figure(Figure(), path)
    before = path.read_bytes()
    broken = Figure()
    broken.text(0, 0, r"$\frac{$")
    with pytest.raises(ValueError, match="frac"):
        save_figure(broken, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["figure.png"]


def test_pictures_have_200_dots_an_inch(tmp_path: Path) -> None:
    with Image.open(save_figure(Figure(figsize=(3, 2)), tmp_path / "figure.png")) as image:
        assert image.size == (600, 400)


def test_a_figure_is_written_for_the_screen_and_for_print(tmp_path: Path) -> None:
    png, svg = save_png_and_svg(Figure(figsize=(3, 2)), tmp_path / "step 1.5")
    assert [png.name, svg.name] == ["step 1.5.png", "step 1.5.svg"]
    with Image.open(png) as image:
        assert image.format == "PNG"
    assert ElementTree.parse(svg).getroot().get("width") == "216pt"


def test_text_in_an_svg_is_text(tmp_path: Path) -> None:
    figure = draw_charts(run_charts([{"step": 10, "loss": 2.5}, {"step": 20, "loss": 2.25}]).training)
    root = ElementTree.parse(save_figure(figure, tmp_path / "curves.svg")).getroot()
    assert {"Loss", "step"} <= {"".join(element.itertext()) for element in root.iter(f"{SVG}text")}


def test_classes_may_be_named_in_any_script(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2))
    figure.text(0.5, 0.5, "猫 고양이")  # drawn as boxes and without a warning where no font has these letters
    _, svg = save_png_and_svg(figure, tmp_path / "figure")
    assert "猫 고양이" in svg.read_text("utf-8")


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    geo = np.array([[10.0, 5, 100, 80, 96, 96, 0], [0, 0, 130, 90, 96, 96, 1]])
    first, second = (
        [path.read_bytes() for path in save_png_and_svg(draw_crops([photo()], [geo]), tmp_path / name)]
        for name in ("first", "second")
    )
    assert first == second


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"figure\.jpg: a figure is written as \.png or \.svg"):
        save_figure(Figure(), tmp_path / "figure.jpg")
    assert not list(tmp_path.iterdir())
