"""Prepare, train and predict the held-out images, fold by fold."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kernel_lib import storage
from kernel_lib.artifacts import filenames, fold_run
from kernel_lib.artifacts.fold_run import FoldRun, LogLine
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment, TrainParameters
from kernel_lib.data import augment, dataset
from kernel_lib.engine import Engine, choose_engine
from kernel_lib.engine import check as check_device
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference import predictions, tta
from kernel_lib.kaggle import paths, quota
from kernel_lib.models import losses, networks
from kernel_lib.notebook import RESUME_HINT, Signals
from kernel_lib.parallel import launch
from kernel_lib.parallel.world import World, joined, n_ranks, own_device
from kernel_lib.plan import TrainPlan, plan_training
from kernel_lib.stages import initial_weights, preparation
from kernel_lib.training import sampling, schedule, validation
from kernel_lib.training.job import Clock, Job, SharedClock
from kernel_lib.training.loop import Training


@dataclass(frozen=True)
class TrainResult:
    """The result of a call of the stage."""

    run: str
    work: Path
    finished: tuple[int, ...]  # folds trained to their end and predicted
    wanted: tuple[int, ...]

    @property
    def complete(self) -> bool:
        return self.finished == self.wanted

    def to_json(self) -> dict:
        """Return the part of the result that rank 0 reports to the process that launched all."""
        return {"finished": self.finished}

    def logs(self) -> dict[str, list[LogLine]]:
        """Return the log lines of each fold, by run and fold."""
        folders = fold_run.find([self.work], self.run).values()
        return {folder.name: folder.read_log() for folder in folders}

    def __str__(self) -> str:
        folder = self.work / filenames.RUNS / self.run
        if self.complete:
            return f"{self.run}: folds {list(self.finished)} trained and predicted in {folder}"
        return (
            f"{self.run}: folds {list(self.finished)} of {list(self.wanted)} are done, unfinished "
            f"ones are saved as far as they got in {folder}; {RESUME_HINT}"
        )


@dataclass(frozen=True)
class _Session:
    """Folders, device, clock, processes and signals that one call of the stage trains with."""

    roots: Sequence[Path]  # the working folder first
    engine: Engine
    clock: Clock
    world: World  # the processes that train together; only the first writes files
    signals: Signals


def run(
    parameters: TrainParameters, experiments: Mapping[str, Experiment] = EXPERIMENTS
) -> TrainResult:
    """Train the fold or folds asked for and predict their held-out images.

    `experiments` are those that EXPERIMENT, or a user's own JSON, may name. Training may be stopped
    at any moment (SIGTERM and Ctrl-C save first); the same call resumes. With MAX_HOURS it saves
    and stops before the limit. WITH_PARENTS first trains the runs whose weights this one starts
    from, and its gating
    classifier. With several GPUs, or PROCESSES, it starts that many processes and waits for them;
    under torchrun it is one of several processes, which must see the same working folder and cache.

    Raises: InputError, before any data is read, where a name is unknown.
    """
    clock = Clock(quota.max_hours(parameters.max_hours))
    chain, wanted = resolve(parameters, experiments)
    plan = chain[-1]
    parameters = plan.parameters
    work = paths.work_dir(parameters.work_dir)
    storage.check_writable(work, "WORK_DIR")
    storage.check_writable(paths.cache_dir(parameters.cache_dir), "CACHE_DIR")
    roots = paths.artefact_roots(work)
    for link in chain:
        check(link)
    n = launch.n_processes(parameters.processes, parameters.device)
    if n > 1:
        with Signals().caught():
            result = launch.run("train", parameters, n)
        return TrainResult(plan.run, work, tuple(result["finished"]), tuple(wanted))
    engine = choose_engine(own_device(parameters.device), parameters.precision)
    for link in chain:
        experiment = link.experiment
        n_workers = predictions.workers(parameters.workers, engine)
        # Images and masks; to score held-out images, twice as many images.
        dataset.check_shared_memory(n_workers, 2 * experiment.batch_size, experiment.size)
    if parameters.threads is not None:
        torch.set_num_threads(parameters.threads)
    with Signals(n_ranks() > 1).caught() as signals, joined(engine.device) as world:
        session = _Session(roots, engine, SharedClock(world, clock), world, signals)
        return _train_all(chain, wanted, session)


def resolve(
    parameters: TrainParameters, experiments: Mapping[str, Experiment] = EXPERIMENTS
) -> tuple[tuple[TrainPlan, ...], Sequence[int]]:
    """Return the runs to train, parents first and the requested run last, and the folds of each.

    Touches neither data nor device: `build_kernel.py` calls it too, to refuse early what the kernel
    would refuse.

    Raises: InputError for an unknown experiment, impossible numbers, or an unknown device.
    """
    given = paths.experiment_text(parameters.experiment)
    plan = plan_training(parameters.model_copy(update={"experiment": given}), experiments)
    wanted = range(parameters.n_folds) if parameters.fold is None else [parameters.fold]
    if max(wanted) >= parameters.n_folds:
        raise InputError(
            f"FOLD {parameters.fold} is not below N_FOLDS {parameters.n_folds}; folds count from 0"
        )
    launch.check(parameters.processes, parameters.device)
    check_device(parameters.device, parameters.precision)
    return ((*plan.needs(), plan) if parameters.with_parents else (plan,)), wanted


def _train_all(chain: Sequence[TrainPlan], wanted: Sequence[int], session: _Session) -> TrainResult:
    """Train the runs of a chain in order; return the result of the last."""
    in_chain, requested = {plan.run for plan in chain}, chain[-1]
    for plan in chain:
        check_start = partial(initial_weights.check, plan, wanted, session.roots, in_chain)
        session.world.from_first(check_start)
    for plan in chain:
        result = _train(plan, wanted, session)
        print(result)
        quota.say_hours_left(session.roots[0])
        if not result.complete:
            # Where a parent is unfinished, no fold of the requested run is finished.
            finished = result.finished if plan is requested else ()
            return replace(result, run=requested.run, finished=finished)
    return result


def _train(plan: TrainPlan, wanted: Sequence[int], session: _Session) -> TrainResult:
    """Train the wanted folds of one run in order."""
    for note in plan.notes:
        print(note)
    print(f"run {plan.run}: {plan.experiment.says or plan.experiment.name}")
    images = session.world.from_first(lambda: preparation.training_images(plan, session.roots))
    finished = []
    for fold in wanted:
        if not _one_fold(fold, plan, images, session):
            break
        finished.append(fold)
    return TrainResult(plan.run, session.roots[0], tuple(finished), tuple(wanted))


def check(plan: TrainPlan) -> None:
    """Refuse unknown names, options and sizes in an experiment before time is spent on its data."""
    experiment = plan.experiment
    initial_weights.check_weights_are(plan)
    losses.check(experiment)
    augment.Augment(experiment.augment)
    sampling.check(experiment.sampling, experiment.sampling_options)
    schedule.check(experiment)
    model = networks.build(experiment)  # which refuses an encoder that does not fit
    sizes = {
        view.size_of((experiment.size, experiment.size))[0] for view in tta.views(experiment.tta)
    }
    networks.check_sizes(model, experiment, sizes)
    networks.parameter_groups(model, experiment)  # which refuses a layer_decay that does not fit
    if model.note:
        print(model.note)
    validation.check(experiment)


def _one_fold(
    fold: int,
    plan: TrainPlan,
    images: preparation.TrainingSet,
    session: _Session,
) -> bool:
    """Train one fold and predict its held-out images; return False if MAX_HOURS stopped it."""
    truth, experiment = images.truth, plan.experiment
    held = truth["fold"].to_numpy() == fold
    if not held.any() or held.all():
        raise InputError(f"fold {fold} leaves nothing to train on or to hold out; see folds.csv")
    if (~held).sum() < (min_images := networks.min_batch(experiment)):
        raise InputError(
            f"fold {fold} trains on one image, and a batch norm of {experiment.network} at "
            f"{experiment.size} px needs {min_images}: give more images, or "
            "-p FREEZE_BATCH_NORM True"
        )
    for verb, rows in (("trains on", ~held), ("holds out", held)):
        if not truth["positive"].to_numpy()[rows].any():
            print(
                f"note: fold {fold} {verb} no image with a pneumothorax: its scores only measure "
                "how well images without one are recognised"
            )
    folder = fold_run.fold_folder(session.roots[0], plan.run, fold)
    with ExitStack() as locks:  # the first rank's lock; if it has none, every rank raises
        session.world.from_first(lambda: locks.enter_context(storage.folder_lock(folder.path)))
        return _in_folder(folder, plan, images, held, session)


def _in_folder(
    folder: FoldRun,
    plan: TrainPlan,
    images: preparation.TrainingSet,
    held: np.ndarray,
    session: _Session,
) -> bool:
    """Train and predict the fold in its folder, which this process has locked."""
    session.world.from_first(lambda: _prepare_folder(folder, plan, images, session.roots))
    model, lineage = session.world.after_first(
        lambda: _initial_network(folder, plan, images, held, session)
    )
    job = Job(
        folder=folder,
        plan=plan,
        prepared=images.prepared,
        train_rows=(~held).nonzero()[0],
        held_rows=held.nonzero()[0],
        truth=images.truth,
        lineage=lineage,
        engine=session.engine,
        workers=predictions.workers(plan.parameters.workers, session.engine),
        world=session.world,
    )
    training = Training(job, model, session.clock, session.signals)
    if not training.run():
        return False
    kept = training.position.kept
    epochs = ", ".join(str(epoch) for epoch in sorted(best["epoch"] for best in kept))
    monitor = training.experiment.monitor
    best = f", best {monitor} {kept[0]['value']:.4f}" if validation.selects(monitor) else ""
    print(f"{folder.name}: ended after {training.position.ended}; kept epochs: {epochs}{best}")
    return _predict_held_out(job, training, session.clock)


def _prepare_folder(
    folder: FoldRun,
    plan: TrainPlan,
    images: preparation.TrainingSet,
    roots: Sequence[Path],
) -> None:
    _copy_earlier(folder, roots)
    fold_run.write_or_check_config(folder, plan, images.folds_digest)


def _initial_network(
    folder: FoldRun,
    plan: TrainPlan,
    images: preparation.TrainingSet,
    held: np.ndarray,
    session: _Session,
) -> tuple[nn.Module, Lineage]:
    try:
        model, lineage = initial_weights.network(folder, plan, images, held, session.roots)
        if session.world.first:
            fold_run.record_lineage(folder, lineage)
        return model, lineage
    except InputError:
        # Training has not begun: without config.json no later stage finds this fold.
        if session.world.first and not folder.last.exists():
            folder.config.unlink()
        raise


def _predict_held_out(job: Job, training: Training, clock: Clock) -> bool:
    """Write oof.zip by the kept checkpoints and oof_last.zip by the last checkpoint."""
    kept = [job.folder.best(k["epoch"]) for k in training.position.kept]
    for target, sources, lineage in (
        (job.folder.oof, sorted(kept), training.kept_lineage),
        (job.folder.oof_last, None, training.last_lineage),
    ):
        # From the first rank, which has written the checkpoints that the description hashes.
        meta = job.world.from_first(
            partial(
                predictions.describe,
                job.folder, training.experiment, sources or [job.folder.last], lineage,
            )
        )  # fmt: skip
        if job.world.from_first(partial(predictions.is_written, target, meta, len(job.held_rows))):
            continue
        n_passes = len(tta.views(training.experiment.tta)) * len(sources or [1])
        needed = training.position.history[-1]["val_seconds"] * n_passes
        if not clock.allows_uninterrupted(needed, "predicting the held-out images"):
            return False
        models = (
            predictions.load_models(training.experiment, sources, job.engine)
            if sources
            else [training.ema.model]
        )
        images = predictions.Images(job.prepared, job.held_rows, job.engine, job.workers)
        predictions.write(
            target, models, training.experiment, images, meta, world=job.world, held_out=True
        )
    return True


def _copy_earlier(folder: FoldRun, roots: Sequence[Path]) -> None:
    """Copy the fold from another kernel's read-only output, to resume it here."""
    if folder.config.exists():
        return
    earlier = fold_run.find(roots[1:], folder.run).get(folder.fold)
    if earlier is not None:
        print(f"resuming from {earlier.path}")
        # The folder has no config.json, so at most an old test.zip, which is replaced too.
        with storage.atomic_folder(folder.path) as staging:
            # copyfile leaves out the modes: the input is read-only, the copy is to be written.
            for path in sorted(p for p in earlier.path.iterdir() if p.is_file()):
                shutil.copyfile(path, staging / path.name)
