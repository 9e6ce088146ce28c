"""Test images → maps and labels of every fold and member → masks → a checked submission."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kernel_lib import checkpoints, storage
from kernel_lib.artifacts import ensemble as ensembles
from kernel_lib.artifacts import filenames, fold_run, maps
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.filenames import REPORT, SUBMISSION
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.lineage import check_lineage, stated_lineage
from kernel_lib.artifacts.test_run import TestRun
from kernel_lib.config import Experiment, InferenceParameters
from kernel_lib.data import cache, fingerprint, rle, table
from kernel_lib.data.labels import Sample, read_sample
from kernel_lib.engine import Engine, choose_engine
from kernel_lib.engine import check as check_device
from kernel_lib.errors import InputError
from kernel_lib.inference import engines, predictions, tta
from kernel_lib.inference.ensemble_maps import Predicted, check_predicted_by, test_masks
from kernel_lib.kaggle import paths, quota
from kernel_lib.notebook import Signals
from kernel_lib.parallel import launch
from kernel_lib.parallel.world import World, joined, n_ranks, own_device
from kernel_lib.postprocess import nested_cv, submission
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.units import FULL_AREA
from kernel_lib.stages import leaks, report
from kernel_lib.stages.report import ReportData


@dataclass(frozen=True)
class InferenceResult:
    """A submission, and what is to be known of it."""

    folder: Path  # the ensemble's
    submission: Path
    rles: dict[str, str]  # of every test image
    summary: nested_cv.TestSummary  # the test masks beside those out of fold
    honest: nested_cv.NestedCVReport
    unreadable: tuple[str, ...]
    notes: tuple[str, ...]  # on the images
    summary_lines: tuple[str, ...]  # the rule, weights, gate and image-level ROC AUC
    source: table.Source
    roots: tuple[Path, ...]  # where the archives lie, those of the test images first

    def __str__(self) -> str:
        lines = [f"warning: {warning}" for warning in self.summary.warnings]
        lines += [*self.summary_lines, f"submission: {self.submission}"]
        if self.submission.parent == self.folder:
            lines.append(f"report: {self.folder / REPORT}")
        lines += [f"empty mask, unreadable image: {image}" for image in self.unreadable]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def predict(parameters: InferenceParameters) -> Predicted:
    """Write the test-image predictions of every fold of every member, except those that exist.

    With several GPUs, or PROCESSES, that many processes divide the images; under torchrun this
    process is one of them. Raises InputError as `run` does.
    """
    setup = _setup(parameters)
    # Among several processes only the parent locks the folder; under torchrun none does.
    held = storage.folder_lock(setup.folder) if n_ranks() == 1 else nullcontext()
    with Signals().caught(), held:
        # Predicting needs no report, but its inputs are checked before hours are spent on it.
        report.load(setup.earlier, setup.roots)
        return _predict(setup)


def run(parameters: InferenceParameters) -> InferenceResult:
    """Predict the test images with every member, decide as the ensemble does, write and check.

    The submission has one row an image, in the sample's order and form. Raises InputError, nothing
    predicted, where a stage's output is missing or damaged, or the sample and the images do not
    belong together.
    """
    if n_ranks() > 1:
        raise InputError(
            "inference writes one submission: start it in one process, and set PROCESSES to "
            "predict with more; under torchrun use the command `predict-test` instead"
        )
    setup = _setup(parameters)
    with Signals().caught(), storage.folder_lock(setup.folder):
        # Loaded here too, since a damaged file is refused before hours are spent on predicting.
        known = report.load(setup.earlier, setup.roots)
        trained_on = _trained_on(setup)
        predicted = _predict(setup)
        rles, areas = _masks(setup, predicted)
        summary = nested_cv.compare_areas(np.array(areas), known.decision.scores.kept)
        _take_along(setup.earlier, setup.folder)
        _save(setup, predicted, rles, TestRun(summary, predicted.unreadable, areas, trained_on))
        if setup.output == setup.folder:  # another data set is not part of the training's report
            data = report.load(setup.folder, setup.roots)
            report.write(setup.folder, data, setup.source, submitted=rles)
    result = _result(setup, known, predicted, rles, summary)
    print(result)
    quota.say_hours_left(setup.roots[0])
    return result


def _result(
    setup: Setup,
    known: ReportData,
    predicted: Predicted,
    rles: dict[str, str],
    summary: nested_cv.TestSummary,
) -> InferenceResult:
    return InferenceResult(
        folder=setup.folder,
        submission=setup.output / SUBMISSION,
        rles=rles,
        summary=summary,
        honest=known.decision.scores.kept,
        unreadable=predicted.unreadable,
        notes=tuple(predicted.notes),
        summary_lines=known.summary_lines,
        source=setup.source,
        roots=tuple(setup.test_roots),
    )


def _masks(setup: Setup, predicted: Predicted) -> tuple[dict[str, str], tuple[float, ...]]:
    """Return each test image's RLE, and the areas (px of 1024²) of those that the sample names."""
    unreadable, wanted = frozenset(predicted.unreadable), frozenset(setup.sample)
    rles, areas = {}, []
    masks = test_masks(setup.ensemble, setup.test_roots, predicted.images, setup.choice)
    for image_id, mask in masks:
        if image_id in unreadable:
            mask[:] = 0
        rles[image_id] = rle.encode(mask)
        if image_id in wanted:
            areas.append(int(mask.sum()) * FULL_AREA / mask.size)
    return rles, tuple(areas)


def _save(setup: Setup, predicted: Predicted, rles: Mapping[str, str], test: TestRun) -> None:
    """Write the submission, checked, and what is to be known of it."""
    with storage.replace_files(setup.output) as staging:
        written = staging / SUBMISSION
        submission.write(written, setup.form or setup.sample, [rles[i] for i in setup.sample])
        _check(written, setup, predicted.images)
        test.save(staging)


def _trained_on(setup: Setup) -> tuple[str, ...]:
    """A line for each test image that a member, or what it descends from, was trained on."""
    folders = [
        fold_run.find(setup.roots, member.run)[fold]
        for member in setup.ensemble.all_members
        for fold in setup.ensemble.folds
    ]
    lineages = [stated_lineage(maps.Maps(f.oof).meta, f.oof) for f in folders]
    images = prepared_images(folders[0].read_config().experiment.size, setup)
    test = leaks.ImageSet(images.table["image_id"].tolist(), fingerprint.codes(images))
    lines = leaks.seen_by(test, lineages)
    if lines:
        print(f"warning: {leaks.warning(lines)}")
    if not all(x.known and all(code for _, code in x.pairs) for x in lineages):
        print(
            "note: of some images that the members were trained on no fingerprint is known: a copy "
            "of one among the test images, under another id, is not detected"
        )
    return tuple(lines)


@dataclass(frozen=True)
class Setup:
    """Everything that a call of the stage works on, found and checked to fit together."""

    parameters: InferenceParameters
    roots: Sequence[Path]  # the working folder first
    earlier: Path  # the ensemble's folder, perhaps another kernel's output
    ensemble: Ensemble
    choice: Choice
    source: table.Source
    form: Sample | None  # how the submission is written
    sample: list[str]  # image ids, in the sample's order
    # Prints each line once.
    say: Callable[[str], None] = field(default_factory=lambda: lru_cache(print))

    @property
    def folder(self) -> Path:
        """The ensemble's folder in the working folder."""
        return self.roots[0] / filenames.ENSEMBLES / self.ensemble.name

    @property
    def output(self) -> Path:
        """The folder of the submission: the ensemble's, or that of OUTPUT in it."""
        name = self.parameters.output
        return self.folder if name is None else self.folder / "outputs" / name

    @property
    def test_roots(self) -> Sequence[Path]:
        """The roots to read test maps from; the first is written to."""
        return self.roots if self.parameters.output is None else [self.output, *self.roots]


def check(parameters: InferenceParameters) -> None:
    """Refuse unknown TTA views, devices and process counts before any input is looked for."""
    if parameters.tta is not None:
        tta.views(parameters.tta)
    launch.check(parameters.processes, parameters.device)
    check_device(parameters.device, parameters.precision)
    engines.check(parameters)


def _setup(parameters: InferenceParameters) -> Setup:
    check(parameters)
    work = paths.work_dir(parameters.work_dir)
    storage.check_writable(work, "WORK_DIR")
    storage.check_writable(paths.cache_dir(parameters.cache_dir), "CACHE_DIR")
    roots = paths.artefact_roots(work)
    earlier = ensembles.find(roots, parameters.ensemble)
    decision = Decision.load(earlier)
    given = None if parameters.sample is None else paths.from_root(parameters.sample)
    data_dir = paths.data_dir(parameters.data_dir)
    source = table.discover(data_dir, for_inference=True, sample=given)
    sample = source.test["image_id"].tolist()
    if not sample:
        raise InputError(
            f"{source.root} holds no test images; {source.layout} layout: -p SAMPLE FILE names them"
        )
    if n_ranks() == 1:
        for problem in source.problems:
            print(f"note: {problem}")
    form = None if source.sample is None else read_sample(source.sample)
    if form is None:
        print("no sample submission: one row for each test image, by id")
    check_members(decision, roots)
    return Setup(
        parameters, roots, earlier, decision.ensemble, decision.choice, source, form, sample
    )


def check_members(decision: Decision, roots: Sequence[Path]) -> None:
    """Refuse members that are missing or that changed since the rule was searched on them."""
    ensemble = decision.ensemble
    check_predicted_by(decision, roots)
    for member in ensemble.all_members:
        folders = fold_run.find(roots, member.run)
        for fold in ensemble.folds:
            if fold not in folders:
                places = ", ".join(str(root) for root in roots)
                raise InputError(
                    f"{member.run} has no fold {fold} under {places}: attach the train stage's "
                    "output, or train it"
                )
            folder = folders[fold]
            meta = maps.Maps(folder.oof).meta
            folder.require_kept(meta["checkpoints"], ensemble.name)
            same = folder.read_config().folds_digest == ensemble.folds_digest
            if not same or meta["checkpoints"] != predictions.digests(folder.kept()):
                raise InputError(
                    f"{folder.path} changed since the rule of {ensemble.name} was searched: run "
                    "the train stage to its end, then the thresholds stage"
                )
            past_of_kept = checkpoints.lineage(folder.kept()[0])
            check_lineage(meta, folder.oof, past_of_kept.digest())


def _predict(setup: Setup) -> Predicted:
    return in_processes("predict-test", setup.parameters, partial(predict_all, setup))


def in_processes(
    command: str, parameters: InferenceParameters, share: Callable[[Engine, World], Predicted]
) -> Predicted:
    """Predict with one process per GPU, or PROCESSES processes, each of which runs `command`.

    `share(engine, world)` writes this process's part and skips archives that are complete.
    """
    n = launch.n_processes(parameters.processes, parameters.device)
    if n > 1:
        launch.run(command, parameters, n)  # `share` below then finds every archive complete
    engine = choose_engine(own_device(parameters.device), parameters.precision)
    if parameters.threads is not None:
        torch.set_num_threads(parameters.threads)
    with joined(engine.device) as world:
        return share(engine, world)


def predict_all(setup: Setup, engine: Engine, world: World) -> Predicted:
    """Write every member fold's test.zip; the table of test images, and those unreadable."""
    for member in setup.ensemble.all_members:
        folder = fold_run.find(setup.roots, member.run)[setup.ensemble.folds[0]]
        experiment = folder.read_config().experiment
        predictions.check_shared_memory(setup.parameters, experiment, engine)
    by_size: dict[int, cache.Prepared] = {}
    for member in setup.ensemble.all_members:
        folders = fold_run.find(setup.roots, member.run)
        for fold in setup.ensemble.folds:
            experiment = folders[fold].read_config().experiment
            if experiment.size not in by_size:
                prepare = partial(prepared_images, experiment.size, setup)
                by_size[experiment.size] = world.from_first(prepare)
            _predict_fold(folders[fold], experiment, by_size[experiment.size], setup, engine, world)
    skipped = {image.image_id: image for part in by_size.values() for image in part.skipped}
    last = by_size[experiment.size]
    return Predicted(last.table, list(skipped.values()), last.notes)


def prepared_images(size: int, setup: Setup) -> cache.Prepared:
    source, parameters = setup.source, setup.parameters
    return cache.prepare(
        source.test, source.root, size, paths.cache_dir(parameters.cache_dir),
        "test", workers=parameters.workers or None, on_bad_file="blank",
    )  # fmt: skip


def _predict_fold(
    folder: FoldRun,
    experiment: Experiment,
    prepared: cache.Prepared,
    setup: Setup,
    engine: Engine,
    world: World,
) -> None:
    """test.zip of one fold of one run, into the working folder, unless it lies there already."""
    parameters = setup.parameters
    if parameters.tta is not None:
        experiment = experiment.model_copy(update={"tta": parameters.tta})
        print(
            f"note: {folder.name} predicts with TTA {experiment.tta}, but its rule was chosen with "
            "the TTA of its experiment"
        )
    kept = folder.kept()
    meta = predictions.describe(folder, experiment, kept, checkpoints.lineage(kept[0]))
    meta["images_digest"] = _digest(prepared)
    target = fold_run.fold_folder(setup.test_roots[0], folder.run, folder.fold).test
    if world.from_first(partial(predictions.is_written, target, meta, len(prepared))):
        return
    models = predictions.load_models(experiment, kept, engine)
    models, line = engines.computed(models, experiment, parameters, engine, len(prepared))
    setup.say(line)
    n_workers = predictions.workers(parameters.workers, engine)
    rows = np.arange(len(prepared))
    images = predictions.Images(prepared, rows, engine, n_workers, parameters.batch_size)
    predictions.write(target, models, experiment, images, meta, world=world)


def _digest(prepared: cache.Prepared) -> str:
    """Return a digest of the test images: ids, paths, file sizes and times, and reading notes."""
    listed = prepared.table[["image_id", "path"]].copy()
    listed["state"] = [_state(path) for path in listed["path"]]  # a replaced file counts as new
    text = listed.to_csv(index=False) + "\n".join(prepared.notes)
    return hashlib.sha256(text.encode()).hexdigest()


def _state(path: str) -> str:
    try:
        stat = Path(path).stat()
    except OSError:
        return "gone"  # the file is missing and is predicted as a black image
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _take_along(earlier: Path, folder: Path) -> None:
    """Bring an earlier kernel's ensemble into the working folder, since inputs are read-only."""
    if earlier == folder:
        return
    for path in sorted(p for p in earlier.iterdir() if p.is_file()):
        with storage.atomic_write(folder / path.name) as copy:
            copy.write(path.read_bytes())


def _check(target: Path, setup: Setup, images: pd.DataFrame) -> None:
    """Read the submission back and refuse it where Kaggle would, or should."""
    written = setup.form.image_id if setup.form else setup.sample
    by_id = images.set_index("image_id")[["height", "width"]].loc[setup.sample]
    shapes = dict(zip(written, by_id.itertuples(index=False, name=None), strict=True))
    problems = submission.validate(target, setup.form or setup.sample, shapes)
    if problems:
        raise RuntimeError(f"{target} is not valid: " + "; ".join(problems[:5]))
    print(f"{target.name}: {len(submission.read(target))} rows, checked against the sample")
