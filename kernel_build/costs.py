"""Costs of folds, runs and plans on Kaggle, and advice where they are too high.

All follows from measured seconds: of an epoch's training, and of one pass over the images that a
fold holds out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kernel_build import ensemble_costs, graph
from kernel_build.accelerators import Accelerator
from kernel_build.account import FULL_WEEK, Week
from kernel_build.ensemble_costs import MAP_BYTES_PER_PX, TEST_IMAGES, TRAIN_IMAGES, Runs, StageCost
from kernel_build.graph import Node, PlannedEnsemble
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.filenames import LOG
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.inference import tta
from kernel_lib.kaggle import quota
from kernel_lib.plan import TrainPlan

# Assumed, and stated in the output.
NIH_IMAGES = 112_120
LOOK_SHARE = 1 / 3  # of a training step, for a step that only predicts
START_HOURS = 1 / 6  # a session's start: imports, and the images decoded again
MARGIN_HOURS = 0.5  # of a session, left at its end
SLACK = 1.1  # sessions are counted for this many times the estimate: a chain cannot grow later


@dataclass(frozen=True)
class Measured:
    """Seconds of an epoch's training, and of one pass over a fold's held-out images."""

    train: float
    look: float
    scaled: bool = False  # from another experiment's, by pixels and images; or another GPU's
    gpu_mb: float | None = None  # most memory of one process on its GPU; None: unknown

    def times(self, factor: float) -> Measured:
        return Measured(self.train * factor, self.look * factor, scaled=True)

    def on(self, accelerator: Accelerator, measured_on: Accelerator) -> Measured:
        """Return the seconds by the speed classes of both, and the memory by their GPUs."""
        if accelerator == measured_on:
            return self
        there = self.times(measured_on.speed / accelerator.speed)
        share = measured_on.gpus / accelerator.gpus  # of a batch, which the GPUs divide
        return replace(there, gpu_mb=self.gpu_mb and self.gpu_mb * share)


@dataclass(frozen=True)
class Session:
    """The hours of a session; the limits are Kaggle's unless given."""

    hours: float = quota.SESSION_HOURS
    margin: float = MARGIN_HOURS
    start: float = START_HOURS

    @property
    def max_hours(self) -> float:
        """MAX_HOURS of a kernel: it stops itself before Kaggle does."""
        return self.hours - self.margin

    @property
    def usable(self) -> float:
        """Hours of a session in which it trains or predicts."""
        return self.max_hours - self.start

    @classmethod
    def of(cls, hours: float) -> Session:
        """Return a session of so many hours; InputError where they leave no time to work."""
        session = cls(hours)
        if not 0 < session.usable < float("inf"):
            raise InputError(f"--session-hours {hours:g} leaves no hours to work; give over 1")
        return session


@dataclass(frozen=True)
class Sizes:
    """Bytes on the disk of a model's weights, and of last.pt."""

    model: int
    last: int


@dataclass(frozen=True)
class FoldCost:
    """The cost of one fold of one run."""

    run: str
    experiment: Experiment
    measured: Measured
    looks: int  # passes over an image by its predictions: views × kept checkpoints
    train_hours: float
    predict_hours: float
    sessions: tuple[float, ...]  # GPU hours of each, its start included
    bytes: int  # left in the working folder

    @property
    def hours(self) -> float:
        return self.train_hours + self.predict_hours

    @property
    def gpu_hours(self) -> float:
        return sum(self.sessions)


@dataclass(frozen=True)
class Estimate:
    """The cost of a plan: each experiment's fold, the kernels, the weeks, and advice."""

    ensemble: PlannedEnsemble
    costs: tuple[FoldCost, ...]
    nodes: tuple[Node, ...]
    weeks: tuple[tuple[Node, ...], ...]
    advice: tuple[str, ...]
    later: Mapping[str, StageCost]  # by stage: thresholds, inference
    week: Week = FULL_WEEK

    @property
    def gpu_hours(self) -> float:
        return sum(node.hours for node in self.nodes if node.gpu)


def from_log(path: Path, size: int) -> Measured:
    """Return the median epoch of a run's log, for images of `size` px.

    It is scaled by pixels where the run, by the configuration beside its log, had another size.

    Raises: InputError for a file that is not a log.
    """
    try:
        lines = fold_run.read_log(path)
        seconds = [(line["seconds"], line["val_seconds"]) for line in lines]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a run's {LOG}") from None
    except (InputError, KeyError) as error:
        raise InputError(f"{path} is not the log of a training ({error!r})") from None
    if not seconds:
        raise InputError(f"{path} holds no epoch; let one end first")
    peaks = [line["gpu_memory_mb"] for line in lines if "gpu_memory_mb" in line]
    medians = (statistics.median(column) for column in zip(*seconds, strict=True))
    measured = Measured(*medians, gpu_mb=max(peaks, default=None))
    try:
        ran = FoldRun(path.parent.parent.name, 0, path.parent).read_config().experiment.size
    except InputError:  # without a configuration: the planned size
        ran = size
    return measured if ran == size else measured.times((size / ran) ** 2)


def from_seconds(seconds: float, folds: int) -> Measured:
    """Divide an epoch's seconds: predicting an image costs a third of training on it."""
    held = LOOK_SHARE / (folds - 1)
    return Measured(seconds / (1 + held), seconds * held / (1 + held))


def fold_cost(
    plan: TrainPlan, measured: Measured, session: Session, sizes: Sizes, folds: int
) -> FoldCost:
    """Return the cost of one fold with all its epochs; patience may end it before."""
    experiment, views = plan.experiment, len(tta.views(plan.experiment.tta))
    train = experiment.epochs * (measured.train + measured.look) / 3600
    looks = views * (experiment.keep + 1)
    predict = measured.look * looks / 3600
    hours = train + predict
    count = quota.sessions_for(SLACK * hours, session.usable)
    parts = [session.start + min(session.usable, max(0.0, hours - done * session.usable))
             for done in range(count)]  # fmt: skip
    maps = 2 * MAP_BYTES_PER_PX * experiment.size**2 * TRAIN_IMAGES / folds
    n_bytes = sizes.last + (experiment.keep + 1) * sizes.model + round(maps)
    looks_kept = views * experiment.keep
    return FoldCost(
        plan.run, experiment, measured, looks_kept, train, predict, tuple(parts), n_bytes
    )


def estimate(
    ensemble: PlannedEnsemble,
    measured: Mapping[str, Measured],
    session: Session,
    sizes: Mapping[str, Sizes],
    slug: str | None = None,
    week: Week = FULL_WEEK,
) -> Estimate:
    """Return the plan's cost.

    Args:
        measured: By experiment, at least of every member; others are scaled by pixels and images.
        sizes: By experiment.
        slug: The beginning of all kernels' names; None: that of their run, or of the recipe.
        week: What the account's quota has left.
    """
    by_name = {
        name: fold_cost(
            plan, _measured(plan, ensemble, measured), session, sizes[name], ensemble.folds
        )
        for name, plan in ensemble.experiments.items()
    }
    members = [by_name[plan.experiment_name] for plan in ensemble.members]
    gates = [by_name[plan.experiment_name] for plan in ensemble.gates]
    predicting = sum(cost.measured.look * cost.looks for cost in (*members, *gates)) / len(members)
    predicting *= ensemble.folds**2 * TEST_IMAGES / TRAIN_IMAGES / 3600
    side = (sum(cost.experiment.size**2 for cost in members) / len(members)) ** 0.5
    runs = Runs(len(members), ensemble.folds, side, ensemble.thresholds)
    cost_of = {
        "thresholds": lambda some: ensemble_costs.thresholds(some, session.start),
        "inference": lambda some: ensemble_costs.inference(some, session.start, predicting),
    }
    later = {stage: cost(runs) for stage, cost in cost_of.items()}
    inference = later["inference"].hours
    hours = {name: cost.sessions for name, cost in by_name.items()}
    nodes = graph.nodes(ensemble, hours, inference, session.max_hours, slug)
    advice = [line for cost in by_name.values() for line in _fold_advice(cost, session)]
    fits = max(node.hours for node in nodes) <= week.total
    by_week = graph.weeks(nodes, week.total, week.left) if fits else []
    for stage, cost in cost_of.items():
        advice += ensemble_costs.advice(stage, cost, runs, session.max_hours, ensemble.how_to_plan)
    advice += _week_advice(ensemble, by_name, inference, week.total)
    return Estimate(
        ensemble, tuple(by_name.values()), tuple(nodes), tuple(map(tuple, by_week)), tuple(advice),
        later, week,
    )  # fmt: skip


def _measured(
    plan: TrainPlan, ensemble: PlannedEnsemble, measured: Mapping[str, Measured]
) -> Measured:
    """Return the seconds of a run's experiment, if need be scaled from a member's that needs it.

    Of several such members it is the one whose size is nearest.
    """
    name, size = plan.experiment_name, plan.experiment.size
    if name in measured:
        return measured[name]
    needing = (c[-1] for c in ensemble.chains if name in {p.experiment_name for p in c})
    member = min(needing, key=lambda member: abs(math.log(member.experiment.size / size)))
    factor = (size / member.experiment.size) ** 2
    images = {"competition": TRAIN_IMAGES, "nih": NIH_IMAGES}
    factor *= images[plan.experiment.images] / images[member.experiment.images]
    return measured[member.experiment_name].times(factor)


def _fold_advice(cost: FoldCost, session: Session) -> list[str]:
    """Return what to change where a fold does not fit a session, or cannot be cut to fit."""
    experiment, advice = cost.experiment, []
    if len(cost.sessions) > 1:
        epoch = (cost.measured.train + cost.measured.look) / 3600
        epochs = int((session.usable / SLACK - cost.predict_hours) / epoch)
        size = int((experiment.size**2 * session.usable / SLACK / cost.hours) ** 0.5) // 32 * 32
        ways = [f"-p EPOCHS {epochs}"] * (epochs > 0) + [f"-p SIZE {size}"] * (size >= 32)
        advice.append(
            f"one fold of {experiment.name} takes {cost.hours:.1f} h and a session leaves "
            f"{session.usable:.1f}, a tenth of it to spare: a chain of {len(cost.sessions)} "
            f"kernels a fold; one would do with {' or '.join(ways) or 'a faster experiment'}"
        )
    # The training's clock asks for twice the time of what cannot be cut.
    uncut = {"scoring": cost.measured.look, "predicting": cost.measured.look * cost.looks}
    for what, seconds in uncut.items():
        if 2 * seconds / 3600 > session.usable:
            advice.append(
                f"{what} a fold of {experiment.name} takes {seconds / 3600:.1f} h in one go, and a "
                f"session of {session.usable:.1f} usable hours holds half of its length: more "
                "folds, a smaller SIZE" + (", KEEP or TTA" if what == "predicting" else "")
            )
    batches = TRAIN_IMAGES / experiment.batch_size / experiment.accumulate
    if 2 * cost.measured.train / max(batches, 1) / 3600 > session.usable:
        advice.append(f"one optimiser step of {experiment.name} fills a session: lower ACCUMULATE")
    if cost.bytes > quota.OUTPUT_BYTES:
        advice.append(
            f"a fold of {experiment.name} leaves {cost.bytes / 1e9:.1f} GB, the working folder "
            f"holds {quota.OUTPUT_BYTES / 1e9:.0f}: lower KEEP {experiment.keep} or SIZE"
        )
    return advice


def _week_advice(
    ensemble: PlannedEnsemble, costs: Mapping[str, FoldCost], inference: float, week: float
) -> list[str]:
    """Return what to change where the plan does not fit a week of so many hours."""
    n = len(ensemble.members)

    def hours(first: int) -> float:
        """Return the GPU hours of the first members alone."""
        runs = ensemble.first(first).runs
        fold = sum(costs[plan.experiment_name].gpu_hours for plan in runs)
        return fold * ensemble.folds + inference * first / n

    total = hours(n)
    if total <= week:
        return []
    fold = sum(costs[plan.experiment_name].gpu_hours for plan in ensemble.chains[0])
    fits = []
    if fewer := max((k for k in range(1, n) if hours(k) <= week), default=0):
        fits.append(ensemble.how_to_plan(fewer))
    elif (some := int(week / fold)) >= 1:
        of = "the first member" if ensemble.recipe else "one seed"
        fits.append(f"{some} of {ensemble.folds} folds of {of}")
    if not ensemble.recipe:  # whose experiments are fixed
        # With fewer than a third of the epochs, or half the side, it is another experiment.
        experiment = ensemble.members[0].experiment
        epochs = int(experiment.epochs * week / total)
        if 3 * epochs >= experiment.epochs:
            fits.append(f"about -p EPOCHS {epochs}")
        size = int((experiment.size**2 * week / total) ** 0.5) // 32 * 32
        if 2 * size >= experiment.size:
            fits.append(f"about -p SIZE {size}")
    none = (
        f"no fold, which takes {fold:.0f} h: a smaller SIZE, fewer EPOCHS, or a faster experiment"
    )
    return [
        f"{total:.0f} GPU hours are more than a week's {week:g}; one week holds "
        f"{', or '.join(fits) or none}"
    ]
