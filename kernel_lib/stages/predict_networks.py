"""What `predict` predicts with by torch: an ensemble, or a released model.

On a CPU onnxruntime computes the networks instead if it is installed and faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kernel_lib import released
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.config import Experiment, PredictParameters
from kernel_lib.data.table import Source
from kernel_lib.engine import Engine
from kernel_lib.errors import InputError
from kernel_lib.inference import onnx_file, predictions, tta
from kernel_lib.inference.ensemble_maps import Predicted
from kernel_lib.inference.onnx_network import OnnxNetwork
from kernel_lib.kaggle import paths
from kernel_lib.parallel.world import World
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.released import Released
from kernel_lib.stages import inference
from kernel_lib.stages.inference import Setup
from kernel_lib.stages.predictors import Predictor, test_table

# Pixels, over all images and views, above which more time is saved than the export takes.
PAYS_FROM_PX = 16_000_000


def check(parameters: PredictParameters) -> None:
    """Raise InputError for --engine onnxruntime without its packages, a CPU or float32."""
    if parameters.engine != "onnxruntime":
        return
    if parameters.precision not in ("auto", "float32") or parameters.device not in ("auto", "cpu"):
        raise InputError(
            f"--engine onnxruntime runs on the CPU in float32, not with --device "
            f"{parameters.device} --precision {parameters.precision}: leave them out"
        )
    if not _installed():
        raise InputError("--engine onnxruntime needs onnx and onnxruntime: pip install .[onnx]")


def of_ensemble(folder: Path, scratch: Path) -> Predictor:
    """Return the predictor of an ensemble that the thresholds stage made, its members checked."""
    decision = Decision.load(folder)
    roots = [scratch, *paths.artefact_roots(folder.parents[1])]
    inference.check_members(decision, roots)
    made = _predictor(decision.ensemble, decision.choice, roots, inference.predict_all)
    return replace(made, calibration=decision.calibration)


def of_released(name: str | None, scratch: Path) -> Predictor:
    """Return the predictor of a released model by name or file; None: the only one there is."""
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
            frame["image_id"].tolist(), partial(_load, parameters, lru_cache(print)),
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
        models, line = _choose_engine([model], experiment, network.tta, parameters, engine)
        print(line)
        n_workers = predictions.workers(parameters.workers, engine)
        rows = np.arange(len(prepared))
        images = predictions.Images(prepared, rows, engine, n_workers, parameters.batch_size)
        predictions.write(target, models, experiment, images, meta, world=world)
    return Predicted(prepared.table, prepared.skipped, prepared.notes)


def _load(
    parameters: PredictParameters,
    print_line: Callable[[str], None],
    experiment: Experiment,
    kept: Sequence[Path],
    engine: Engine,
) -> list[nn.Module]:
    models = predictions.load_models(experiment, kept, engine)
    models, line = _choose_engine(models, experiment, experiment.tta, parameters, engine)
    print_line(line)
    return models


def _choose_engine(
    models: list[nn.Module],
    experiment: Experiment,
    views: str,
    parameters: PredictParameters,
    engine: Engine,
) -> tuple[list[nn.Module], str]:
    """Return the networks, to be computed by onnxruntime or torch, and a line that says which.

    Raises: InputError if --engine onnxruntime is given, and onnxruntime cannot compute them.
    """
    reason = _reason_for_torch(experiment.size, views, parameters, engine)
    if reason is None:
        try:
            exported = [OnnxNetwork(model, experiment.size) for model in models]
            return exported, onnx_file.engine_line()
        except InputError as error:  # an encoder that cannot be exported
            reason = str(error)
    if parameters.engine == "onnxruntime":
        raise InputError(f"--engine onnxruntime: {reason}; leave it out, and torch predicts")
    precision = str(engine.dtype).removeprefix("torch.")
    return models, f"engine: torch {torch.__version__}, {engine.device}, {precision}"


def _reason_for_torch(
    size: int, views: str, parameters: PredictParameters, engine: Engine
) -> str | None:
    """Return why torch computes a network; None if onnxruntime does, which is faster on a CPU.

    `tools/benchmarks/engines.py` measures how much faster.
    """
    if parameters.engine == "torch":
        return "--engine torch is given"
    if engine.device.type != "cpu" or engine.dtype != torch.float32:
        return f"only torch computes on {engine.device} in {engine.dtype}"
    all_views = tta.views(views)
    if any(view.scale != 1 for view in all_views):
        return f"TTA {views} looks at other sizes than the network's own"
    if parameters.engine == "onnxruntime":
        return None
    if len(parameters.listed) * len(all_views) * size**2 < PAYS_FROM_PX:
        return "for so few images the export takes longer than it saves"
    return None if _installed() else "onnx or onnxruntime is not installed"


def _installed() -> bool:
    return all(find_spec(name) is not None for name in ("onnx", "onnxruntime"))
