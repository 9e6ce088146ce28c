"""Figures over a whole label table: counts, areas, resizing of masks, folds.

    python -m tools.benchmarks.labels DATA_DIR

DATA_DIR holds `train-rle.csv` and, for the folds by patient, `nih_id.csv`. Masks are taken as
1024 × 1024. Two processes at most; about a minute.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kernel_lib.artifacts import folds_file
from kernel_lib.data import folds, rle
from kernel_lib.data.masks import resize_mask

SHAPE = (1024, 1024)
SIZES = (512, 768)


def bilinear_truncated(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a mask resized bilinearly and truncated to integers, the fault to compare with."""
    grey = cv2.resize(mask * np.uint8(255), shape[::-1], interpolation=cv2.INTER_LINEAR)
    return (grey == 255).astype(np.uint8)  # all that (grey / 255).astype(int) leaves


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return 2 |A ∩ B| / (|A| + |B|), of masks that are not both empty."""
    both = np.count_nonzero(first & second)
    return 2 * both / (np.count_nonzero(first) + np.count_nonzero(second))


def resize_figures(text: str) -> list[float]:
    """Return for one RLE and each size: areas and round-trip dice by both ways of resizing."""
    cv2.setNumThreads(1)
    mask = rle.decode(text, SHAPE)
    figures = []
    for size in SIZES:
        scale = SHAPE[0] * SHAPE[1] / size**2
        held = resize_mask(mask, (size, size))
        cut = bilinear_truncated(mask, (size, size))
        figures += [
            np.count_nonzero(mask),
            np.count_nonzero(held) * scale,
            np.count_nonzero(cut) * scale,
            dice(mask, resize_mask(held, SHAPE)),
            dice(mask, resize_mask(cut, SHAPE)),
            dice(mask, bilinear_truncated(cut, SHAPE)),
        ]
    return figures


def read(folder: Path) -> pd.DataFrame:
    """Return a table of image_id, group, area_px, rle and shape, and print its counts."""
    rows = pd.read_csv(folder / "train-rle.csv", dtype=str, keep_default_na=False)
    rows = rows.set_axis(["image_id", "rle"], axis=1)
    runs = rows["rle"].map(lambda text: rle.parse(text, SHAPE))
    largest_end = max(int(r[-1].sum()) for r in runs if len(r))
    united, overlapping, many = {}, 0, 0
    for image_id, of_image in runs.groupby(rows["image_id"]):
        many += len(of_image) > 1
        joined = rle.union([])
        for row in of_image:
            wider = rle.union([joined, row])
            overlapping += rle.area(wider) < rle.area(joined) + rle.area(row)
            joined = wider
        united[image_id] = joined
    patient = {}
    if (folder / "nih_id.csv").is_file():
        names = pd.read_csv(folder / "nih_id.csv", dtype=str, keep_default_na=False).to_numpy()
        patient = {image_id: name.split("_")[0] for image_id, name in names}
    table = pd.DataFrame(
        {
            "image_id": united.keys(),
            "group": [patient.get(image_id, "") for image_id in united],
            "height": SHAPE[0],
            "width": SHAPE[1],
            "area_px": [rle.area(r) for r in united.values()],
            "rle": [rle.to_string(r) for r in united.values()],
        }
    )
    areas = table["area_px"][table["area_px"] > 0]
    print(f"rows {len(rows):,}, images {len(table):,}, of which with several rows {many:,}")
    print(f"rows that overlap an earlier row of their image {overlapping:,}")
    print(f"largest end of a run {largest_end:,} of {SHAPE[0] * SHAPE[1]:,}")
    print(f"positive images {len(areas):,} ({100 * len(areas) / len(table):.2f} %)")
    quantiles = ", ".join(f"{100 * q:.0f} % {areas.quantile(q):,.0f}" for q in (0.05, 0.25, 0.5))
    quantiles += ", " + ", ".join(f"{100 * q:.0f} % {areas.quantile(q):,.0f}" for q in (0.75, 0.95))
    print(f"mask area in px: least {areas.min():,}, {quantiles}, most {areas.max():,}")
    return table


def print_resizing(table: pd.DataFrame) -> None:
    """Print area errors and round trips of every positive image."""
    texts = table["rle"][table["area_px"] > 0].tolist()
    with ProcessPoolExecutor(max_workers=2) as pool:
        rows = np.array(list(pool.map(resize_figures, texts, chunksize=50)))
    for size, part in zip(SIZES, np.split(rows, len(SIZES), axis=1), strict=True):
        area, held, cut, *trips = part.T
        for name, resized in (("resize_mask", held), ("bilinear, truncated", cut)):
            error = resized / area - 1
            print(
                f"{SHAPE[0]} → {size}, {name}: relative area error, mean {100 * error.mean():+.4f} "
                f"%, mean of absolutes {100 * np.abs(error).mean():.4f} %, median "
                f"{100 * np.median(error):+.4f} %; of all areas together "
                f"{100 * (resized.sum() / area.sum() - 1):+.4f} %; "
                f"masks gone {np.count_nonzero(resized == 0)}"
            )
        down_and_up = (
            "resize_mask both ways",
            "down bilinear truncated, up by resize_mask",
            "bilinear truncated both ways",
        )
        for name, trip in zip(down_and_up, trips, strict=True):
            print(
                f"{SHAPE[0]} → {size} → {SHAPE[0]}, {name}: dice mean {trip.mean():.4f}, "
                f"median {np.median(trip):.4f}, 5 % {np.quantile(trip, 0.05):.4f}"
            )


def print_folds(table: pd.DataFrame, n_folds: int = 5) -> None:
    """Print the balance of the folds, and the time to draw them."""
    start = time.perf_counter()
    table = table.assign(fold=folds.draw(table, n_folds))
    seconds = time.perf_counter() - start
    known = table[table["group"] != ""]
    torn = int((known.groupby("group")["fold"].nunique() > 1).sum())
    positive = table["area_px"] > 0
    share, median = positive.mean(), table["area_px"][positive].median()
    balance = folds.balance(table)
    print(f"{n_folds} folds of {known['group'].nunique():,} patients, drawn in {seconds:.2f} s")
    print(balance.to_string(float_format=lambda value: f"{value:,.4f}"))
    print(
        f"patients in two folds {torn}; share of positives {100 * share:.3f} %, furthest fold "
        f"{100 * (balance['positive_share'] - share).abs().max():.3f} points off; median area "
        f"{median:,.0f} px, furthest fold "
        f"{100 * (balance['median_area_px_1024'] / median - 1).abs().max():.2f} % off"
    )
    print(f"digest of the folds {folds_file.digest(table)}")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.benchmarks.labels DATA_DIR (the folder of train-rle.csv)")
    table = read(Path(sys.argv[1]))
    print_resizing(table)
    print_folds(table)


if __name__ == "__main__":
    main()
