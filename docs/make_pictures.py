"""The README's pictures, from phantoms alone: `make pictures` after `make demo`.

python docs/make_pictures.py DEMO_FOLDER OUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import browser
from kernel_lib.data import phantom, table
from kernel_lib.stages import report
from kernel_lib.viz import figures
from kernel_lib.viz.picture import Picture
from kernel_lib.viz.viewer import viewer


def main(demo: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save(phantoms(), out / "phantoms.png")
    ensemble = next((demo / "work" / "ensembles").iterdir())
    found = report.sections(ensemble, [demo / "work"], table.discover(demo / "data"))
    by_title = {section.title: section.body for section in found}
    save(by_title["Thresholds"][0], out / "thresholds.png")
    save(by_title["Scores, drawn"], out / "scores.png")
    save(by_title["Masks drawn best"], out / "masks.png")
    look(ensemble, demo / "data", out / "viewer.png")


def look(ensemble: Path, data: Path, path: Path) -> None:
    """The viewer as it opens, at a mask that was drawn in part."""
    page = viewer(ensemble, data_dir=data, count=60, size=512).save(path.with_suffix(".html"))
    with browser.started() as chromium:
        tab = chromium.new_page(viewport={"width": 1280, "height": 720})
        tab.goto(page.resolve().as_uri())
        tab.evaluate("async () => { await viewer.ready; await viewer.shown(); }")
        tab.screenshot(path=path)
    page.unlink()
    print(path)


def phantoms() -> Picture:
    """Six phantoms with their true masks."""
    drawn = [
        (case, p) for case, p in phantom.generate(60, 512, seed=5, difficulty=0.4) if p.mask.any()
    ]
    shown = [
        figures.Example(case.image_id, p.image, p.mask, None, None, f"{p.mask.sum() * 4:,} px")
        for case, p in drawn[:6]
    ]
    return figures.examples(shown)


def save(picture: Picture, path: Path) -> None:
    path.write_bytes(picture.png(dpi=80))
    print(f"{path}: {picture.sentence}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
