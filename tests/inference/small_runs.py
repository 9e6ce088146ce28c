"""Small runs, their archives and a thresholds.json, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.data import rle
from kernel_lib.inference import recipes
from kernel_lib.postprocess import nested_cv
from kernel_lib.postprocess.histograms import statistics
from kernel_lib.postprocess.triplet import Triplet
from tests.configs import write_config

SIZE = 16
RULE = Triplet(0.5, 0, 0.5)


def table(n: int = 6, n_folds: int = 2) -> pd.DataFrame:
    """Images i0 …, the fold by turns, a square of mask on every third; not square themselves."""
    rows = []
    for i in range(n):
        mask = np.zeros((24, 20), np.uint8)
        if i % 3 == 0:
            mask[4:14, 3:12] = 1
        rows.append((f"i{i}", i % n_folds, "", 24, 20, int(mask.sum()), rle.encode(mask)))
    return pd.DataFrame(
        rows, columns=["image_id", "fold", "group", "height", "width", "area_px", "rle"]
    )


def searched() -> dict:
    """A thresholds.json of six images."""
    images = table()
    masks = [rle.decode(text, (24, 20)) for text in images["rle"]]
    stats = [statistics(np.full(mask.shape, 9, np.uint8), mask) for mask in masks]
    report = nested_cv.score_rule(stats, images["image_id"].tolist(), images["fold"].tolist(), None)
    scores = {name: report.to_json() for name in ("honest", "last")}
    return {"rule": RULE.to_json(), "search": {"single": False}, "past_known": True} | scores


def level_map(image_id: str, run: str) -> np.ndarray:
    seed = [ord(c) for c in image_id + run]
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def make_run(root: Path, run: str, images: pd.DataFrame, folds=(0, 1), digest="d", **lineage):
    for fold in folds:
        folder = fold_run.fold_folder(root, run, fold)
        write_config(folder, digest)
        held = images["fold"] == fold
        past = Lineage(**({"images": tuple(images.loc[~held, "image_id"])} | lineage))
        meta = {"run": run, "fold": fold, "lineage": past.model_dump(mode="json")}
        held_out = [(i, maps.Prediction(level_map(i, run))) for i in images.loc[held, "image_id"]]
        for path in (folder.oof, folder.oof_last):
            maps.write(path, held_out, meta)


def make_test(root: Path, run: str, fold: int, shown: dict[str, np.ndarray]) -> None:
    meta = {"run": run, "fold": fold, "lineage": Lineage().model_dump(mode="json")}
    predictions = [(i, maps.Prediction(level_map)) for i, level_map in shown.items()]
    maps.write(fold_run.fold_folder(root, run, fold).test, predictions, meta)


def gather(roots: list[Path], names: list[str]) -> Ensemble:
    return recipes.build_ensemble(roots, recipes.of_runs(names))
