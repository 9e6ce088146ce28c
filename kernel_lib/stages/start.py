"""What a fold's training starts from, and the past that comes with it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from torch import nn

from kernel_lib import checkpoints, runs
from kernel_lib.engine import seed_everything
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths
from kernel_lib.models import networks, weights
from kernel_lib.plan import TrainPlan, how_to_make
from kernel_lib.runs import FoldFolder, Lineage
from kernel_lib.stages.preparation import TrainingSet
from kernel_lib.training.validation import better


def network(
    folder: FoldFolder,
    decided: TrainPlan,
    images: TrainingSet,
    held: np.ndarray,
    roots: Sequence[Path],
) -> tuple[nn.Module, Lineage]:
    """The fold's network with its starting weights, and the past it will have once trained."""
    row, parameters, truth = decided.experiment, decided.parameters, images.truth
    seed_everything(parameters.seed, parameters.deterministic)
    model = networks.build(row)
    mine = truth[~held]
    if folder.last.exists():
        lineage = checkpoints.load(folder.last)[1]
        _same_images(folder, lineage, set(mine["image_id"]), set(truth["image_id"]))
        return model, lineage
    lineage = Lineage(
        images=tuple(sorted(mine["image_id"])),
        groups=tuple(sorted(set(mine["group"]) - {""})),
        known=images.past_known,
    )
    if row.weights == "none":
        return model, lineage
    if row.weights == "imagenet":
        found = weights.load_imagenet(
            model.encoder, row.encoder, paths.weights_dirs(parameters.weights_dir)
        )
        print(f"encoder starts from {found}")
        return model, lineage
    parent, network_there = _parent(decided, folder, roots)
    if network_there == "Classifier" and row.network != "Classifier":
        weights.load_encoder(model.encoder, parent)
        print(f"{folder.name}'s encoder starts from that of {parent}")
    else:
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


def check(
    decided: TrainPlan, folds: Sequence[int], roots: Sequence[Path], among: Container[str] = ()
) -> None:
    """Refuse starting weights that cannot be had, before any image is decoded.

    Runs in `among` will be trained first.
    """
    row, parameters = decided.experiment, decided.parameters
    runs.check_experiment(roots, decided)
    if parameters.groups is not None and not paths.from_root(parameters.groups).is_file():
        raise InputError(f"GROUPS {paths.from_root(parameters.groups)} does not exist")
    if row.gate is not None and row.gate not in among and row.gate not in runs.names(roots):
        print(
            f"note: the masks of {decided.run} are gated by {row.gate}, which is not there yet; "
            f"the thresholds stage will need it: {how_to_make(decided.gate)}"
        )
    begun = [f for f in folds if runs.fold_folder(roots[0], decided.run, f).last.exists()]
    if row.weights == "none" or row.weights in among or begun:
        return
    if row.weights == "imagenet":
        encoder = networks.build(row).encoder
        weights.load_imagenet(encoder, row.encoder, paths.weights_dirs(parameters.weights_dir))
    elif not _is_file(row.weights) and row.weights not in runs.names(roots):
        _no_such_weights(decided, min(folds), roots)
    elif _is_file(row.weights) and not paths.from_root(row.weights).is_file():
        raise InputError(f"WEIGHTS {paths.from_root(row.weights)} does not exist; {weights.OFFER}")


def _same_images(folder: FoldFolder, lineage: Lineage, now: set[str], everything: set[str]) -> None:
    """Refuse to go on with other training images than the fold began with.

    The order of an epoch, and what the checkpoint says it has seen, would both be wrong.
    """
    began = set(lineage.images)
    gone = began - everything if not lineage.ancestors else set()
    if not now <= began or gone or (not lineage.ancestors and began != now):
        other = sorted((now - began) or gone or (began - now))
        raise InputError(
            f"{folder.path} began with other training images than are here now ({other[0]}; see "
            "left_out.json): restore them, or delete that folder"
        )


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".pt", ".pth", ".safetensors")


def _no_such_weights(decided: TrainPlan, fold: int, roots: Sequence[Path]) -> NoReturn:
    name = decided.experiment.weights
    there = ", ".join(runs.names(roots)) or "none"
    if decided.parent is not None:
        raise InputError(
            f"{decided.run} starts from fold {fold} of {name}, which is not finished here (runs "
            f"there: {there}): {how_to_make(decided.parent)}"
        )
    raise InputError(
        f"WEIGHTS {name!r} is neither imagenet, none, a file, nor a run with a finished fold "
        f"{fold}; runs there: {there}; {weights.OFFER}"
    )


def _parent(
    decided: TrainPlan, folder: FoldFolder, roots: Sequence[Path]
) -> tuple[Path, str | None]:
    """The checkpoint that WEIGHTS names, and of which network it is, where that is known.

    A file, or the best of another run's same fold.
    """
    name, fold = decided.experiment.weights, folder.fold
    if _is_file(name):
        path = paths.from_root(name)
        if not path.is_file():
            raise InputError(f"WEIGHTS {path} does not exist; {weights.OFFER}")
        return path, None
    parent = runs.find(roots, name).get(fold)
    if parent is None or not parent.kept() or not parent.oof.is_file():
        _no_such_weights(decided, fold, roots)
    config = parent.read_config()
    if config["folds_digest"] != folder.read_config()["folds_digest"]:
        raise InputError(
            f"{parent.name} was trained on another folds file: its fold {fold} is not this one; "
            "train both in one WORK_DIR"
        )
    kept = {line["epoch"]: line for line in parent.read_log() if line["best"]}
    monitor = config["experiment"]["monitor"]
    key = better(monitor)
    best = max(parent.kept_epochs(), key=lambda e: (key(kept[e][monitor]), -e))
    return parent.best(best), config["experiment"]["network"]
