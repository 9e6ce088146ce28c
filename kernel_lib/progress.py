"""Progress bars that neither flood a saved notebook nor need its widgets."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar, redrawn often on a terminal and rarely in a log or a notebook."""
    is_terminal = sys.stderr.isatty()
    options.setdefault("mininterval", 0.2 if is_terminal else 15.0)
    options.setdefault("dynamic_ncols", is_terminal)
    return tqdm(items, **options)
