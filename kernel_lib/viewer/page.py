"""The viewer's page: one self-contained HTML file of template, style, scripts and data."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kernel_lib.errors import InputError
from kernel_lib.reporting.picture import RESEARCH_ONLY

# Concatenated in this order, in one function scope.
SCRIPTS = (
    "viewer_metrics.js",
    "viewer_picture.js",
    "viewer_texts.js",
    "viewer_list.js",
    "viewer_panes.js",
    "viewer_panel.js",
    "viewer.js",
    "viewer_build.js",
)


def page(payload: dict[str, Any]) -> str:
    """Return the complete HTML page of a payload of JSON values; it loads nothing from elsewhere.

    All text of the payload is escaped; its numbers come from `pack`.

    Raises: InputError for a number that JSON lacks, nan or infinite.
    """
    try:
        data = json.dumps(payload, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InputError(
            f"the viewer's payload cannot be written as JSON ({error}): give null for what is "
            "not known"
        ) from None
    scripts = "\n".join(_asset(name) for name in SCRIPTS)
    parts = {
        "style": _asset("viewer.css"),
        "about": RESEARCH_ONLY,
        "payload": data.replace("<", "\\u003c"),  # rules out </script> and <!--
        "script": f'"use strict";\n(() => {{\n{scripts}}})();',
    }
    template = _asset("viewer.html").replace(
        "<title>Viewer</title>", f"<title>{html.escape(str(payload['title']))}</title>"
    )
    # In one pass, so that inserted text is not searched again.
    return re.sub(r"<!-- (\w+) -->", lambda match: parts[match[1]], template)


def pack(arrays: Sequence[np.ndarray]) -> str:
    """Return integers, one array after the other, as the payload's `packed`.

    Base64 of a zlib stream of int32, little-endian, as four planes: all lowest bytes first, then
    all second bytes, and so on, since most counts are small and so most planes are zeros.

    Raises: InputError for a number beyond int32.
    """
    flat = np.concatenate([np.ravel(array) for array in arrays])
    bounds = np.iinfo(np.int32)
    if flat.size and (flat.min() < bounds.min or flat.max() > bounds.max):
        raise InputError(
            f"a count of {max(flat.max(), -flat.min())} is beyond {bounds.max}: the viewer takes "
            "images of fewer pixels"
        )
    planes = flat.astype("<i4").view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode("ascii")


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
