"""A viewer with a list of all images, for a notebook with a running kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernel_lib.postprocess.histograms import areas, per_image_dice
from kernel_lib.postprocess.units import AREA_UNIT, FULL_AREA
from kernel_lib.viewer import document
from kernel_lib.viewer.data import ViewerData, rank_images
from kernel_lib.viewer.load import load_viewer_data


def picker(
    folder: Path | str,
    *,
    test: bool = False,
    data_dir: Path | str | None = None,
    size: int = document.SIDE_PX,
) -> Any:
    """Return a list of all images in the order of `rank_images`, and the viewer of the chosen one.

    Without ipywidgets it is `viewer(folder, …)`, whose `ids=[…]` embeds the images asked for;
    raises as that does.
    """
    try:
        import ipywidgets
    except ImportError:
        return document.viewer(folder, test=test, data_dir=data_dir, size=size)
    data = load_viewer_data(folder, test=test, data_dir=data_dir)
    ids, labels = data.table["image_id"], _labels(data)
    rows = rank_images(data.stats[0], data.models[0].rule)
    id_of_label = {labels[row]: ids.iloc[row] for row in rows}
    combobox = ipywidgets.Combobox(
        options=list(id_of_label),
        value=next(iter(id_of_label)),
        description="image",
        ensure_option=False,
        layout=ipywidgets.Layout(width="100%"),
    )
    frame = ipywidgets.HTML()

    def draw(change: dict) -> None:
        image_id = id_of_label.get(change["new"])
        if image_id is not None:  # None while a label is being typed
            made = document.render(data, ids=[image_id], size=size, max_mb=1000)
            frame.value = made._repr_html_()

    combobox.observe(draw, "value")
    draw({"new": combobox.value})
    return ipywidgets.VBox([combobox, frame])


def _labels(data: ViewerData) -> list[str]:
    """Return each image's id with the Dice, or the area, of its mask."""
    stats, rule, ids = data.stats[0], data.models[0].rule, data.table["image_id"]
    if data.has_truth:
        dice = per_image_dice(stats, rule)
        return [f"{i} · Dice {value:.3f}" for i, value in zip(ids, dice, strict=True)]
    area_px = areas(stats, rule) * FULL_AREA / stats.n_px
    return [f"{i} · {area:,.0f} {AREA_UNIT}" for i, area in zip(ids, area_px, strict=True)]
