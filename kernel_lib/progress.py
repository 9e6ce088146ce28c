"""Progress bars that neither flood a saved notebook nor need its widgets."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """A tqdm bar: often redrawn on a terminal, a line now and then in a log or a notebook."""
    live = sys.stderr.isatty()
    options.setdefault("mininterval", 0.2 if live else 15.0)
    options.setdefault("dynamic_ncols", live)
    return tqdm(items, **options)
