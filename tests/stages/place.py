"""How tests call the stages on the phantoms that they share, and write folds without training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.data import rle
from kernel_lib.stages import inference, thresholds, train
from tests.configs import write_config

RUN = "demo_UNetResNet10_128_v1_size64_tu-test-resnet_epochs2_seed3456"
ON_CPU = {"device": "cpu", "threads": 1}
TINY = {
    "experiment": "demo_UNetResNet10_128_v1", "size": 64, "encoder": "tu-test_resnet", "epochs": 2,
    "n_folds": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A folder with working folders and a cache, and the data that its stages read."""

    root: Path
    data: Path

    def copy(self, root: Path) -> Place:
        """Copy `work` and `cache` to a folder that a test may change."""
        for name in ("work", "cache"):
            shutil.copytree(self.root / name, root / name)
        return Place(root, self.data)

    def with_data(self, name: str = "data") -> Place:
        """Return this place with a copy of the data in it, which a test may change."""
        return Place(self.root, shutil.copytree(self.data, self.root / name))

    def folders(self, work: str = "work", **images) -> dict[str, str]:
        folders = {"data_dir": self.data, "work_dir": self.root / work}
        return {name: str(path) for name, path in (folders | images).items()}

    def training(self, work: str = "work", **changes) -> dict:
        """Return the parameters of a training of the tiny experiment."""
        folders = self.folders(work, cache_dir=self.root / "cache")
        return TINY | folders | ON_CPU | changes

    def train(self, work: str = "work", **changes) -> train.TrainResult:
        return train.run(TrainParameters(**self.training(work, **changes)))

    def search(self, work: str = "work", **changes) -> thresholds.ThresholdsResult:
        given = {"bootstrap": 100} | self.folders(work) | changes
        return thresholds.run(ThresholdsParameters(**given))

    def infer(self, work: str = "work", **changes) -> inference.InferenceResult:
        folders = self.folders(work, cache_dir=self.root / "cache")
        return inference.run(InferenceParameters(**(folders | ON_CPU | changes)))

    def fold(self, number: int, work: str = "work", run: str = RUN) -> fold_run.FoldRun:
        return fold_run.fold_folder(self.root / work, run, number)


def fold_table(
    masks: list[np.ndarray], folds: list[int], groups: list[str] | None = None
) -> pd.DataFrame:
    """Return the folds file of images i00, i01 … with these masks (H, W)."""
    groups = groups or [""] * len(masks)
    rows = [
        (f"i{i:02d}", fold, group, *mask.shape, int(mask.sum()), rle.encode(mask.astype(np.uint8)))
        for i, (mask, fold, group) in enumerate(zip(masks, folds, groups, strict=True))
    ]
    return pd.DataFrame(rows, columns=list(folds_file.COLUMNS))


def write_fold(
    work: Path,
    run: str,
    fold: int,
    table: pd.DataFrame,
    kept: Sequence[tuple],
    last: Sequence[tuple] | None = None,
    test: Sequence[tuple] | None = None,
    lineage: Lineage | None = None,
    **experiment,
) -> fold_run.FoldRun:
    """Write what a fold of a finished run predicts, each image as (id, level map, label)."""
    folder = fold_run.fold_folder(work, run, fold)
    write_config(folder, folds_file.digest(table), **experiment)
    trained_on = tuple(table.loc[table["fold"] != fold, "image_id"])
    past = lineage or Lineage(images=trained_on, chosen_on=())
    meta = {"run": run, "fold": fold, "lineage": past.to_json()}
    for path, images in ((folder.oof, kept), (folder.oof_last, last or kept), (folder.test, test)):
        if images is not None:
            maps.write(path, [(i, maps.Prediction(*predicted)) for i, *predicted in images], meta)
    folder.write_log(
        [{"epoch": 1, "train_loss": 0.5, "val_loss": 0.5, "dice": 0.5, "lr": 0.1, "best": True}]
    )
    return folder


def rewrite(
    path: Path,
    levels: Callable[[str], np.ndarray] | None = None,
    label: Callable[[str], float] | None = None,
    disagreement: Callable[[str], float | None] | None = None,
    **meta,
) -> None:
    """Write an archive again with what is predicted by functions of the id, or other meta."""
    archive = maps.Maps(path)
    levels = levels or archive.__getitem__
    label = label or archive.label
    apart = disagreement or archive.disagreement
    images = [(i, maps.Prediction(levels(i), label(i), apart(i))) for i in archive.ids]
    maps.write(path, images, archive.meta | meta)


def assert_same_training(one: fold_run.FoldRun, other: fold_run.FoldRun) -> None:
    """Compare the weights of all checkpoints, and the predictions of held-out images."""
    assert [p.name for p in one.kept()] == [p.name for p in other.kept()]
    for a, b in zip((one.last, *one.kept()), (other.last, *other.kept()), strict=True):
        (there, _), (here, _) = checkpoints.load(a), checkpoints.load(b)
        average = [state["ema"]["model"] for state in (there, here) if "ema" in state]
        for x, y in ((there["model"], here["model"]), average or ({}, {})):
            assert x.keys() == y.keys()
            assert all(torch.equal(x[k], y[k]) for k in x)
    assert one.oof.read_bytes() == other.oof.read_bytes()
    assert one.oof_last.read_bytes() == other.oof_last.read_bytes()
