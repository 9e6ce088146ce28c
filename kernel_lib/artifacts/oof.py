"""The held-out images as the thresholds stage scored them.

`oof.csv`, `oof_statistics.npz` and, of the boundaries of masks, `oof_distances.csv`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from kernel_lib import storage
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import named_if_damaged
from kernel_lib.artifacts.filenames import DISTANCES, PER_IMAGE, STATISTICS
from kernel_lib.postprocess.histograms import Stacked

# What is read of oof.csv, beside the images' ids.
_COLUMNS = {"fold": "int64", "part": "int64", "true_area_px": "float64", "area_px": "float64",
            "dice": "float64"}  # fmt: skip
# Read where they are there: earlier versions wrote fewer, not every model has a label or views.
_OPTIONAL = {"group": "str", "sum_prob": "float64", "max_prob": "float64", "label": "float64",
             "view_disagreement": "float64"}  # fmt: skip
# An image with both masks, and the distances between their boundaries.
_DISTANCES = {"image_id": str, "hd95_px": "float64", "assd_px": "float64"}


def save_per_image(folder: Path, per_image: pd.DataFrame) -> None:
    """Write oof.csv, `NestedCVReport.per_image`, perhaps with view_disagreement, as it is."""
    with storage.atomic_write(folder / PER_IMAGE, "w", encoding="utf-8", newline="") as file:
        per_image.to_csv(file, index=False)


def load_per_image(folder: Path, decision: Decision, folds: pd.DataFrame) -> pd.DataFrame:
    """Return oof.csv as figures take it: scored images, areas in px of 1024².

    `folds` is the folds file.
    Returns: DataFrame[image_id, fold, part, truth_px, predicted_px, dice], dice by the honest rule;
        also group, sum_prob, max_prob and label, as nested_cv writes them, and view_disagreement,
        where the file has them.
    Raises: InputError where it is missing, cut short or of another ensemble.
    """
    path, n = folder / PER_IMAGE, decision.scores.kept.n_images
    with named_if_damaged(path):
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            raise ValueError("it ends within a row")
        table = pd.read_csv(
            io.BytesIO(content),
            usecols=lambda name: name in {"image_id", *_COLUMNS, *_OPTIONAL},
            dtype={"image_id": str} | _COLUMNS | _OPTIONAL,
            # An image, or a patient, may be called NA.
            keep_default_na=False,
            na_values={name: [""] for name in {**_COLUMNS, **_OPTIONAL} if name != "group"},
        )
        if lacking := [name for name in ("image_id", *_COLUMNS) if name not in table]:
            raise ValueError(f"it lacks {lacking[0]}")
        if len(table) != n:
            raise ValueError(f"it has {len(table)} images, thresholds.json {n}")
        table = table.rename(columns={"true_area_px": "truth_px", "area_px": "predicted_px"})
        table = table.dropna(subset=["dice"])
        fold = table["image_id"].map(folds.set_index("image_id")["fold"])
        fits = (fold == table["fold"]) & fold.isin(decision.ensemble.folds)
        fits &= table["part"].isin([rule.fold for rule in decision.scores.kept.rules])
        if not fits.all():
            raise ValueError("its images or folds are not the ensemble's")
    return table


def save_distances(folder: Path, distances: pd.DataFrame) -> None:
    """Write oof_distances.csv, `OutOfFold.distances` as it is."""
    with storage.atomic_write(folder / DISTANCES, "w", encoding="utf-8", newline="") as file:
        distances.to_csv(file, index=False)


def load_distances(folder: Path, per_image: pd.DataFrame) -> pd.DataFrame | None:
    """Return oof_distances.csv; None without it, as of statistics or of an earlier version.

    `per_image` is what `load_per_image` returns.
    Returns: DataFrame[image_id, hd95_px, assd_px] of the images with both masks.
    Raises: InputError where it is damaged or of another ensemble.
    """
    path = folder / DISTANCES
    if not path.exists():
        return None
    with named_if_damaged(path):
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            raise ValueError("it ends within a row")
        table = pd.read_csv(
            io.BytesIO(content), usecols=list(_DISTANCES), dtype=_DISTANCES, keep_default_na=False
        )
        both = per_image[(per_image["truth_px"] > 0) & (per_image["predicted_px"] > 0)]
        if set(table["image_id"]) != set(both["image_id"]) or len(table) != len(both):
            raise ValueError("its images are not those of oof.csv with both masks")
        if not (table.drop(columns="image_id") >= 0).all(axis=None):
            raise ValueError("a distance is below 0")
    return table


@dataclass(frozen=True)
class OofStatistics:
    """The histograms that each search saw, by which a report repeats it."""

    image_ids: tuple[str, ...]
    searched: tuple[Stacked, ...]  # in the order of `Decision.searches`

    def save(self, folder: Path) -> None:
        arrays = {"image_id": np.array(self.image_ids, dtype=str)}
        for at, stats in enumerate(self.searched):
            arrays[_key("hist_all", at)] = stats.hist_all.astype(np.int32, copy=False)
            arrays[_key("hist_true", at)] = stats.hist_true.astype(np.int32, copy=False)
            arrays["n_px"] = stats.n_px
            if stats.has_labels:
                arrays[_key("label", at)] = stats.label
        with storage.atomic_write(folder / STATISTICS) as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, folder: Path, decision: Decision) -> Self:
        """Read oof_statistics.npz. Raises: InputError where it is missing, damaged or of others."""
        path, n = folder / STATISTICS, decision.scores.kept.n_images
        with named_if_damaged(path), np.load(path) as kept:
            n_px = _numbers(kept, "n_px", (n,))
            searched = []
            for at, how in enumerate(decision.searches.values()):
                label, histograms = _key("label", at), (_key("hist_all", at), _key("hist_true", at))
                labelled = how.label_swept or label in kept
                searched.append(
                    Stacked(
                        *(_numbers(kept, name, (n, 256)).astype(np.int64) for name in histograms),
                        n_px,
                        np.ones(n, dtype=bool),
                        _numbers(kept, label, (n,)) if labelled else None,
                    )
                )
            return cls(tuple(kept["image_id"].tolist()), tuple(searched))


def _key(name: str, at: int) -> str:
    return name if at == 0 else f"{name}_{at}"


def _numbers(kept: Mapping[str, np.ndarray], name: str, shape: Sequence[int]) -> np.ndarray:
    """Return whole numbers of an archive, of that shape; another content raises ValueError."""
    if name not in kept:
        raise ValueError(f"it lacks {name}")
    numbers = kept[name]
    if numbers.shape != shape or numbers.dtype.kind not in "iu":
        raise ValueError(f"{name} is {numbers.dtype} {numbers.shape}, not of {shape[0]} images")
    return numbers
