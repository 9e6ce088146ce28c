"""Test images → maps and labels of every fold and member → masks → a checked submission."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kernel_lib import checkpoints, files, runs
from kernel_lib.config import Experiment, InferenceParameters
from kernel_lib.data import cache, rle, table
from kernel_lib.engine import Engine, engine
from kernel_lib.errors import InputError
from kernel_lib.inference import ensemble as ensembles
from kernel_lib.inference import maps
from kernel_lib.inference.combine import test_masks
from kernel_lib.inference.ensemble import Ensemble
from kernel_lib.kaggle import paths
from kernel_lib.postprocess import honest, submission
from kernel_lib.postprocess.search import FULL_AREA
from kernel_lib.runs import FoldFolder
from kernel_lib.signals import Signals
from kernel_lib.stages import allowance, predictions, report, scores


@dataclass(frozen=True)
class InferenceResult:
    """A submission, and what is to be known of it."""

    folder: Path
    submission: Path
    summary: honest.TestSummary  # the test masks beside those out of fold
    honest: honest.HonestReport
    unreadable: tuple[str, ...]
    told: tuple[str, ...]  # the rule, and who has a say in what

    def __str__(self) -> str:
        lines = [*self.told]
        lines += [f"submission: {self.submission}", f"report: {self.folder / 'report.html'}"]
        lines += [f"empty mask, unreadable image: {image}" for image in self.unreadable]
        return "\n".join(lines)


def run(parameters: InferenceParameters) -> InferenceResult:
    """Predict the test images with every member, decide as the ensemble does, write and check.

    The submission has one row an image in the sample's order. Raises InputError where a stage's
    output is missing, or the sample and the images do not belong together.
    """
    work = paths.work_dir(parameters.work_dir)
    roots = paths.artefact_roots(work)
    earlier = ensembles.find(roots, parameters.ensemble)
    with Signals().caught(), files.alone(work / "ensembles" / earlier.name):
        result = _infer(parameters, earlier, roots)
    print(result)
    allowance.say(work)
    return result


def _infer(
    parameters: InferenceParameters, earlier: Path, roots: Sequence[Path]
) -> InferenceResult:
    ensemble = Ensemble.load(earlier)
    choice, document = ensembles.read_choice(earlier)
    source = table.discover(paths.data_dir(parameters.data_dir))
    sample_file, sample = _sample(parameters, source)
    _settled(ensemble, roots)
    chosen = engine(parameters.device, parameters.precision)
    if parameters.threads is not None:
        torch.set_num_threads(parameters.threads)
    images, unreadable = _predict_all(ensemble, parameters, source, roots, chosen)
    folder = roots[0] / "ensembles" / ensemble.name
    _take_along(earlier, folder)
    areas, found, wanted = [], {}, set(sample)
    for image_id, mask in test_masks(ensemble, roots, images, choice):
        if image_id in unreadable:
            mask[:] = 0
        found[image_id] = rle.encode(mask)
        if image_id in wanted:
            areas.append(int(mask.sum()) * FULL_AREA / mask.size)
    target = folder / "submission.csv"
    submission.write(target, sample, [found[image_id] for image_id in sample])
    _check(target, sample_file or sample, images)
    scored = honest.HonestReport.from_json(document["honest"])
    summary = honest.summary_of_areas(np.array(areas), scored)
    for warning in summary.warnings:
        print(f"warning: {warning}")
    unread = tuple(sorted(unreadable))
    files.write_json(
        folder / "test.json",
        {"summary": summary.to_json(), "unreadable": unread, "area_px": areas},
    )
    told = tuple(scores.told(ensemble, choice, scored))
    result = InferenceResult(folder, target, summary, scored, unread, told)
    report.write(folder, roots, source=source)
    return result


def _sample(parameters: InferenceParameters, source: table.Source) -> tuple[Path | None, list[str]]:
    """The sample submission, if there is one, and the image ids in its order."""
    path = source.sample if parameters.sample is None else paths.from_root(parameters.sample)
    there = source.test["image_id"].tolist()
    if not there:
        raise InputError(f"{source.root} holds no test images; {source.layout} layout")
    if path is None:
        print("no sample submission: one row for each test image, by id")
        return None, sorted(there)
    ids = table.read_sample(path)["image_id"].tolist()
    known = set(there)
    absent = [image_id for image_id in ids if image_id not in known]
    if absent:
        raise InputError(
            f"{path}: {len(absent)} of {len(ids)} images, {absent[0]} first, are not among the "
            f"{len(there)} test images in {source.root}: is the sample of another data set? "
            "-p SAMPLE PATH"
        )
    return path, ids


def _settled(ensemble: Ensemble, roots: Sequence[Path]) -> None:
    """Refuse members that are not there, or not those whose maps the rule was searched on."""
    for member in ensemble.everyone:
        folders = runs.find(roots, member.run)
        for fold in ensemble.folds:
            if fold not in folders:
                places = ", ".join(str(root) for root in roots)
                raise InputError(
                    f"{member.run} has no fold {fold} under {places}: attach the train stage's "
                    "output, or train it"
                )
            folder = folders[fold]
            searched = maps.Maps(folder.oof).meta["checkpoints"]
            same = folder.read_config()["folds_digest"] == ensemble.folds_digest
            if not same or searched != predictions.contents(folder.kept()):
                raise InputError(
                    f"{folder.path} is not what the rule of {ensemble.name} was searched on: run "
                    "the train stage to its end, then the thresholds stage"
                )


def _predict_all(
    ensemble: Ensemble,
    parameters: InferenceParameters,
    source: table.Source,
    roots: Sequence[Path],
    chosen: Engine,
) -> tuple[pd.DataFrame, set[str]]:
    """Write every member fold's test.zip; the table of test images, and those unreadable."""
    n_workers = predictions.workers(parameters.workers, chosen)
    images, unreadable, by_size = None, set(), {}
    for member in ensemble.everyone:
        folders = runs.find(roots, member.run)
        for fold in ensemble.folds:
            row = Experiment.model_validate(folders[fold].read_config()["experiment"])
            if row.size not in by_size:
                by_size[row.size] = cache.prepare(
                    source.test, source.root, row.size, paths.cache_dir(parameters.cache_dir),
                    "test", workers=parameters.workers or None, on_bad_file="blank",
                )  # fmt: skip
            prepared = by_size[row.size]
            _predict_fold(folders[fold], row, prepared, parameters, roots[0], chosen, n_workers)
            images = prepared.table
            unreadable |= {s.split(":")[0] for s in prepared.skipped}
    return images, unreadable


def _predict_fold(
    folder: FoldFolder,
    row: Experiment,
    prepared: cache.Prepared,
    parameters: InferenceParameters,
    work: Path,
    chosen: Engine,
    n_workers: int,
) -> None:
    """test.zip of one fold of one run, into the working folder, unless it lies there already."""
    if parameters.tta is not None:
        row = row.model_copy(update={"tta": parameters.tta})
        print(f"note: {folder.name} predicts with TTA {row.tta}, its rule was found with the row's")
    kept = folder.kept()
    meta = predictions.describe(folder, row, kept, checkpoints.past(kept[0]))
    meta["images_digest"] = _digest(prepared.table)
    target = runs.fold_folder(work, folder.run, folder.fold).test
    if predictions.already(target, meta, len(prepared)):
        return
    models = predictions.load_models(row, kept, chosen)
    where = (prepared, np.arange(len(prepared)), chosen, n_workers)
    predictions.write(target, models, row, *where, meta, parameters.batch_size)


def _digest(images: pd.DataFrame) -> str:
    """Which test images an archive was made of: their ids and files, as they were then."""
    listed = images[["image_id", "path"]].copy()
    listed["state"] = [_state(path) for path in listed["path"]]  # a mended file is another image
    return hashlib.sha256(listed.to_csv(index=False).encode()).hexdigest()


def _state(path: str) -> str:
    try:
        stat = Path(path).stat()
    except OSError:
        return "gone"  # and so a black image
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _take_along(earlier: Path, folder: Path) -> None:
    """Bring an earlier kernel's ensemble into the working folder, since inputs are read-only."""
    if earlier == folder:
        return
    for path in sorted(p for p in earlier.iterdir() if p.is_file()):
        with files.whole(folder / path.name) as copy:
            copy.write(path.read_bytes())


def _check(target: Path, sample: Path | Sequence[str], images: pd.DataFrame) -> None:
    """Read the submission back and refuse it where Kaggle would, or should."""
    shapes = {
        image_id: (height, width)
        for image_id, height, width in images[["image_id", "height", "width"]].itertuples(
            index=False, name=None
        )
    }
    problems = submission.validate(target, sample, shapes)
    if problems:
        raise RuntimeError(f"{target} is not valid: " + "; ".join(problems[:5]))
    print(f"{target.name}: {len(submission.read(target))} rows, checked against the sample")
