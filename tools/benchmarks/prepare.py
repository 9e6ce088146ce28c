"""What `prepare` costs beside a bare decode of the same DICOMs, on one core.

    python -m tools.benchmarks.prepare [--data DIR] [--images 48] [SIZE …]

The bare decode is pydicom's `pixel_array`, which Pillow decodes, and nothing after it: no check, no
mask, no resizing, no file. Beside it stands our own `images.read`. Then what the cache is for:
reading an image and its mask back, against decoding, resizing and drawing them again. Without
--data the DICOMs are phantoms of 1024², JPEG baseline as the competition's.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom

from kernel_lib.data import cache, images, rle, table
from kernel_lib.data.cache_store import resized
from kernel_lib.data.masks import resize_mask
from tools.benchmarks.rounds import Timed, figure, timed
from tools.phantoms import competition

SIZES = (256, 512, 1024)
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as scratch:
        data = given.data or drawn(Path(scratch) / "data", given.images)
        source = table.discover(data)
        frame = source.train.head(given.images)
        kilobytes = np.mean([Path(path).stat().st_size for path in frame["path"]]) / 1e3
        kind = "real ones" if given.data else "phantoms"
        print(f"{len(frame)} DICOMs of {kilobytes:.0f} kB, {kind}")
        measure(frame, source.root, given.sizes, Path(scratch) / "cache", given.rounds)


def drawn(folder: Path, n_images: int) -> Path:
    """Return phantoms of 1024² in the competition's layout."""
    competition.write_competition(folder, n_images, 1, size=1024, seed=1)
    return folder


def measure(frame: pd.DataFrame, root: Path, sizes: list[int], scratch: Path, rounds: int) -> None:
    """Time all of it in the same rounds, and print."""
    cached = {size: prepared(frame, root, size, scratch / "kept") for size in sizes}
    works = {
        "pydicom": lambda: [pydicom.dcmread(path).pixel_array for path in frame["path"]],
        "read": lambda: [images.read(path) for path in frame["path"]],
    }
    for size in sizes:
        works[f"prepare {size}"] = lambda size=size: prepared_again(
            frame, root, size, scratch / "new"
        )
        works[f"back {size}"] = lambda size=size: read_back(cached[size])
        works[f"again {size}"] = lambda size=size: decoded_again(frame, size)
    show(timed(works, rounds), sizes, len(frame))


def prepared(frame: pd.DataFrame, root: Path, size: int, folder: Path) -> cache.Prepared:
    return cache.prepare(frame, root, size, folder, "train", workers=1)


def prepared_again(frame: pd.DataFrame, root: Path, size: int, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    prepared(frame, root, size, folder)


def read_back(cached: cache.Prepared) -> None:
    """Read every image and mask as a training does, with all pages touched."""
    for i in range(len(cached)):
        cached.image(i).copy()
        cached.mask(i)


def decoded_again(frame: pd.DataFrame, size: int) -> None:
    for path, text in frame[["path", "rle"]].itertuples(index=False):
        picture = images.read(path)
        resized(picture, size)
        resize_mask(rle.decode(text, picture.shape), (size, size))


def show(took: Timed, sizes: list[int], n: int) -> None:
    bare = took.seconds("pydicom") / n
    print(f"pydicom's pixel_array {1e3 * bare:.2f} ms, our decode "
          f"{1e3 * took.seconds('read') / n:.2f} ms an image")  # fmt: skip
    for size in sizes:
        ours = took.seconds(f"prepare {size}") / n
        figure(
            f"prepare at {size}, one core", f"{1 / ours:.0f} images/s",
            f"a bare decode {1 / bare:.0f} images/s",
            f"{took.times_faster(f'prepare {size}', 'pydicom'):.0%}", "80 %",
        )  # fmt: skip
    for size in sizes:
        back, again = took.seconds(f"back {size}") / n, took.seconds(f"again {size}") / n
        figure(
            f"an image and mask of {size} from the cache", f"{1e3 * back:.2f} ms",
            f"decoding again {1e3 * again:.2f} ms",
            f"{took.times_faster(f'back {size}', f'again {size}'):.0f} × faster", "10 ×",
        )  # fmt: skip


if __name__ == "__main__":
    main()
