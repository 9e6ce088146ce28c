"""What tests of stages share: places, a run without training, and no mounts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kernel_lib import checkpoints, storage
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment, ThresholdsParameters, TrainParameters
from kernel_lib.data import rle
from kernel_lib.inference import predictions
from kernel_lib.models import networks
from kernel_lib.plan import TrainPlan
from kernel_lib.stages import report
from kernel_lib.stages import thresholds as thresholds_stage
from tests.stages.place import Place, fold_table


@pytest.fixture(scope="module", autouse=True)
def apart(tmp_path_factory) -> Iterator[None]:
    """No mounts; threads and torch's generator afterwards as before."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path_factory.getbasetemp() / "no-mounts"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_report(monkeypatch) -> None:
    """No report is written, which takes seconds."""
    monkeypatch.setattr(report, "write", lambda *args, **how: None)


@pytest.fixture
def place(phantom_run, phantoms, tmp_path) -> Place:
    """A copy of the shared phantom run, which a test may change."""
    return Place(phantom_run, phantoms).copy(tmp_path)


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """A WORK_DIR as training and thresholds leave it, of two random networks that draw masks.

    The run is `tiny`, its ensemble too; networks are small enough to be released.
    """
    work = tmp_path_factory.mktemp("untrained") / "work"
    row = Experiment(
        name="tiny", encoder="tu-test_efficientnet", decoder_channels=(16,) * 5, size=32,
        label_weight=0.1, epochs=3, min_epochs=1, weights="none",
    )  # fmt: skip
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 3:9] = 1
    drawn = fold_table([mask * (i % 3 == 0) for i in range(12)], [i % 2 for i in range(12)])
    folds_file.save(drawn, work / "folds.csv")
    plan = TrainPlan(run="tiny", experiment=row, parameters=TrainParameters(seed=1, n_folds=2))
    with torch.random.fork_rng(devices=[]):
        for fold in (0, 1):
            _fold_of(work, plan, drawn, fold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERNEL_LIB_MOUNTS", str(work / "mounts"))
        patch.setattr(report, "write", lambda *args, **how: None)  # which takes seconds
        found = thresholds_stage.run(ThresholdsParameters(work_dir=str(work), bootstrap=100))
    path = found.folder / "thresholds.json"
    document = json.loads(path.read_text())
    document["rule"] = {"top": 0.6, "min_area_px": 2000, "bottom": 0.5}
    storage.write_json(path, document)
    return work


def _fold_of(work: Path, plan: TrainPlan, drawn: pd.DataFrame, fold: int) -> None:
    folder = fold_run.fold_folder(work, plan.run, fold)
    fold_run.write_or_check_config(folder, plan, folds_file.digest(drawn))
    torch.manual_seed(fold)
    state = networks.build(plan.experiment).state_dict()
    state["head.logit.weight"] *= 300  # from probabilities of 0.01 to both sides of a half
    state["head.logit.bias"].zero_()
    held = drawn["fold"] == fold
    past = Lineage(images=tuple(drawn.loc[~held, "image_id"]), chosen_on=())
    checkpoints.save(folder.best(1), {"model": state}, past)
    checkpoints.save(folder.last, {"model": state}, past)
    line = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.5, "dice": 0.5, "lr": 0.1, "best": True}
    storage.write_text(folder.log, json.dumps(line) + "\n")
    meta = predictions.describe(folder, plan.experiment, folder.kept(), past)
    levels = [rle.decode(text, (16, 16)) * np.uint8(200) for text in drawn.loc[held, "rle"]]
    shown = [maps.Prediction(one, float(one.max() > 0)) for one in levels]
    for path in (folder.oof, folder.oof_last):
        maps.write(path, zip(drawn.loc[held, "image_id"], shown, strict=True), meta)
