"""The browser that pages are opened in: for tests, benchmarks and the README's pictures."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MISSING = "no Chromium to open pages in: apt-get install chromium"


def path() -> str | None:
    """Return the path of Chromium; None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def started(more_args: Iterable[str] = ()) -> Iterator:
    """Start Chromium, headless, by playwright; SystemExit where there is none."""
    from playwright.sync_api import sync_playwright

    if path() is None:
        raise SystemExit(MISSING)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path(), args=[*ARGS, *more_args])
        yield browser
        browser.close()
