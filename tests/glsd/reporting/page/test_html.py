import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from glsd.reporting.figures.charts import Chart, Line, chart_svg
from glsd.reporting.page import html
from glsd.reporting.page.html import Bar, Html, picture_uri

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


def every_block(text: str) -> list[Html]:
    chart = chart_svg(Chart(text, [Line(text, [0.0, 1.0], [0.0, 1.0])], [(text, 0.5)], text))
    return [
        html.prose(text),
        html.points([text]),
        html.code(text),
        html.tiles([(text, text)]),
        html.bars([Bar(text, 0.5, 0.1)]),
        html.table([text], [[text]], text),
        html.facts([(text, text)]),
        html.charts([(text, chart)]),
        html.picture(png(), text, text),
        html.picture(chart, text, text),
        html.details(text, [html.prose(text)]),
    ]


def page(text: str) -> str:
    head = html.Head(text, text, [html.badge("open", text)], text)
    return html.page(head, {text: every_block(text)}, text)


def test_text_stays_text_wherever_it_stands() -> None:
    harmless = len(HOSTILE) * "x"
    plain, hostile = Read(page(harmless)), Read(page(HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [attributes.keys() for _, attributes in hostile.tags] == [attributes.keys() for _, attributes in plain.tags]
    assert hostile.text.count(HOSTILE) == plain.text.count(harmless) > 20


def test_links_of_the_navigation_lead_to_the_sections() -> None:
    sections = {"k-NN": [], "Use the backbone": [], "Data & environment": []}
    read = Read(html.page(html.Head("kind", "title", [], ""), sections, ""))
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
    texts = [Read(html.badge(kind, "verdict")).text for kind in ("good", "bad", "open")]
    assert texts == ["✓ verdict", "✗ verdict", "○ verdict"]


def test_a_bar_is_as_long_as_its_share_and_its_whisker_one_standard_error_to_each_side() -> None:
    drawn = html.bars([Bar("k-NN", 0.625, 0.02), Bar("sure", 1.0, 0.01), Bar("majority", 0.5)])
    assert re.findall(r'class="fill" style="width:([\d.]+)%"', drawn) == ["62.50", "100.00", "50.00"]
    assert re.findall(r'class="whisker" style="left:([\d.]+)%;width:([\d.]+)%"', drawn) == [
        ("60.50", "4.00"),
        ("99.00", "1.00"),
    ]
    assert "62.5 % ± 2.0" in drawn
    assert "50.0 %</b>" in drawn


def test_columns_of_numbers_are_set_to_the_right_and_long_ones_keep_a_width() -> None:
    rows = [["10", "70.1 % ± 2.0", "18.3 px", "–", "swin", 41 * "a"], ["200", "1.2e-05", "−3", "1,024", "", "b"]]
    cells = [attributes.get("class") for tag, attributes in Read(html.table(list("abcdef"), rows)).tags if tag == "td"]
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
