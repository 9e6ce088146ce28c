"""One arm at one seed: trained, predicted and scored. This is what a worker process does."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kernel_lib import storage
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.maps import Maps
from kernel_lib.config import Experiment, TrainParameters
from tools.ablation import score, setting
from tools.ablation.arms import Arm, Joined, Trained
from tools.ablation.score import Columns
from tools.ablation.setting import Place, Setting


@dataclass(frozen=True)
class Job:
    """One arm at one seed, and the jobs that come first."""

    arm: Arm
    seed: int
    needs: tuple[tuple[str, int], ...]  # (arm, seed)
    key: str  # of everything that the result depends on
    keep: bool  # whether checkpoints stay, since other arms start from them

    @property
    def name(self) -> str:
        return f"{self.arm.name}_seed{self.seed}"


def execute(job: Job, place: Place, how: Setting, rows: Mapping[str, Experiment]) -> dict[str, Any]:
    """Return the job's line of results, with `error` where it failed."""
    began, log = time.perf_counter(), place.log(job.arm.name, job.seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    line = {"key": job.key, "arm": job.arm.name, "seed": job.seed}
    with log.open("w", encoding="utf-8") as file:
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                line["columns"] = _columns(job, place, how, rows)
        except Exception as error:  # a failed arm is a result, too
            traceback.print_exc(file=file)
            first = next(iter(str(error).splitlines()), "")
            for path in (place.folder, Path.home()):  # the line is for others to read
                first = first.replace(str(path), "…")
            line["error"] = f"{type(error).__name__}: {first}"
    return line | {"seconds": round(time.perf_counter() - began, 1)}


def _columns(job: Job, place: Place, how: Setting, rows: Mapping[str, Experiment]) -> Columns:
    truth = setting.truth(place)
    if isinstance(job.arm, Joined):
        archives = [Maps(place.maps(*need)) for need in job.needs]
        score.refuse_seen(archives, truth)
        columns = _joined(job.arm, archives, truth)
    else:
        experiment, trained = (
            (job.arm.row, job.arm)
            if isinstance(job.arm, Trained)
            else (job.arm.of.row.model_copy(update={"tta": job.arm.tta}), job.arm.of)
        )
        folder = _folder(trained, job.seed, place, how)
        if isinstance(job.arm, Trained):
            _train(job, folder, place, how, rows)
        _predict(experiment, folder, place.maps(job.arm.name, job.seed), place)
        archive = Maps(place.maps(job.arm.name, job.seed))
        score.refuse_seen([archive], truth)
        columns = score.of_mean([archive], truth, gate="label" if trained.gated else "none")
        if isinstance(job.arm, Trained):
            _tidy(job, folder, place)
    return {name: [round(float(v), 6) for v in column] for name, column in columns.items()}


def _joined(arm: Joined, archives: list[Maps], truth: pd.DataFrame) -> Columns:
    if arm.how == "vote":
        return score.of_vote(archives, truth)
    if arm.how == "label":
        return score.of_mean(archives[:1], truth, gate="label", labels=archives[1])
    gate = "sum" if arm.how == "sum" else "none"
    return score.of_mean(archives, truth, gate, single=arm.how == "single")


def _folder(arm: Trained, seed: int, place: Place, how: Setting) -> FoldRun:
    return fold_run.fold_folder(place.work(arm.phantoms), f"{arm.name}_seed{seed}", how.fold)


def _train(
    job: Job, folder: FoldRun, place: Place, how: Setting, rows: Mapping[str, Experiment]
) -> None:
    """Train the arm's fold, or go on with it; a run of another key starts again."""
    from kernel_lib.stages import train

    arm, key_file = job.arm, folder.path.parent / "key.txt"
    if not key_file.is_file() or key_file.read_text(encoding="utf-8") != job.key:
        shutil.rmtree(folder.path.parent, ignore_errors=True)
        storage.write_text(key_file, job.key)
    given = {}
    if arm.encoder_of:
        # Of other phantoms, none of which is scored: what ImageNet's are to real radiographs.
        given["weights_dir"] = str(place.weights(arm.encoder_of, job.seed))
        given["weights_are"] = "imagenet"
    train.run(
        TrainParameters(
            experiment=arm.name,
            seed=job.seed,
            fold=how.fold,
            n_folds=how.n_folds,
            data_dir=str(place.data(arm.phantoms)),
            work_dir=str(place.work(arm.phantoms)),
            cache_dir=str(place.cache),
            workers=0,
            threads=1,
            **given,
        ),
        rows,
    )


def _predict(experiment: Experiment, folder: FoldRun, target: Path, place: Place) -> None:
    """Write the maps of the evaluation images by the run's kept checkpoints."""
    from kernel_lib import checkpoints
    from kernel_lib.engine import choose_engine
    from kernel_lib.inference import predictions

    engine, kept = choose_engine(), folder.kept()
    prepared = setting.prepare(place, "own", experiment.size, "test")
    meta = predictions.describe(folder, experiment, kept, checkpoints.lineage(kept[-1]))
    models = predictions.load_models(experiment, kept, engine)
    images = predictions.Images(prepared, range(len(prepared)), engine, 0)
    predictions.write(target, models, experiment, images, meta)


def _tidy(job: Job, folder: FoldRun, place: Place) -> None:
    """Remove what no other arm starts from; an encoder that one does is written out as a file."""
    folder.last.unlink(missing_ok=True)
    if job.keep:
        _export_encoder(job, folder, place)
        return
    for path in folder.kept():
        path.unlink()


def _export_encoder(job: Job, folder: FoldRun, place: Place) -> None:
    """Write the encoder under the name by which ImageNet's would be found."""
    import torch

    from kernel_lib.models import weights

    state = weights.read_state(folder.kept()[-1])
    own = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    target = place.weights(job.arm.name, job.seed) / f"{job.arm.row.encoder}.pth"
    with storage.atomic_write(target) as file:
        torch.save(own, file)


def start_worker() -> None:
    """Start a worker: with one thread, since workers share the cores, and ending with its parent.

    Left behind by a killed parent, it would train into folders that the next call trains into, too.
    """
    import cv2

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    cv2.setNumThreads(0)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
