"""The stages with a network as it was drawn: where time and memory count, and masks do not."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.config import Experiment, ThresholdsParameters, TrainParameters
from kernel_lib.data import images
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.stages import thresholds, train
from kernel_lib.stages.thresholds import ThresholdsResult
from kernel_lib.training.loop import Training

SCORES = {"val_loss": 0.7, "dice": 0.8, "dice_half": 0.8, "dice_nonempty": 0.0}
SHARE = 0.22  # of images with a mask, as in the competition
AREA = 0.01  # of an image, about the competition's median


@contextlib.contextmanager
def without_steps() -> Iterator[None]:
    """Leave optimiser steps and validation out of the train stage."""
    with (
        mock.patch.object(Training, "_train_epoch", _speak_up),
        mock.patch("kernel_lib.training.loop.validate", return_value=SCORES),
    ):
        yield


@torch.no_grad()
def _speak_up(training: Training) -> bool:
    """Give the map of a network as it was drawn, which is all but flat, a real one's contrast."""
    levels = torch.from_numpy(training.images.prepared.image(0).copy())[None, None]
    logits = training.ema.model(levels).mask
    factor = 2 / float(logits.std())
    for network in (training.model, training.ema.model):
        last = network.head.logit
        last.bias.sub_(float(logits.mean())).mul_(factor).sub_(4)
        last.weight.mul_(factor)
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what the stages print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def folds(row: Experiment, parameters: TrainParameters) -> None:
    """Make one fold or all as the train stage leaves them, their held-out images predicted."""
    with without_steps():
        train.run(parameters, {row.name: row})


def searched(work: Path, bootstrap: int = 100) -> ThresholdsResult:
    """Run the thresholds stage, and return its result."""
    return thresholds.run(ThresholdsParameters(work_dir=str(work), bootstrap=bootstrap))


def settle_rule(result: ThresholdsResult, work: Path, paths: dict[str, str]) -> Triplet:
    """Give an ensemble a rule by which a fifth of the test images get a mask of a real one's area.

    The one that was searched on maps of no sense would leave all images empty. `paths` are the test
    images by id; their maps are there already.
    """
    (run,) = fold_run.run_names([work])
    archive = maps.Maps(next(iter(fold_run.find([work], run).values())).test)
    levels = [maps.at_shape(archive[each], images.size_of(path)) for each, path in paths.items()]
    cut = min(int(np.quantile(np.stack(levels), 1 - AREA)), 254) / 255
    areas = [int((each > 255 * cut).sum()) for each in levels]
    rule = Triplet(cut, int(np.quantile(areas, 1 - SHARE)), cut)
    replace(result.decision, choice=Choice(rule)).save(result.folder, result.searches)
    return rule
