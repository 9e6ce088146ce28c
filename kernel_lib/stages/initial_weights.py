"""Starting weights of a fold, and the lineage that comes with them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from torch import nn

from kernel_lib import checkpoints, released
from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.lineage import UNKNOWN, Lineage
from kernel_lib.config import Experiment
from kernel_lib.data.labels import read_groups
from kernel_lib.engine import seed_everything
from kernel_lib.errors import InputError
from kernel_lib.experiment_file import STARTS
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.kaggle import paths
from kernel_lib.models import imagenet, networks, weights
from kernel_lib.plan import TrainPlan, how_to_make
from kernel_lib.registry import nearest
from kernel_lib.released import Released
from kernel_lib.stages import leaks, preparation
from kernel_lib.stages.preparation import TrainingSet
from kernel_lib.training.validation import better


def network(
    folder: FoldRun,
    plan: TrainPlan,
    images: TrainingSet,
    held: np.ndarray,
    roots: Sequence[Path],
) -> tuple[nn.Module, Lineage]:
    """Return the fold's network with its starting weights, and its lineage once trained."""
    experiment, parameters, truth = plan.experiment, plan.parameters, images.truth
    seed_everything(parameters.seed, parameters.deterministic)
    model = networks.build(experiment)
    training = truth[~held]
    if folder.last.exists():
        lineage = checkpoints.load(folder.last)[1]
        _same_images(folder, lineage, set(training["image_id"]), set(truth["image_id"]))
        return model, lineage
    codes = images.fingerprints or ("",) * len(truth)
    own = list(zip(truth["image_id"], codes, strict=True))
    lineage = Lineage(
        groups=tuple(sorted(set(training["group"]) - {""})), known=images.past_known, chosen_on=()
    ).of_pairs([pair for pair, out in zip(own, held, strict=True) if not out])
    if experiment.weights == "none":
        return model, lineage
    if experiment.weights == "imagenet":
        return model, _from_imagenet(model, plan, lineage)
    parent, encoder_only = _parent(plan, folder, roots, model)
    if encoder_only:
        weights.load_encoder(model.encoder, parent)
        print(f"{folder.name}'s encoder starts from that of {parent}")
    else:
        weights.load_model(model, parent)
        print(f"{folder.name} starts from {parent}")
    name = parent.stem if released.is_released(parent) else experiment.weights
    inherited = leaks.mapped(checkpoints.lineage(parent), truth, images.fingerprints, name)
    lineage = lineage.joined(inherited, name)
    if leaked := leaks.seen_by(images.test, [lineage]):
        print(f"warning: training images of {name}: {leaks.warning(leaked)}")
    for image_id, group in truth.loc[held, ["image_id", "group"]].itertuples(index=False):
        if lineage.saw(image_id, group):
            raise InputError(
                f"WEIGHTS {experiment.weights} was trained on image {image_id} or its patient, "
                f"which fold {folder.fold} holds out: no score could be honest; take a run on this "
                "folds file"
            )
    return model, lineage


def _from_imagenet(model: nn.Module, plan: TrainPlan, lineage: Lineage) -> Lineage:
    """Fill the encoder with its published weights; return the lineage with the file's origin."""
    experiment, parameters = plan.experiment, plan.parameters
    folders = paths.weights_dirs(parameters.weights_dir)
    path = weights.load_imagenet(model.encoder, experiment.encoder, folders)
    if imagenet.is_published(path, experiment.encoder):
        how = "known by its SHA-256"
    elif parameters.weights_are == "imagenet":
        how = "as WEIGHTS_ARE says"
    else:
        print(
            f"warning: the encoder starts from {path}, an ImageNet file by name only: its hash "
            "matches no published one, so its training data is unknown, and no score will be "
            "honest; if you know that it holds published ImageNet weights, -p WEIGHTS_ARE imagenet"
        )
        return lineage.joined(UNKNOWN, path.name)
    print(f"the encoder starts from {path}, published weights, {how}")
    return lineage.model_copy(update={"imagenet": f"{path.name}, {how}"})


def check(
    plan: TrainPlan, folds: Sequence[int], roots: Sequence[Path], among: Container[str] = ()
) -> None:
    """Refuse unusable GROUPS and starting weights before any image is decoded.

    `among` are runs that will be trained first.
    """
    experiment, parameters = plan.experiment, plan.parameters
    fold_run.check_experiment(roots, plan)
    preparation.refuse_lost_folds(roots)
    if parameters.groups is not None:
        groups = paths.from_root(parameters.groups)
        if not groups.is_file():
            raise InputError(f"GROUPS {groups} does not exist")
        read_groups(groups)
    runs, gate = {*fold_run.run_names(roots)}, experiment.gate
    if gate is not None and gate not in among and gate not in runs:
        print(
            f"note: the masks of {plan.run} are gated by {gate}, which does not exist yet; the "
            f"thresholds stage will need it: {how_to_make(plan.gate)}"
        )
    begun = [f for f in folds if fold_run.fold_folder(roots[0], plan.run, f).last.exists()]
    if experiment.weights == "none" or experiment.weights in among or begun:
        return
    if experiment.weights == "imagenet":
        _from_imagenet(networks.build(experiment), plan, Lineage())
    elif experiment.weights not in runs and _file(experiment.weights, roots) is None:
        _no_such_weights(plan, min(folds), roots)


def check_weights_are(plan: TrainPlan) -> None:
    """Refuse WEIGHTS_ARE where no file for WEIGHTS imagenet is read."""
    no_file = plan.parent is None and plan.experiment.weights != "imagenet"
    if no_file and plan.parameters.weights_are is not None:
        raise InputError(
            f"WEIGHTS_ARE says what the file for WEIGHTS imagenet holds, and WEIGHTS is "
            f"{plan.experiment.weights}: leave WEIGHTS_ARE out"
        )


def _same_images(folder: FoldRun, lineage: Lineage, now: set[str], everything: set[str]) -> None:
    """Refuse to resume a fold whose training images have changed.

    The order of an epoch and the lineage in the checkpoint would both be wrong.
    """
    began = set(lineage.images)
    gone = began - everything if not lineage.ancestors else set()
    if not now <= began or gone or (not lineage.ancestors and began != now):
        other = sorted((now - began) or gone or (began - now))
        raise InputError(
            f"{folder.path} began with other training images than are here now ({other[0]}; see "
            "left_out.json): restore them, or delete that folder"
        )


def _file(name: str, roots: Sequence[Path]) -> Path | None:
    """Return the file that WEIGHTS gives, or that of the released model it names.

    None for neither; a run takes precedence over a released model of its name.

    Raises: InputError where a file is given that does not exist.
    """
    if Path(name).suffix in paths.WEIGHT_ENDINGS:
        path = paths.from_root(name)
        if not path.is_file():
            raise InputError(f"WEIGHTS {path} does not exist; {weights.OFFER}")
        return path
    path = paths.models_dir() / f"{name}{released.SUFFIX}"
    return path if name not in fold_run.run_names(roots) and path.is_file() else None


def _encoder_only(model: nn.Module, experiment: Experiment, given: Released) -> bool:
    """Return whether only the encoder of a released model fits a network."""
    if given.experiment.encoder != experiment.encoder:
        return False  # loading the weights names what differs
    own, theirs = (
        {name: tensor.shape for name, tensor in network.state_dict().items()}
        for network in (model, given.model)
    )
    return not own.items() <= theirs.items()


def _no_such_weights(plan: TrainPlan, fold: int, roots: Sequence[Path]) -> NoReturn:
    name = plan.experiment.weights
    runs = ", ".join(fold_run.run_names(roots)) or "none"
    near = nearest(name, (*STARTS, *EXPERIMENTS, *fold_run.run_names(roots)))
    if plan.parent is not None:
        raise InputError(
            f"{plan.run} starts from fold {fold} of {name}, which is not finished here (runs "
            f"found: {runs}): {how_to_make(plan.parent)}"
        )
    raise InputError(
        f"WEIGHTS {name!r} is neither imagenet, none, a file, nor a run with a finished fold "
        f"{fold} (runs found: {runs}), nor a released model, {name}{released.SUFFIX} in "
        f"{paths.models_dir()}; nearest: {near}; {weights.OFFER}"
    )


def _parent(
    plan: TrainPlan, folder: FoldRun, roots: Sequence[Path], model: nn.Module
) -> tuple[Path, bool]:
    """Return the checkpoint that WEIGHTS names, and whether only its encoder fits the network.

    A file, a released model, or the best of another run's same fold.
    """
    experiment, fold = plan.experiment, folder.fold
    name = experiment.weights
    if (path := _file(name, roots)) is not None:
        given = Released.load(path) if released.is_released(path) else None
        return path, given is not None and _encoder_only(model, experiment, given)
    parent = fold_run.find(roots, name).get(fold)
    if parent is None or not parent.is_predicted():
        _no_such_weights(plan, fold, roots)
    config = parent.read_config()
    if config.folds_digest != folder.read_config().folds_digest:
        raise InputError(
            f"{parent.name} was trained on another folds file: its fold {fold} is not this one; "
            "train both in one WORK_DIR"
        )
    parent_network = networks.network_class(config.experiment.network)
    has_mask = networks.network_class(experiment.network).has_mask
    return best_kept(parent), has_mask and not parent_network.has_mask


def best_kept(folder: FoldRun) -> Path:
    """Return a fold's best kept checkpoint by the monitored metric; on a tie the earliest.

    Raises: InputError where its training is not finished, or one of them, or its log, is gone.
    """
    if not folder.is_predicted():
        raise InputError(f"{folder.path} keeps no checkpoint: finish its training")
    folder.require_kept(maps.Maps(folder.oof).meta["checkpoints"], "the choice of the best")
    kept = {line["epoch"]: line for line in folder.read_log() if line["best"]}
    if not kept:
        raise InputError(
            f"{folder.log} is missing, which says how good each checkpoint is: run the train stage "
            f"of fold {folder.fold} again, which writes it from last.pt"
        )
    monitor = folder.read_config().experiment.monitor
    key = better(monitor)
    best = max(folder.kept_epochs(), key=lambda e: (key(kept[e][monitor]), -e))
    return folder.best(best)
