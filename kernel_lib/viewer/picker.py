"""In a live notebook: every image at hand, whatever a saved page could hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernel_lib.postprocess.histograms import areas, per_image_dice
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA
from kernel_lib.viewer import document as page
from kernel_lib.viewer.ranking import most_telling
from kernel_lib.viewer.viewer_data import Viewed


def picker(
    folder: Path | str,
    *,
    test: bool = False,
    data_dir: Path | str | None = None,
    size: int = page.SIDE_PX,
) -> Any:
    """A list of all images, most telling first, and the viewer of the chosen one below it.

    Reads a picture when it is chosen, so it needs a running kernel. Where ipywidgets is missing it
    is `viewer(folder, …)`, whose `ids=[…]` embeds the images asked for. Raises as that does.
    """
    try:
        import ipywidgets
    except ImportError:
        return page.viewer(folder, test=test, data_dir=data_dir, size=size)
    seen = page.view(folder, test=test, data_dir=data_dir)
    rows = most_telling(seen.stats[0], seen.voices[0].rule)
    options = list(zip(_labels(seen, rows), rows, strict=True))
    chosen = ipywidgets.Combobox(
        options=[label for label, _ in options],
        value=options[0][0],
        description="image",
        ensure_option=False,
        layout=ipywidgets.Layout(width="100%"),
    )
    shown = ipywidgets.HTML()
    row_of = dict(options)

    def draw(change: dict) -> None:
        row = row_of.get(change["new"])
        if row is not None:  # while it is being typed, it is none
            image_id = seen.table["image_id"].iloc[row]
            shown.value = page.show(seen, ids=[image_id], size=size, max_mb=1000)._repr_html_()

    chosen.observe(draw, "value")
    draw({"new": chosen.value})
    return ipywidgets.VBox([chosen, shown])


def _labels(seen: Viewed, rows: list[int]) -> list[str]:
    """An image's line in the list: its id, and how its mask fares under the chosen rule."""
    ids, rule = seen.table["image_id"].tolist(), seen.voices[0].rule
    if not seen.truth:
        area_px = areas(seen.stats[0], rule) * (FULL_AREA / seen.stats[0].n_px)
        return [f"{ids[row]} · {area_px[row]:,.0f} {AREA_UNIT}" for row in rows]
    dice = per_image_dice(seen.stats[0], rule)
    return [f"{ids[row]} · dice {dice[row]:.3f}" for row in rows]
