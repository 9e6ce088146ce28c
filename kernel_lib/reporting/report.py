"""A self-contained HTML page of sentences, pictures and tables."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kernel_lib.reporting.picture import RESEARCH_ONLY, Picture
from kernel_lib.storage import write_text

MAX_ROWS = 200  # shown of a table

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff;
  overflow-wrap: anywhere; max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .6rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; border-bottom: 1px solid #d9d9d9; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0 1.2rem; }
p { max-width: 48rem; margin: .5rem 0; white-space: pre-line; }
nav { background: #f4f5f7; padding: .6rem 1.2rem; margin: 1.2rem 0; }
nav ol { margin: 0; padding-left: 1.4rem; columns: 2; }
a { color: #00336f; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e3e3e3;
  min-width: 3rem; }
th { border-bottom: 2px solid #888; overflow-wrap: break-word; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
dl { display: grid; grid-template-columns: fit-content(40%) 1fr; gap: .15rem 1.2rem; }
dt { color: #555; } dd { margin: 0; }
footer { margin: 3rem 0 1rem; padding-top: .6rem; border-top: 1px solid #d9d9d9; color: #555; }
ul.problems { border-left: 4px solid #b26a00; padding: .4rem 0 .4rem 2rem; background: #fff8ec; }
"""


@dataclass(frozen=True)
class Section:
    """A heading with its body: a Picture, table, text, list of problems, or a tuple of these.

    Paragraphs of a text are separated by an empty line. All text is escaped.
    """

    title: str
    body: Any


def write_report(
    path: Path, title: str, sections: Sequence[Section], meta: Mapping[str, Any] | None = None
) -> None:
    """Write the page atomically; `meta` is listed at its top as names and values.

    Raises: TypeError for a body of another type.
    """
    write_text(Path(path), page(title, sections, meta))


def page(title: str, sections: Sequence[Section], meta: Mapping[str, Any] | None = None) -> str:
    """Return the complete HTML page, which loads nothing from elsewhere."""
    name = html.escape(title)
    links, parts = [], []
    for number, section in enumerate(sections, 1):
        heading = html.escape(section.title)
        links.append(f'<li><a href="#part-{number}">{heading}</a></li>')
        bodies = section.body if isinstance(section.body, tuple) else (section.body,)
        body = "\n".join(_part(section.title, part) for part in bodies)
        parts.append(f'<section id="part-{number}"><h2>{heading}</h2>\n{body}</section>')
    rows = "".join(
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(_cell(value))}</dd>"
        for name, value in (meta or {}).items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><h1>{name}</h1>\n{f'<dl>{rows}</dl>' if rows else ''}\n"
        f"<nav><ol>{''.join(links)}</ol></nav>\n{chr(10).join(parts)}\n"
        f"<footer>{RESEARCH_ONLY}</footer>\n</body></html>\n"
    )


def _part(title: str, body: Any) -> str:
    if isinstance(body, Picture):
        return body.to_html()
    if isinstance(body, pd.DataFrame):
        return _table(body)
    if isinstance(body, str):
        paragraphs = [text.strip("\n") for text in body.split("\n\n") if text.strip()]
        return "\n".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)
    if isinstance(body, list):
        if not body:
            return "<p>No problems.</p>"
        items = "".join(f"<li>{html.escape(str(problem))}</li>" for problem in body)
        return f'<ul class="problems">{items}</ul>'
    raise TypeError(
        f"the section {title!r} holds a {type(body).__name__}: "
        "give a Picture, a DataFrame, a str, a list of problems, or a tuple of these"
    )


def _table(table: pd.DataFrame) -> str:
    """Return the first rows of a table without its index, numbers aligned right."""
    if table.empty:
        return "<p>The table is empty.</p>"
    numeric = map(pd.api.types.is_numeric_dtype, table.dtypes)
    kinds = [' class="number"' if is_number else "" for is_number in numeric]

    def row(tag: str, texts: Iterable[str]) -> str:
        cells = zip(kinds, texts, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{html.escape(t)}</{tag}>' for kind, t in cells)}</tr>"

    head = row("th", map(str, table.columns))
    shown = table.head(MAX_ROWS).itertuples(index=False, name=None)
    rows = "".join(row("td", map(_cell, values)) for values in shown)
    note = f"<p>The first {MAX_ROWS} of {len(table):,} rows.</p>" if len(table) > MAX_ROWS else ""
    return (
        f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>{note}'
    )


def _cell(value: Any) -> str:
    """Return a number with six significant digits, anything else as text, a missing value as –."""
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if isinstance(value, float):  # NumPy's float64 as well
        if math.isnan(value):
            return "–"
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.6g}"
    return str(value)
