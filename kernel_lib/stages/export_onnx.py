"""Export a run's folds, or a released model, to ONNX files, for `predict --onnx` without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kernel_lib import checkpoints, released
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.filenames import ENSEMBLES, RUNS
from kernel_lib.engine import Engine
from kernel_lib.errors import InputError
from kernel_lib.inference import onnx_network, predictions, tta
from kernel_lib.inference.onnx_file import SUFFIX, OnnxFacts
from kernel_lib.kaggle import paths
from kernel_lib.models.base import Network
from kernel_lib.released import Released
from kernel_lib.stages import release
from kernel_lib.stages.inference import check_members

CPU = Engine(torch.device("cpu"), torch.float32)
LEVELS = (
    "uint8, 0 to 255, bones white: window, MONOCHROME1, EXIF and low contrast handled as in "
    "kernel_lib.data.images, resized to a square by area, or bilinearly to enlarge"
)


def run(run_or_model: str, out: Path, ensemble: Path | None = None) -> dict[Path, int]:
    """Write each fold of a run's folder, or a released model by name or file, to a file in `out`.

    `ensemble` is an ensemble of that run alone, by default ensembles/<run>. Returns the size of
    each file in bytes. Raises: InputError if there is no such run or model, no rule for it, or its
    network cannot be exported.
    """
    folder = Path(run_or_model)
    if folder.is_dir():
        return _of_run(folder.resolve(), out, ensemble)
    if ensemble is not None:
        raise InputError(
            f"--ensemble {ensemble} is of a run, and {run_or_model} is no run's folder"
        )
    path = folder
    if path.suffix != released.SUFFIX:
        path = released.find(paths.models_dir(), run_or_model)
    model = Released.load(path)
    facts = OnnxFacts(**_without_model(model), fold=0, combine="mean", input=_input(model.model))
    return dict([_write(facts, [model.model], out / f"{model.name}{SUFFIX}")])


def _of_run(folder: Path, out: Path, ensemble_folder: Path | None) -> dict[Path, int]:
    work, written = folder.parent.parent, {}
    folds = fold_run.find([work], folder.name) if folder.parent.name == RUNS else {}
    if not folds:
        raise InputError(f"{folder} is no run's folder: give WORK_DIR/{RUNS}/RUN")
    if ensemble_folder is None:
        ensemble_folder = work / ENSEMBLES / folder.name
    decision = Decision.load(ensemble_folder)
    ensemble, scores = decision.ensemble, decision.scores
    release.check_alone(decision, ensemble_folder, folder.name)
    check_members(decision, [work])
    for number in ensemble.folds:
        fold = folds[number]
        config = fold.read_config()
        holds = scores.is_honest(scores.kept_selected)
        models = predictions.load_models(config.experiment, fold.kept(), CPU)
        facts = OnnxFacts(
            name=fold.run,
            experiment=release.given_away(config.experiment),
            rule=decision.choice.triplet,
            gate=ensemble.gate,
            tta=config.experiment.tta,
            lineage=release.without_paths(checkpoints.lineage(fold.kept()[0])),
            score=release.score_of(ensemble, scores.kept, fold, holds),
            licence="not stated",
            fold=number,
            combine=ensemble.combine,
            input=_input(models[0]),
        )
        written |= [_write(facts, models, out / f"{fold.run}_fold{number}{SUFFIX}")]
    return written


def _write(facts: OnnxFacts, models: Sequence[Network], path: Path) -> tuple[Path, int]:
    if any(view.scale != 1 for view in tta.views(facts.tta)):
        raise InputError(
            f"{facts.name} predicts with TTA {facts.tta}, and an ONNX file takes images of one "
            "size: predict with --ensemble or --model"
        )
    return path, facts.save(onnx_network.to_onnx(models, facts.experiment.size), path)


def _without_model(model: Released) -> dict[str, object]:
    return {name: value for name, value in vars(model).items() if name != "model"}


def _input(model: Network) -> dict[str, object]:
    mean, std = ((x / 255).flatten().tolist() for x in (model.input.mean, model.input.std))
    return {"levels": LEVELS, "mean": mean, "std": std}
