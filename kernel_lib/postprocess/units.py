"""The unit of every area that is shown or compared across images of different sizes."""

from __future__ import annotations

import numpy as np

from kernel_lib.competition import COMPETITION

FULL_AREA = COMPETITION.side_px**2  # pixels of the image for which areas are stated
AREA_UNIT = f"px of {COMPETITION.side_px}²"


def mask_cells(mask: np.ndarray, spacing: tuple[float, float] | None) -> dict[str, int | str]:
    """Return a mask's size and area in each unit, as cells of a table by column.

    mask: (H, W), nonzero as 1. spacing: between rows and between columns in mm, or None.
    """
    area = int(np.count_nonzero(mask))
    return {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "area_px": area,
        "area_px_1024": f"{area * FULL_AREA / mask.size:.1f}",
        "area_mm2": "" if spacing is None else f"{area * spacing[0] * spacing[1]:.2f}",
    }
