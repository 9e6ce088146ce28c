"""What `predict` predicts with if torch is installed: an ensemble, or a released model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kernel_lib import released
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.config import PredictParameters
from kernel_lib.data.table import Source
from kernel_lib.engine import Engine
from kernel_lib.inference import engines, predictions
from kernel_lib.inference.ensemble_maps import Predicted
from kernel_lib.kaggle import paths
from kernel_lib.parallel.world import World
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.released import Released
from kernel_lib.stages import inference
from kernel_lib.stages.inference import Setup
from kernel_lib.stages.predictors import Predictor, test_table


def of_parameters(parameters: PredictParameters) -> Predictor:
    """Return the predictor of the ensemble or released model that `predict` is given, checked."""
    engines.check(parameters)
    scratch = Path(parameters.scratch)
    if parameters.ensemble_folder is not None:
        return _of_ensemble(Path(parameters.ensemble_folder), scratch)
    return _of_released(parameters.model, scratch)


def _of_ensemble(folder: Path, scratch: Path) -> Predictor:
    decision = Decision.load(folder)
    roots = [scratch, *paths.artefact_roots(folder.parents[1])]
    inference.check_members(decision, roots)
    made = _predictor(decision.ensemble, decision.choice, roots, inference.predict_all)
    return replace(made, calibration=decision.calibration)


def _of_released(name: str | None, scratch: Path) -> Predictor:
    if name is not None and Path(name).suffix == released.SUFFIX:
        path = Path(name)
    else:
        path = released.find(paths.models_dir(), name)
    network = Released.load(path)
    ensemble = Ensemble(
        name=network.name,
        members=(Member(run=network.name, folds=(0,)),),
        gate=network.gate,
        folds_digest="",
    )
    return _predictor(ensemble, Choice(network.rule), [scratch], partial(_released_all, network))


def _predictor(
    ensemble: Ensemble,
    choice: Choice,
    roots: Sequence[Path],
    predict_all: Callable[[Setup, Engine, World], Predicted],
) -> Predictor:
    def predict(parameters: PredictParameters) -> Predicted:
        frame = test_table(parameters)
        source = Source(root=roots[0], layout="files", train=frame.iloc[:0], test=frame)
        setup = Setup(
            parameters, roots, roots[0], ensemble, choice, source, None,
            frame["image_id"].tolist(),
        )  # fmt: skip
        return inference.in_processes("predict-files", parameters, partial(predict_all, setup))

    return Predictor(ensemble, choice, roots, predict)


def _released_all(network: Released, setup: Setup, engine: Engine, world: World) -> Predicted:
    """Write every map of a released model into the scratch folder."""
    parameters, experiment = setup.parameters, network.experiment
    predictions.check_shared_memory(parameters, experiment, engine)
    prepared = world.from_first(partial(inference.prepared_images, experiment.size, setup))
    target = fold_run.fold_folder(setup.roots[0], network.name, 0).test
    meta = {"run": network.name, "fold": 0, "tta": network.tta}
    if not world.from_first(partial(predictions.is_written, target, meta, len(prepared))):
        model = network.model.to(engine.device, memory_format=torch.channels_last)
        viewed = experiment.model_copy(update={"tta": network.tta})
        models, line = engines.computed([model], viewed, parameters, engine, len(prepared))
        print(line)
        n_workers = predictions.workers(parameters.workers, engine)
        rows = np.arange(len(prepared))
        images = predictions.Images(prepared, rows, engine, n_workers, parameters.batch_size)
        predictions.write(target, models, experiment, images, meta, world=world)
    return Predicted(prepared.table, prepared.skipped, prepared.notes)
