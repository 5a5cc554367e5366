import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from glsd.reporting.page.charts import Chart, Line, line_chart
from glsd.reporting.page.html import (
    Badge,
    Bar,
    Bars,
    Block,
    Charts,
    Code,
    Details,
    Facts,
    FigureBlock,
    Page,
    Points,
    Prose,
    Section,
    Table,
    Tiles,
    picture_uri,
)

HOSTILE = "<script>alert('1')</script> & \"</style><img src=x onerror=alert(1)>"


class Read(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def png(height: int = 4, width: int = 6, noise: bool = False) -> bytes:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8) if noise else np.zeros((height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def every_block(text: str) -> list[Block]:
    return [
        Prose(text),
        Points([text]),
        Code(text),
        Tiles([(text, text)]),
        Bars([Bar(text, 0.5, 0.1)]),
        Table([text], [[text]], text),
        Facts([(text, text)]),
        Charts([Chart(text, [Line(text, [0.0, 1.0], [0.0, 1.0])], [(text, 0.5)], text)]),
        FigureBlock(png(), text, text),
        Details(text, [Prose(text)]),
    ]


def page(text: str) -> str:
    return Page(text, text, [Badge("open", text)], text, [Section(text, every_block(text))], text).html()


def test_text_stays_text_wherever_it_stands() -> None:
    harmless = len(HOSTILE) * "x"
    plain, hostile = Read(page(harmless)), Read(page(HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [attributes.keys() for _, attributes in hostile.tags] == [attributes.keys() for _, attributes in plain.tags]
    assert hostile.text.count(HOSTILE) == plain.text.count(harmless) > 20


def test_links_of_the_navigation_lead_to_the_sections() -> None:
    sections = [Section("k-NN", []), Section("Use the backbone", []), Section("Data & environment", [])]
    read = Read(Page("kind", "title", [], "", sections, "").html())
    assert [attributes["href"] for tag, attributes in read.tags if tag == "a"] == [
        "#k-nn",
        "#use-the-backbone",
        "#data-environment",
    ]
    assert [attributes["id"] for tag, attributes in read.tags if tag == "section"] == [
        "k-nn",
        "use-the-backbone",
        "data-environment",
    ]


def test_a_badge_says_its_verdict_without_its_colour() -> None:
    texts = [Read(Badge(kind, "verdict").html()).text for kind in ("good", "bad", "open")]
    assert texts == ["✓ verdict", "✗ verdict", "○ verdict"]


def test_a_bar_is_as_long_as_its_share_and_its_whisker_one_standard_error_to_each_side() -> None:
    html = Bars([Bar("k-NN", 0.625, 0.02), Bar("sure", 1.0, 0.01), Bar("majority", 0.5)]).html()
    assert re.findall(r'class="fill" style="width:([\d.]+)%"', html) == ["62.50", "100.00", "50.00"]
    assert re.findall(r'class="whisker" style="left:([\d.]+)%;width:([\d.]+)%"', html) == [
        ("60.50", "4.00"),
        ("99.00", "1.00"),
    ]
    assert "62.5 % ± 2.0" in html
    assert "50.0 %</b>" in html


def test_columns_of_numbers_are_set_to_the_right_and_long_ones_keep_a_width() -> None:
    rows = [["10", "70.1 % ± 2.0", "18.3 px", "–", "swin", 41 * "a"], ["200", "1.2e-05", "−3", "1,024", "", "b"]]
    cells = [
        attributes.get("class") for tag, attributes in Read(Table(list("abcdef"), rows).html()).tags if tag == "td"
    ]
    assert cells == 2 * [*4 * ["number"], None, "long"]


def test_a_small_picture_is_embedded_as_it_is() -> None:
    assert picture_uri(png()) == f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def test_a_large_picture_becomes_smaller_and_keeps_its_shape() -> None:
    large = png(900, 1800, noise=True)
    assert len(large) > 4_000_000
    head, _, content = picture_uri(large).partition(",")
    assert head == "data:image/webp;base64"
    assert len(base64.b64decode(content)) <= 400_000
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.width == 2 * image.height


values = st.floats(-1e4, 1e4).map(lambda value: round(value, 3))


def ticks(svg: str, anchor: str, place: str) -> list[tuple[float, float]]:
    """(value, position) of the numbers along an axis."""
    found = re.findall(rf'<text class="tick" x="([-\d.]+)" y="([-\d.]+)" text-anchor="{anchor}">([^<]+)<', svg)
    return [(float(text.replace(",", "")), float(x) if place == "x" else float(y) - 4) for x, y, text in found]


def drawn(svg: str, element: str = "polyline") -> list[list[tuple[float, float]]]:
    return [
        [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]
        for points in re.findall(rf'<{element} class="[^"]*" points="([^"]*)"', svg)
    ]


def along(known: list[tuple[float, float]], position: float) -> float:
    (first, start), (last, end) = known[0], known[-1]
    return first + (position - start) / (end - start) * (last - first)


@settings(max_examples=100, deadline=None)
@given(y=st.lists(values, min_size=2, max_size=30), spacing=st.sampled_from([0.1, 1.0, 250.0]))
def test_the_points_of_a_curve_lie_where_the_ticks_say(y: list[float], spacing: float) -> None:
    assume(max(y) - min(y) > 0.05)
    svg = line_chart(Chart("loss", [Line("", [spacing * index for index in range(len(y))], y)]))
    x_ticks, y_ticks = ticks(svg, "middle", "x"), ticks(svg, "end", "y")
    assert 2 <= len(x_ticks) <= 6
    assert 2 <= len(y_ticks) <= 5
    per_x = (x_ticks[-1][0] - x_ticks[0][0]) / (x_ticks[-1][1] - x_ticks[0][1])  # of a pixel
    per_y = (y_ticks[-1][0] - y_ticks[0][0]) / (y_ticks[0][1] - y_ticks[-1][1])
    (points,) = drawn(svg)
    for index, (point, value) in enumerate(zip(points, y, strict=True)):
        assert along(x_ticks, point[0]) == pytest.approx(spacing * index, abs=0.8 * per_x)
        assert along(y_ticks, point[1]) == pytest.approx(value, abs=0.8 * per_y)


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    svg = line_chart(Chart("loss", [Line("", [0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, None, 4.0, 5.0])]))
    assert [len(piece) for piece in drawn(svg)] == [2, 2]
    assert svg.count("<circle") == 4


def test_a_chart_without_a_finite_value_is_refused() -> None:
    with pytest.raises(ValueError, match="'loss' has no finite value"):
        line_chart(Chart("loss", [Line("", [0.0, 1.0], [None, None])]))


def test_a_long_curve_is_thinned_to_means_within_the_range_of_what_they_stand_for() -> None:
    y = np.random.default_rng(0).normal(size=10_000)
    y[5000] = 9.0
    svg = line_chart(Chart("loss", [Line("", [*map(float, range(len(y)))], y.tolist())]))
    known = ticks(svg, "end", "y")
    (curve,), (band,) = drawn(svg), drawn(svg, "polygon")
    assert 100 < len(curve) <= 240
    assert len(band) == 2 * len(curve)
    means = [along(known, point[1]) for point in curve]
    assert np.mean(means) == pytest.approx(y.mean(), abs=0.05)
    assert max(np.abs(means)) < 2
    assert max(along(known, point[1]) for point in band) == pytest.approx(9.0, abs=0.1)


def test_errors_are_a_band_around_the_curve() -> None:
    svg = line_chart(Chart("k-NN", [Line("", [0.0, 1.0], [60.0, 70.0], errors=[2.0, 4.0])]))
    known = ticks(svg, "end", "y")
    (band,) = drawn(svg, "polygon")
    assert [along(known, y) for _, y in band] == pytest.approx([62, 74, 66, 58], abs=0.2)


@settings(max_examples=100, deadline=None)
@given(ends=st.lists(values, min_size=1, max_size=8))
def test_labels_of_a_chart_do_not_lie_on_each_other(ends: list[float]) -> None:
    lines = [Line(f"line {index}", [0.0, 1.0], [0.0, end]) for index, end in enumerate(ends[:4])]
    levels = [(f"level {index}", level) for index, level in enumerate(ends[4:])]
    svg = line_chart(Chart("many", lines, levels))
    heights = [float(y) for y in re.findall(r'<text class="[^"]*" x="[\d.]+" y="([-\d.]+)">l', svg)]
    assert len(heights) == len(ends)
    assert all(0 < height < 200 for height in heights)
    assert all(below - above > 12.8 for above, below in zip(sorted(heights), sorted(heights)[1:], strict=False))
