"""What `predict` predicts with, and prediction by ONNX files. This module needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.config import PredictParameters
from kernel_lib.data import cache
from kernel_lib.errors import InputError
from kernel_lib.inference import onnx_file
from kernel_lib.inference.ensemble_maps import Predicted
from kernel_lib.inference.onnx_file import OnnxModel
from kernel_lib.kaggle import paths
from kernel_lib.notebook import bar
from kernel_lib.postprocess.calibration import Logistic
from kernel_lib.postprocess.strategies import Choice

BATCH_SIZE = 4  # larger ones are no faster on a CPU, and need more memory


@dataclass(frozen=True)
class Predictor:
    """An ensemble, a released model or ONNX files, and how their maps become masks."""

    ensemble: Ensemble
    choice: Choice
    roots: Sequence[Path]  # the scratch folder first
    predict: Callable[[PredictParameters], Predicted]  # writes every map into the scratch folder
    calibration: Logistic | None = None  # of the image-level probability


def of_onnx(files: str, scratch: Path, threads: int | None) -> Predictor:
    """Return the predictor of ONNX files, comma-separated: folds of one run, or one model.

    Raises: InputError if a file cannot be read, or the files do not belong together.
    """
    models = [OnnxModel.load(Path(file), threads) for file in files.split(",") if file]
    if not models:
        raise InputError(f"--onnx {files!r} names no file: give files, separated by commas")
    onnx_file.check_together(models)
    models.sort(key=lambda model: model.fold)
    first = models[0]
    ensemble = Ensemble(
        name=first.name,
        members=(Member(run=first.name, folds=tuple(model.fold for model in models)),),
        combine=first.combine,
        gate=first.gate,
        folds_digest="",
    )
    return Predictor(ensemble, Choice(first.rule), [scratch], partial(_predict, models, scratch))


def check_onnx(parameters: PredictParameters) -> None:
    """Raise InputError for a GPU, a lower precision, several processes, or torch as the engine."""
    for name, value, allowed in (
        ("device", parameters.device, ("auto", "cpu")),
        ("precision", parameters.precision, ("auto", "float32")),
        ("processes", parameters.processes, (None, 1)),
        ("engine", parameters.engine, ("auto", "onnxruntime")),
    ):
        if value not in allowed:
            raise InputError(
                f"--{name} {value} does not go with onnxruntime, which runs on the CPU, in float32 "
                f"and in one process: leave --{name} out"
            )


def test_table(parameters: PredictParameters) -> pd.DataFrame:
    """Return the files to predict, numbered in the order listed: image_id, path."""
    listed = list(parameters.listed.values())
    ids = [f"{n:06d}" for n in range(len(listed))]
    return pd.DataFrame({"image_id": ids, "path": listed}, dtype=object)


test_table.__test__ = False  # not a test case of pytest


def _predict(
    models: Sequence[OnnxModel], scratch: Path, parameters: PredictParameters
) -> Predicted:
    images = cache.prepare(
        test_table(parameters), scratch, models[0].experiment.size,
        paths.cache_dir(parameters.cache_dir), "test", workers=parameters.workers or None,
        on_bad_file="blank",
    )  # fmt: skip
    print(onnx_file.engine_line())
    for model in models:
        batch_size = parameters.batch_size or BATCH_SIZE
        meta = {"run": model.name, "fold": model.fold, "tta": model.tta}
        title = f"{model.name}/fold{model.fold}"
        progress = bar(
            model.predict(images, batch_size), total=len(images), desc=title, unit="image",
            leave=False,
        )  # fmt: skip
        maps.write(fold_run.fold_folder(scratch, model.name, model.fold).test, progress, meta)
    return Predicted(images.table, images.skipped, images.notes)
