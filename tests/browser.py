"""A real browser, offline, that opens pages from disk and lets no error or request pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.benchmarks import browser as chromium


# A module's own: playwright keeps an event loop running, which other modules' tests could not bear.
@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, headless; tests skip where there is none."""
    pytest.importorskip("playwright.sync_api", reason="no playwright: make setup installs it")
    if chromium.path() is None:
        pytest.skip(chromium.MISSING)
    with chromium.started() as started:
        yield started


@pytest.fixture
def open_page(browser, tmp_path: Path) -> Iterator[Callable]:
    """`open_page(html, init="", **context)` opens a page from disk, with the network off.

    At the end it must have logged no error and asked for nothing but its own file.
    """
    contexts, faults, requests, files = [], [], [], []

    def opened(html: str, init: str = "", **options):
        file = tmp_path / f"page {len(files)}.html"
        file.write_text(html, encoding="utf-8")
        files.append(file.as_uri())
        options = {"viewport": {"width": 1280, "height": 720}} | options
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        if init:
            context.add_init_script(init)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda said: faults.append(said.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
    assert requests == files
