"""Blocks of a report and the page around them: one HTML string that opens from a file, without a network or scripts.

Every block is a record of plain values whose `html` escapes all text; a figure is embedded. A page is readable on a
phone, in light and in dark, and in print; its policy forbids scripts and whatever would come from elsewhere. What a
report says is left to those who collect it.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

from glsd.reporting.page.charts import Chart, line_chart

_MAX_PICTURE_BYTES, _PICTURE_WIDTHS = 400_000, (1600, 1200, 900, 600)
_LONG_CELL = 40  # letters from which a column keeps some width on a phone
_NUMBER = re.compile(r"[-+−]?[\d,.]+(e[-+]?\d+)?( %| px)?( ± [\d.]+)?|–|")


@runtime_checkable
class Block(Protocol):
    """A part of a section."""

    def html(self) -> str:
        """The block as HTML."""


@dataclass(frozen=True)
class Badge:
    """A verdict of a few words, with a symbol so that its colour is not needed."""

    kind: Literal["good", "bad", "open"]
    text: str

    def html(self) -> str:
        """A pill."""
        symbol = {"good": "✓", "bad": "✗", "open": "○"}[self.kind]
        return f'<span class="badge {self.kind}"><span aria-hidden="true">{symbol}</span> {escape(self.text)}</span>'


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str

    def html(self) -> str:
        """A paragraph."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    texts: Sequence[str]

    def html(self) -> str:
        """A list."""
        return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in self.texts)}</ul>"


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str

    def html(self) -> str:
        """Preformatted text."""
        return f'<pre tabindex="0"><code>{escape(self.text)}</code></pre>'


@dataclass(frozen=True)
class Tiles:
    """Single numbers: (value, what it is)."""

    tiles: Sequence[tuple[str, str]]

    def html(self) -> str:
        """A row that wraps."""
        cells = "".join(f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for value, name in self.tiles)
        return f'<dl class="tiles">{cells}</dl>'


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] with its standard error."""

    name: str
    share: float
    error: float | None = None
    emphasised: bool = False

    @property
    def text(self) -> str:
        """The share in per cent."""
        return share_text(self.share, self.error)


@dataclass(frozen=True)
class Bars:
    """Shares below each other, on an axis from 0 to 100 %."""

    bars: Sequence[Bar]

    def html(self) -> str:
        """Bars, with whiskers of one standard error."""
        return f'<div class="bars">{"".join(self._bar(bar) for bar in self.bars)}</div>'

    def _bar(self, bar: Bar) -> str:
        whisker = ""
        if bar.error is not None:
            low, high = max(0.0, bar.share - bar.error), min(1.0, bar.share + bar.error)
            whisker = f'<i class="whisker" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
        return (
            f'<div class="bar{" strong" if bar.emphasised else ""}"><span>{escape(bar.name)}</span><b>{bar.text}</b>'
            f'<div class="track"><i class="fill" style="width:{100 * bar.share:.2f}%"></i>{whisker}</div></div>'
        )


@dataclass(frozen=True)
class Table:
    """Rows of texts; columns of numbers are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def html(self) -> str:
        """A table that scrolls in its own box."""
        classes = [_column([row[column] for row in self.rows]) for column in range(len(self.header))]
        head = "".join(f"<th{name}>{escape(text)}</th>" for name, text in zip(classes, self.header, strict=True))
        body = "".join(
            f"<tr>{''.join(f'<td{name}>{_breakable(cell)}</td>' for name, cell in zip(classes, row, strict=True))}</tr>"
            for row in self.rows
        )
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        return (
            f'<div class="scroll" tabindex="0"><table>{caption}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    facts: Sequence[tuple[str, str]]

    def html(self) -> str:
        """A list of definitions."""
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in self.facts)
        return f'<dl class="facts">{rows}</dl>'


@dataclass(frozen=True)
class Charts:
    """Line charts, side by side where there is room."""

    charts: Sequence[Chart]

    def html(self) -> str:
        """A grid of charts."""
        cards = "".join(
            f"<figure><figcaption>{escape(chart.title)}</figcaption>{line_chart(chart)}</figure>"
            for chart in self.charts
        )
        return f'<div class="charts">{cards}</div>'


@dataclass(frozen=True)
class FigureBlock:
    """A picture, as the bytes of a PNG file, with a title and a sentence on how to read it."""

    picture: bytes
    title: str
    caption: str = ""

    def html(self) -> str:
        """The picture on white paper."""
        caption = f" {escape(self.caption)}" if self.caption else ""
        return (
            f'<figure class="picture"><img src="{picture_uri(self.picture)}" alt="{escape(self.title, quote=True)}">'
            f"<figcaption><b>{escape(self.title)}.</b>{caption}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away."""

    summary: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """Opens without a script."""
        return f"<details><summary>{escape(self.summary)}</summary>{_joined(self.blocks)}</details>"


@dataclass(frozen=True)
class Section:
    """A part of the page with a title, which the navigation lists."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """Where links of the page lead."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def html(self) -> str:
        """The section."""
        return f'<section id="{self.anchor}"><h2>{escape(self.title)}</h2>{_joined(self.blocks)}</section>'


@dataclass(frozen=True)
class Page:
    """A report."""

    kind: str
    title: str
    badges: Sequence[Badge]
    lead: str
    sections: Sequence[Section]
    footer: str

    def html(self) -> str:
        """The whole document."""
        links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in self.sections)
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n'
            f"<title>{escape(self.title)} · {escape(self.kind)}</title>\n"
            f"<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<header><p class="kind">{escape(self.kind)}</p><h1>{escape(self.title)}</h1>'
            f'<p class="badges">{_joined(self.badges)}</p><p class="lead">{escape(self.lead)}</p></header>\n'
            f"<nav>{links}</nav>\n<main>\n{_joined(self.sections)}</main>\n"
            f"<footer>{escape(self.footer)}</footer>\n</body>\n</html>\n"
        )


def share_text(share: float, error: float | None = None) -> str:
    """A share in per cent, with its standard error.

    >>> share_text(0.70666, 0.0199)
    '70.7 % ± 2.0'
    """
    return f"{100 * share:.1f} %" + ("" if error is None else f" ± {100 * error:.1f}")


def picture_uri(picture: bytes) -> str:
    """The `data:` URI of a PNG file; a large one becomes WebP, smaller until it fits 400 kB or is 600 pixels wide."""
    if len(picture) <= _MAX_PICTURE_BYTES:
        return _data_uri("image/png", picture)
    with Image.open(io.BytesIO(picture)) as image:
        full = image.convert("RGB")
    content = picture
    for width in _PICTURE_WIDTHS:
        stream = io.BytesIO()
        scaled = full if full.width <= width else full.resize((width, round(full.height * width / full.width)))
        scaled.save(stream, "WEBP", quality=85)
        content = stream.getvalue()
        if len(content) <= _MAX_PICTURE_BYTES:
            break
    return _data_uri("image/webp", content)


def _breakable(text: str) -> str:
    """Escaped text that may break within dotted keys and paths."""
    return re.sub(r"(?<=[^\W\d])([./_])(?=[^\W\d])", r"\1<wbr>", escape(text))


def _column(cells: Sequence[str]) -> str:
    if all(_NUMBER.fullmatch(cell) for cell in cells):
        return ' class="number"'
    return ' class="long"' if max(map(len, cells)) > _LONG_CELL else ""


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _joined(blocks: Sequence[Block]) -> str:
    return "\n".join(block.html() for block in blocks)


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { --ink: #1c2128; --soft: #59636e; --rule: #d8dee4; --card: #ffffff; --ground: #f5f6f8; --accent: #0066a1;
  --good: #116329; --good-ground: #dcf3e3; --bad: #a40e26; --bad-ground: #fde3e3; --open-ground: #e6ebf1;
  --c0: #0072b2; --c1: #b34d00; --c2: #00805d; --c3: #a2477f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --soft: #9ba6b2; --rule: #303841; --card: #171c22;
  --ground: #0e1216; --accent: #6cbcf0; --good: #6fdd8b; --good-ground: #12331d; --bad: #ff9492; --bad-ground: #451a1d;
  --open-ground: #252d36; --c0: #56b4e9; --c1: #e69f00; --c2: #35c79a; --c3: #dd95bd; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 70rem; padding: 0 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
header { padding: 1.75rem 0 .75rem; }
.kind { margin: 0; color: var(--soft); font-size: .8125rem; font-weight: 600; letter-spacing: .06em;
  text-transform: uppercase; }
h1 { margin: .1rem 0 .6rem; font-size: clamp(1.6rem, 5vw, 2.25rem); line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.25rem; line-height: 1.3; }
p, ul { max-width: 70ch; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
.badges { display: flex; flex-wrap: wrap; gap: .5rem; margin: 0 0 .75rem; }
.badge { padding: .15rem .7rem; border-radius: 1rem; font-size: .9375rem; font-weight: 600; }
.good { color: var(--good); background: var(--good-ground); }
.bad { color: var(--bad); background: var(--bad-ground); }
.open { background: var(--open-ground); }
.lead { margin: 0; color: var(--soft); }
nav { position: sticky; top: 0; z-index: 1; display: flex; gap: 1.1rem; margin: 0 -1rem; padding: .55rem 1rem;
  overflow-x: auto; white-space: nowrap; background: var(--ground); border-bottom: 1px solid var(--rule);
  scrollbar-width: none; }
nav a { color: var(--soft); font-size: .9375rem; text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--accent); text-decoration: underline; }
@media (min-width: 48rem) { nav { flex-wrap: wrap; row-gap: .2rem; } }
section { padding: 1.6rem 0 .4rem; scroll-margin-top: 2.2rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); gap: .75rem; margin: 0 0 1rem; }
.tiles div { display: flex; flex-direction: column; padding: .7rem .8rem; border: 1px solid var(--rule);
  border-radius: .6rem; background: var(--card); }
.tiles dd { margin: 0; font-size: 1.375rem; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles dt { color: var(--soft); font-size: .8125rem; line-height: 1.4; }
.bars { display: grid; gap: .8rem; max-width: 46rem; margin: 0 0 1rem; padding: 1rem; border: 1px solid var(--rule);
  border-radius: .6rem; background: var(--card); }
.bar { display: grid; grid-template-columns: 1fr auto; column-gap: 1rem; font-variant-numeric: tabular-nums; }
.bar b { font-weight: 500; white-space: nowrap; }
.bar.strong span, .bar.strong b { font-weight: 700; }
.track { position: relative; grid-column: 1 / -1; height: .625rem; margin-top: .2rem; border-radius: .3rem;
  background: var(--open-ground); }
.fill { position: absolute; inset: 0 auto 0 0; border-radius: .3rem; background: var(--soft); }
.strong .fill { background: var(--c0); }
.whisker { position: absolute; top: .25rem; height: .125rem; background: var(--ink); }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -.1875rem; width: .125rem; height: .5rem;
  background: var(--ink); }
.whisker::before { left: 0; }
.whisker::after { right: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); gap: .75rem;
  margin: 0 0 1rem; }
figure { margin: 0; padding: .8rem .9rem .6rem; border: 1px solid var(--rule); border-radius: .6rem;
  background: var(--card); break-inside: avoid; }
.charts figcaption { margin-bottom: .3rem; font-size: .9375rem; font-weight: 600; }
.chart { display: block; width: 100%; height: auto; font-size: 11px; overflow: visible; }
.chart text { font-variant-numeric: tabular-nums; }
.tick { fill: var(--soft); }
.grid { stroke: var(--rule); }
.level { stroke: var(--soft); stroke-dasharray: 1.5 3; stroke-linecap: round; }
.line { fill: none; stroke: var(--own); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.band { fill: var(--own); opacity: .18; }
.mark, .of { fill: var(--own); }
.of { font-weight: 600; }
.c0 { --own: var(--c0); } .c1 { --own: var(--c1); } .c2 { --own: var(--c2); } .c3 { --own: var(--c3); }
.d1 { stroke-dasharray: 6 4; } .d2 { stroke-dasharray: 1 4; } .d3 { stroke-dasharray: 8 3 1 3; }
.picture { margin: 0 0 1rem; padding: 0; overflow: hidden; }
.picture img { display: block; width: 100%; height: auto; padding: .6rem; background: #fff; }
.picture figcaption { max-width: 80ch; padding: .6rem .9rem .8rem; font-size: .9375rem; }
.scroll { width: fit-content; max-width: 100%; margin: 0 0 1rem; overflow-x: auto; border: 1px solid var(--rule);
  border-radius: .6rem; background: var(--card); }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
caption { padding: .6rem .9rem 0; color: var(--soft); text-align: left; font-size: .875rem; }
th, td { padding: .45rem .9rem; text-align: left; vertical-align: top; }
td { min-width: 4rem; max-width: 34rem; border-top: 1px solid var(--rule); overflow-wrap: break-word; }
th { color: var(--soft); font-size: .8125rem; font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.long { min-width: 16rem; }
.facts { display: grid; grid-template-columns: minmax(7rem, max-content) minmax(0, 1fr); gap: .3rem 1.25rem;
  margin: 0 0 1rem; font-size: .9375rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0 0 1rem; padding: .8rem .9rem; overflow-x: auto; border: 1px solid var(--rule); border-radius: .6rem;
  background: var(--card); font: .875rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font: inherit; }
details { margin: 0 0 1rem; }
summary { padding: .3rem 0; color: var(--accent); cursor: pointer; }
details > :nth-child(2) { margin-top: .5rem; }
footer { margin-top: 1.5rem; padding-top: .8rem; border-top: 1px solid var(--rule); color: var(--soft);
  font-size: .875rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { .picture img { filter: brightness(.9); } }
@media print {
  :root { --ink: #000; --soft: #444; --rule: #bbb; --card: #fff; --ground: #fff; --open-ground: #e8e8e8; --c0: #0072b2;
    --c1: #b34d00; --c2: #00805d; --c3: #a2477f; --good: #116329; --bad: #a40e26; --accent: #000; }
  nav { display: none; }
  body { max-width: none; padding: 0; font-size: 10.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  .scroll { overflow: visible; }
  .picture img { filter: none; }
  details::details-content { display: block; content-visibility: visible; }
  h2, tr { break-after: avoid; break-inside: avoid; }
}
"""
