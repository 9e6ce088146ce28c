"""What a fold's training starts from, and the past that comes with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from kernel_lib import checkpoints, runs
from kernel_lib.config import TrainPlan
from kernel_lib.engine import seed_everything
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.models import networks, weights
from kernel_lib.runs import FoldFolder, Lineage
from kernel_lib.training.validation import better


def network(
    folder: FoldFolder,
    decided: TrainPlan,
    truth: pd.DataFrame,
    held: np.ndarray,
    roots: Sequence[Path],
) -> tuple[nn.Module, Lineage]:
    """The fold's network with its starting weights, and the past it will have once trained."""
    row, parameters = decided.experiment, decided.parameters
    seed_everything(parameters.seed, parameters.deterministic)
    model = networks.build(row)
    if folder.last.exists():
        return model, checkpoints.load(folder.last)[1]
    mine = truth[~held]
    lineage = Lineage(
        images=tuple(sorted(mine["image_id"])),
        groups=tuple(sorted(set(mine["group"]) - {""})),
    )
    if row.weights == "none":
        return model, lineage
    if row.weights == "imagenet":
        found = weights.load_imagenet(
            model.encoder, row.encoder, paths.weights_dirs(parameters.weights_dir)
        )
        print(f"encoder starts from {found}")
        return model, lineage
    parent = _parent(row.weights, folder.fold, roots, folder.read_config()["folds_digest"])
    weights.load_model(model, parent)
    print(f"{folder.name} starts from {parent}")
    lineage = lineage.joined(checkpoints.past(parent), row.weights)
    for image_id, group in truth.loc[held, ["image_id", "group"]].itertuples(index=False):
        if lineage.saw(image_id, group):
            raise InputError(
                f"WEIGHTS {row.weights} was trained on image {image_id} or its patient, which fold "
                f"{folder.fold} holds out: no score could be honest; take a run on this folds file"
            )
    return model, lineage


def _parent(name: str, fold: int, roots: Sequence[Path], folds_digest: str) -> Path:
    """The checkpoint that WEIGHTS names: a file, or the best of another run's same fold."""
    if Path(name).suffix in (".pt", ".pth", ".safetensors"):
        path = Path(name) if Path(name).is_absolute() else paths.project_root() / name
        if not path.is_file():
            raise InputError(f"WEIGHTS {path} does not exist; {weights.OFFER}")
        return path
    folder = runs.find(roots, name).get(fold)
    if folder is None or not folder.kept():
        raise InputError(
            f"WEIGHTS {name!r} is neither imagenet, none, a file, nor a run with a finished fold "
            f"{fold}; runs there: {', '.join(runs.names(roots)) or 'none'}; {weights.OFFER}"
        )
    if folder.read_config()["folds_digest"] != folds_digest:
        raise InputError(
            f"{folder.name} was trained on another folds file: its fold {fold} is not this one; "
            "train both in one WORK_DIR"
        )
    kept = {line["epoch"]: line for line in folder.read_log() if line["best"]}
    monitor = folder.read_config()["experiment"]["monitor"]
    key = better(monitor)
    by_epoch = {int(p.stem.removeprefix("best_epoch")): p for p in folder.kept()}
    return by_epoch[max(by_epoch, key=lambda e: (key(kept[e][monitor]), -e))]
