"""Blocks of a report, and the page around them: one HTML string that opens from a file, without network or scripts.

Each block is a function from plain values to HTML; it escapes all text and embeds all figures. A page is readable on a
phone, in light and in dark, and in print. Its policy forbids scripts and everything that would come from elsewhere.
What a report says is left to `glsd.reporting.pages`.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Literal, NewType

from PIL import Image

from glsd.reporting.numbers import share_text

Html = NewType("Html", str)
"""HTML in which all text is escaped."""

_MAX_PICTURE_BYTES, _PICTURE_WIDTHS = 400_000, (1600, 1200, 900, 600)
_LONG_CELL = 40  # letters from which a column keeps some width on a phone
_NUMBER = re.compile(r"[-+−]?[\d,.]+(e[-+]?\d+)?( %| px)?( ± [\d.]+)?|–|")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] with its standard error."""

    name: str
    share: float
    error: float | None = None
    emphasised: bool = False


def badge(kind: Literal["good", "bad", "open"], text: str) -> Html:
    """A verdict of a few words, with a symbol so that its colour is not needed."""
    symbol = {"good": "✓", "bad": "✗", "open": "○"}[kind]
    return Html(f'<span class="badge {kind}"><span aria-hidden="true">{symbol}</span> {escape(text)}</span>')


def prose(text: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{escape(text)}</p>")


def points(texts: Sequence[str]) -> Html:
    """A list of sentences."""
    return Html(f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>")


def code(text: str) -> Html:
    """Lines to copy."""
    return Html(f'<pre tabindex="0"><code>{escape(text)}</code></pre>')


def tiles(values: Sequence[tuple[str, str]]) -> Html:
    """Single numbers in a row that wraps: (value, what it is)."""
    cells = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for value, name in values)
    return Html(f'<dl class="tiles">{cells}</dl>')


def facts(values: Sequence[tuple[str, str]]) -> Html:
    """Names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in values)
    return Html(f'<dl class="facts">{rows}</dl>')


def bars(shown: Sequence[Bar]) -> Html:
    """Shares below each other on an axis from 0 to 100 %, with whiskers of one standard error."""
    parts = []
    for bar in shown:
        whisker = ""
        if bar.error is not None:
            low, high = max(0.0, bar.share - bar.error), min(1.0, bar.share + bar.error)
            whisker = f'<i class="whisker" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
        parts.append(
            f'<div class="bar{" strong" if bar.emphasised else ""}"><span>{escape(bar.name)}</span>'
            f"<b>{share_text(bar.share, bar.error)}</b>"
            f'<div class="track"><i class="fill" style="width:{100 * bar.share:.2f}%"></i>{whisker}</div></div>'
        )
    return Html(f'<div class="bars">{"".join(parts)}</div>')


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Html:
    """Rows of texts in a box that scrolls; columns of numbers are set to the right."""
    classes = [_column_class([row[column] for row in rows]) for column in range(len(header))]
    head = "".join(f"<th{name}>{escape(text)}</th>" for name, text in zip(classes, header, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{name}>{_breakable(cell)}</td>' for name, cell in zip(classes, row, strict=True))}</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    content = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Html(f'<div class="scroll" tabindex="0">{content}</div>')


def charts(drawn: Sequence[tuple[str, str]]) -> Html:
    """(title, SVG element) of charts, next to each other where there is room."""
    cards = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in drawn)
    return Html(f'<div class="charts">{cards}</div>')


def picture(content: bytes | str, title: str, caption: str = "") -> Html:
    """A PNG file's bytes or an SVG element, with a title and a sentence on how to read it."""
    if isinstance(content, str):
        shown = f'<div class="wide" tabindex="0">{content}</div>'
    else:
        shown = f'<img src="{picture_uri(content)}" alt="{escape(title, quote=True)}">'
    return Html(
        f'<figure class="picture">{shown}<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption></figure>'
    )


def details(summary: str, blocks: Sequence[Html]) -> Html:
    """Blocks that are folded away; they open without a script."""
    return Html(f"<details><summary>{escape(summary)}</summary>{_joined(blocks)}</details>")


@dataclass(frozen=True)
class Head:
    """The top of a page."""

    kind: str
    title: str
    badges: Sequence[Html]
    lead: str


def page(head: Head, sections: Mapping[str, Sequence[Html]], footer: str) -> str:
    """The whole document; `sections` are the blocks by the titles that the navigation lists."""
    kind, title, lead = escape(head.kind), escape(head.title), escape(head.lead)
    anchors = {name: re.sub(r"\W+", "-", name.lower()).strip("-") for name in sections}
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for name, anchor in anchors.items())
    body = "\n".join(
        f'<section id="{anchors[name]}"><h2>{escape(name)}</h2>{_joined(blocks)}</section>'
        for name, blocks in sections.items()
    )
    style = files("glsd.reporting.page").joinpath("style.css").read_text("utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · {kind}</title>
<style>
{style}</style>
</head>
<body>
<header><p class="kind">{kind}</p><h1>{title}</h1><p class="badges">{_joined(head.badges)}</p><p class="lead">{lead}</p>
</header>
<nav>{links}</nav>
<main>
{body}</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""


def picture_uri(content: bytes) -> str:
    """The `data:` URI of a PNG file; a large one becomes WebP, smaller until it fits 400 kB or is 600 pixels wide."""
    if len(content) <= _MAX_PICTURE_BYTES:
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"
    with Image.open(io.BytesIO(content)) as image:
        full = image.convert("RGB")
    for width in _PICTURE_WIDTHS:
        stream = io.BytesIO()
        scaled = full if full.width <= width else full.resize((width, round(full.height * width / full.width)))
        scaled.save(stream, "WEBP", quality=85)
        if stream.tell() <= _MAX_PICTURE_BYTES:
            break
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _breakable(text: str) -> str:
    """Escaped text that may break within dotted keys and paths."""
    return re.sub(r"(?<=[^\W\d])([./_])(?=[^\W\d])", r"\1<wbr>", escape(text))


def _column_class(cells: Sequence[str]) -> str:
    if all(_NUMBER.fullmatch(cell) for cell in cells):
        return ' class="number"'
    return ' class="long"' if max(map(len, cells)) > _LONG_CELL else ""


def _joined(blocks: Sequence[Html]) -> str:
    return "\n".join(blocks)
