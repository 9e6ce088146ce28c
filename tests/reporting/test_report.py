"""The report is a well-formed page that loads nothing and escapes all text."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernel_lib.reporting import figures, overlays
from kernel_lib.reporting.report import MAX_ROWS, Section, page, write_report

HOSTILE = "\"><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>&'$x$"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags and text of a page in which every tag is closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def sections() -> list[Section]:
    example = overlays.Example(HOSTILE, np.zeros((32, 32), np.uint8), caption=HOSTILE)
    table = pd.DataFrame({HOSTILE: [HOSTILE, "b"], "dice": [0.123456789, np.nan], "n": [1, 2000]})
    return [
        Section("Pictures", (figures.mask_areas([5, 60, 700]), overlays.examples([example]))),
        Section("Nothing to draw", figures.learning_curves({})),
        Section(HOSTILE, table),
        Section("Problems", [HOSTILE, "row 3: a gap"]),
        Section("No problems", []),
        Section("Words", f"First.\n\n{HOSTILE}"),
        Section("Empty table", pd.DataFrame({"a": []})),
    ]


def test_the_page_is_well_formed_loads_nothing_and_links_its_sections() -> None:
    text = page("Run", sections(), {"run": "r"})
    parsed = Page(text)
    for _, attrs in parsed.tags:
        for name in ("src", "href", "data", "action", "srcset"):
            value = attrs.get(name) or ""
            assert not value or value.startswith(("#", "data:image/png;base64,"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert "url(" not in text
    assert "@import" not in text
    assert len(parsed.named("img")) == 2
    assert all(attrs["alt"] for attrs in parsed.named("img"))
    assert parsed.text.rstrip().endswith("Research only, not a medical device.")
    targets = [attrs["href"].removeprefix("#") for attrs in parsed.named("a")]
    assert targets == [attrs["id"] for attrs in parsed.named("section")]
    assert len(targets) == 7
    sentence = figures.mask_areas([5, 60, 700]).sentence
    assert 0 < text.index(sentence) < text.index("<img"), "above its picture"
    assert page("Run", sections(), {"run": "r"}) == text, "the same input gives the same page"


@pytest.mark.parametrize("width", [400, 1100])
def test_long_names_do_not_widen_the_page(open_page: Callable, width: int) -> None:
    name = "+".join(f"deeplabv3plus_supervision_resnet_1024_v1_seed{k}" for k in range(3))
    scores = pd.DataFrame({name: [0.25], "rule": [name], "dice": [0.5]})
    sections = [Section(name, f"{name}:"), Section("Scores", scores)]
    viewport = {"width": width, "height": 800}
    opened = open_page(page(name, sections, {f"rule of {name}": name}), viewport=viewport)
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    assert opened.locator("dd").bounding_box()["width"] > 0.4 * (width - 40)


def test_hostile_text_is_shown_as_it_stands() -> None:
    text = page(HOSTILE, sections(), {HOSTILE: HOSTILE})
    parsed = Page(text)
    assert "<script" not in text
    assert not any("onerror" in attrs for _, attrs in parsed.tags)
    # Title, heading, meta (twice), contents, section, table (head, cell), problem, words.
    assert parsed.text.count(HOSTILE) >= 10


def test_numbers_are_short_and_missing_ones_a_dash() -> None:
    text = page("Run", sections(), {"score": 0.8123456789, "nothing": None})
    for part in ("0.123457", "0.812346", "<dd>–</dd>", '<td class="number">–</td>'):
        assert part in text


def test_a_long_table_is_cut_with_a_note() -> None:
    text = page("Run", [Section("Long", pd.DataFrame({"n": range(MAX_ROWS + 5)}))])
    assert f"The first {MAX_ROWS} of {MAX_ROWS + 5} rows." in text
    assert len(Page(text).named("tr")) == MAX_ROWS + 1


def test_a_body_of_another_type_is_refused_and_the_old_report_kept(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, "Run", sections())
    before = path.read_bytes()
    with pytest.raises(TypeError, match="'Odd' holds a float"):
        write_report(path, "Run", [*sections(), Section("Odd", 1.5)])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
