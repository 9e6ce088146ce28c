"""The picture of an exported mask in OHIF, from a phantom alone: `make picture-ohif`.

python docs/make_ohif_picture.py OUT.png    needs npm, a package registry and Chromium
"""

from __future__ import annotations

import csv
import http.server
import subprocess
import sys
import tarfile
import tempfile
import threading
from functools import partial
from pathlib import Path

from kernel_lib.artifacts.filenames import PREDICTIONS
from kernel_lib.data import labels, rle
from kernel_lib.stages import export
from kernel_lib.stages.predict_files import COLUMNS
from tools.benchmarks import browser
from tools.phantoms import competition

OHIF = "@ohif/app@3.12.10"
SIZE, SEED = 1024, 3
WAIT_MS = 60_000


def main(picture: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        files = exported(place)
        packed = subprocess.run(
            ["npm", "pack", "--silent", OHIF], cwd=place, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        with tarfile.open(place / packed) as archive:
            archive.extractall(place, filter="data")
        handler = partial(Handler, directory=place / "package" / "dist")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            look(f"http://127.0.0.1:{server.server_port}/local", files, picture)
            server.shutdown()


def exported(place: Path) -> list[Path]:
    """Return a phantom's DICOM file and the segmentation that is its true mask."""
    data = place / "data"
    competition.write_competition(
        data, 20, 10, size=SIZE, seed=SEED, difficulty=0.3, workers=1, progress=False
    )
    truth = labels.read_labels(data / competition.TEST_TRUTH).set_index("image_id")["rle"]
    image_id = max(truth.index, key=lambda i: rle.area(rle.parse(truth[i])))
    path = next(data.rglob(f"{image_id}.dcm"))
    row = {"file": path.name, "image_id": image_id, "height": SIZE, "width": SIZE}
    with (place / PREDICTIONS).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        table.writerow(row | {"rle": truth[image_id], "model": "a phantom's true mask"})
    export.run(place, place / "out", to="seg", data_dir=path.parent)
    return [path, next((place / "out").rglob("*.dcm"))]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves OHIF, whose own paths are all its first page."""

    def send_head(self):
        if not Path(self.translate_path(self.path)).is_file():
            self.path = "/index.html"
        return super().send_head()

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args) -> None:
        pass


def look(address: str, files: list[Path], picture: Path) -> None:
    """Drop the files into OHIF as a user does, and open the segmentation."""
    webgl = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    with browser.started(webgl) as chromium:
        tab = chromium.new_page(viewport={"width": 1280, "height": 720})
        tab.set_default_timeout(WAIT_MS)
        tab.goto(address)
        tab.set_input_files("input[type=file] >> nth=0", files)
        tab.get_by_text("Confirm and hide").click()
        tab.get_by_text("CR/SEG").click()
        tab.get_by_text("Basic Viewer").first.click()
        tab.get_by_text("SEG", exact=True).last.dblclick()
        tab.get_by_role("button", name="Yes").click()
        tab.wait_for_timeout(5_000)  # nothing in the page says when the mask is drawn
        tab.screenshot(path=picture)
    print(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
