"""The pictures of the README and of the model card, from phantoms alone: `make pictures`.

python docs/make_pictures.py DEMO_FOLDER OUT_FOLDER    after `make demo`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2

from kernel_lib.data import table
from kernel_lib.kaggle import paths
from kernel_lib.postprocess.metrics import dice
from kernel_lib.postprocess.units import AREA_UNIT
from kernel_lib.reporting import overlays
from kernel_lib.reporting.picture import Picture
from kernel_lib.stages import predict_files, report
from kernel_lib.viewer.document import viewer
from tools.benchmarks import browser
from tools.phantoms import competition

DRAWN_IN_PART = """async () => {
  await viewer.ready;
  const { dice } = viewer.evaluate(0, viewer.state.rules[0]);
  const { pictures } = JSON.parse(document.getElementById("payload").textContent);
  const rows = pictures.map(({ row }) => row).filter((row) => dice[row] > 0 && dice[row] < 1);
  await viewer.choose(rows.sort((a, b) => dice[a] - dice[b])[rows.length >> 1]);
}"""


def main(demo: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save(phantoms(), out / "phantoms.png")
    ensemble = next((demo / "work" / "ensembles").iterdir())
    data = report.load(ensemble, [demo / "work"])
    sections = report.sections(data, table.discover(demo / "data"))
    by_title = {section.title: section.body for section in sections}
    save(by_title["Thresholds"][0], out / "thresholds.png")
    save(by_title["Score chart"], out / "scores.png")
    save(by_title["Highest-Dice predictions"], out / "masks.png")
    look(ensemble, demo / "data", out / "viewer.png")
    save(failures(), paths.models_dir() / "failures.png")


def look(ensemble: Path, data: Path, path: Path) -> None:
    """The viewer at a mask that was drawn in part, neither the worst such nor the best."""
    page = viewer(ensemble, data_dir=data, count=60, size=512).save(path.with_suffix(".html"))
    with browser.started() as chromium:
        tab = chromium.new_page(viewport={"width": 1280, "height": 720})
        tab.goto(page.resolve().as_uri())
        tab.evaluate(DRAWN_IN_PART)
        tab.screenshot(path=path)
    page.unlink()
    print(path)


def phantoms() -> Picture:
    """Six phantoms with their true masks."""
    drawn = [
        (case, p)
        for case, p in competition.generate(60, 512, seed=5, difficulty=0.4)
        if p.mask.any()
    ]
    shown = []
    for case, p in drawn[:6]:
        caption = f"{p.mask.sum() * 4:,} {AREA_UNIT}"
        shown.append(overlays.Example(case.image_id, p.image, p.mask, caption=caption))
    return overlays.examples(shown)


def failures(count: int = 6) -> Picture:
    """The phantoms that the released model gets most wrong, lowest dice first.

    It was not trained on phantoms, and they are no patients.
    """
    drawn = list(competition.generate(60, 512, seed=5, difficulty=0.4))
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder) / "images", Path(folder) / "out"
        images.mkdir()
        for case, one in drawn:
            cv2.imwrite(str(images / f"{case.image_id}.png"), one.image)
        print(predict_files.run([images], out))
        for case, one in drawn:
            path = out / predict_files.MASKS / f"{case.image_id}.png.png"
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) // 255
            shown.append((dice(mask, one.mask), case, one, mask))
    shown.sort(key=lambda each: each[0])
    return overlays.examples(
        [
            overlays.Example(case.image_id, one.image, one.mask, None, mask, f"Dice {value:.2f}")
            for value, case, one, mask in shown[:count]
        ]
    )


def save(picture: Picture, path: Path) -> None:
    path.write_bytes(picture.png(dpi=80))
    print(f"{path}: {picture.sentence}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
