"""The unit of every area that is shown or compared across images of different sizes."""

from __future__ import annotations

from kernel_lib.competition import COMPETITION

FULL_AREA = COMPETITION.side_px**2  # pixels of the image for which areas are stated
AREA_UNIT = f"px of {COMPETITION.side_px}²"
