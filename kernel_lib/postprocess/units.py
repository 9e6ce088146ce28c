"""The unit of every area that is shown or compared across images of different sizes."""

from __future__ import annotations

FULL_AREA = 1024 * 1024  # pixels of the image for which areas are stated
AREA_UNIT = "px of 1024²"
