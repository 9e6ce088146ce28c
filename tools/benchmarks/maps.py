"""Size and reading time of stored probability maps, beside the PNGs of earlier archives.

    python -m tools.benchmarks.maps [--maps FOLDER]

Without --maps, smooth synthetic maps: a few blobs and a haze of low probability around them, about
4 % of the pixels above 0, as in maps of a trained network on radiographs (there: 4 and 15 %). Maps
of an untrained network, noise without a 0, show the worst case. --maps takes .npy files of uint8
maps, (H, W) or (N, H, W), which are resized bilinearly to 512 and 1024. Reading is
`Maps[image_id]`: from the open archive on disk to the array, checksums included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from kernel_lib.artifacts import maps
from tools.benchmarks.rounds import figure, timed

SIDES = (512, 1024)
N_MAPS = 60
LIMIT = 2.0  # times faster than PNG, with no more bytes, or PNG would have stayed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--maps", type=Path, metavar="FOLDER", help="of .npy files of uint8 maps")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    for side in SIDES:
        if given.maps:
            compare("given", side, stored(given.maps, side))
        else:
            random = np.random.default_rng(0)
            compare("sparse", side, [sparse(random, side) for _ in range(N_MAPS)])
            compare("untrained", side, [untrained(random, side) for _ in range(N_MAPS // 3)])


def sparse(random: np.random.Generator, side: int) -> np.ndarray:
    """Return a map (S, S) of blobs in a haze, from logits at a quarter of the size."""
    small = side // 4
    haze = cv2.GaussianBlur(random.normal(size=(small, small)), (0, 0), small / 24)
    logits = haze / haze.std() - 8.3
    for _ in range(random.integers(0, 3)):
        mask = np.zeros((small, small), np.float64)
        centre = random.integers(small // 5, small - small // 5, 2).tolist()
        axes = random.integers(small // 40 + 1, small // 10, 2).tolist()
        cv2.ellipse(mask, centre, axes, float(random.integers(180)), 0, 360, 1, -1)
        logits += random.uniform(8, 16) * cv2.GaussianBlur(mask, (0, 0), small / 64)
    return maps.quantise(1 / (1 + np.exp(-cv2.resize(logits, (side, side)))))


def untrained(random: np.random.Generator, side: int) -> np.ndarray:
    logits = cv2.resize(random.normal(size=(side // 4, side // 4)), (side, side))
    return maps.quantise(1 / (1 + np.exp(-logits - random.normal(0, 0.05, (side, side)))))


def stored(folder: Path, side: int) -> list[np.ndarray]:
    """Return N_MAPS of the maps in a folder's files, evenly spaced, or all, at this size."""
    found = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]
    if not found or any(array.dtype != np.uint8 or array.ndim not in (2, 3) for array in found):
        raise SystemExit(f"{folder} holds no .npy files of uint8 maps alone, (H, W) or (N, H, W)")
    shown = [level_map for array in found for level_map in array.reshape(-1, *array.shape[-2:])]
    chosen = np.linspace(0, len(shown) - 1, min(N_MAPS, len(shown))).round().astype(int)
    return [maps.at_shape(np.array(shown[at]), (side, side)) for at in chosen]


def compare(what: str, side: int, shown: list[np.ndarray]) -> None:
    """Print bytes and milliseconds of both forms of these maps."""
    images = {str(at): level_map for at, level_map in enumerate(shown)}
    share = np.mean([np.count_nonzero(level_map) / level_map.size for level_map in shown])
    with tempfile.TemporaryDirectory() as folder:
        paths = {form: Path(folder) / f"{form}.zip" for form in ("ours", "png")}
        writes = {
            "write ours": lambda: write(paths["ours"], images),
            "write png": lambda: write_pngs(paths["png"], images),
        }
        for work in writes.values():
            work()
        took = timed({form: reader(path, images) for form, path in paths.items()} | writes)
        kb = {form: path.stat().st_size / len(shown) / 1e3 for form, path in paths.items()}
    ms = {name: 1e3 * took.seconds(name) / len(shown) for name in (*paths, *writes)}
    print(
        f"{what} maps of {side}²: {share:.1%} of the pixels above 0; written in "
        f"{ms['write ours']:.2f} ms, as PNG in {ms['write png']:.2f} ms"
    )
    figure(
        f"reading {what} maps of {side}²", f"{ms['ours']:.2f} ms and {kb['ours']:.1f} kB each",
        f"PNG {ms['png']:.2f} ms and {kb['png']:.1f} kB",
        f"{took.times_faster('ours', 'png'):.1f} × faster",
        "none" if what == "untrained" else f"{LIMIT:g} ×",
    )  # fmt: skip


def write(path: Path, images: dict[str, np.ndarray]) -> None:
    maps.write(path, ((name, maps.Prediction(levels)) for name, levels in images.items()), {})


def write_pngs(path: Path, images: dict[str, np.ndarray]) -> None:
    """Write an archive as it was before, which is still read."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, levels in images.items():
            png = cv2.imencode(".png", levels, [cv2.IMWRITE_PNG_COMPRESSION, 3])[1]
            archive.writestr(f"{name}.png", png.tobytes())
        archive.writestr("meta.json", json.dumps({}))


def reader(path: Path, images: dict[str, np.ndarray]) -> Callable[[], None]:
    """Return a function that reads all maps of an archive, which are these."""
    archive = maps.Maps(path)
    assert all(np.array_equal(archive[name], levels) for name, levels in images.items())

    def read() -> None:
        for name in images:
            archive[name]

    return read


if __name__ == "__main__":
    main()
