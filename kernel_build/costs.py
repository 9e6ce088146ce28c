"""Costs of folds, runs and plans on Kaggle, and advice where they are too high.

All follows from measured seconds: of an epoch's training, and of one pass over the images that a
fold holds out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernel_build import ensemble_costs, graph
from kernel_build.accelerators import Accelerator
from kernel_build.account import FULL_WEEK, Week
from kernel_build.ensemble_costs import MAP_BYTES_PER_PX, TEST_IMAGES, TRAIN_IMAGES, Runs, StageCost
from kernel_build.graph import Node
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.filenames import LOG
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.config import Experiment, ThresholdsParameters
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

    costs: tuple[FoldCost, ...]
    seeds: tuple[int, ...]
    folds: int
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
    plans: Mapping[int, Sequence[TrainPlan]],
    folds: int,
    measured: Mapping[str, Measured],
    session: Session,
    sizes: Mapping[str, Sizes],
    slug: str | None = None,
    week: Week = FULL_WEEK,
    decided: ThresholdsParameters = graph.BY_DEFAULT,
) -> Estimate:
    """Return the plan's cost.

    Args:
        plans: By seed the runs to train, the wanted one last.
        measured: By experiment; others are the wanted one's, scaled by pixels and images.
        sizes: By experiment.
        slug: The beginning of all kernels' names; None: that of their run.
        week: What the account's quota has left.
        decided: How the seeds are combined.
    """
    chain = next(iter(plans.values()))
    wanted = chain[-1]
    costs = tuple(
        fold_cost(
            plan, _measured(plan, wanted, measured), session,
            sizes[plan.experiment_name], folds,
        )
        for plan in chain
    )  # fmt: skip
    own = costs[-1]
    a_look = own.measured.look * folds * TEST_IMAGES / TRAIN_IMAGES / 3600
    runs = Runs(len(plans), folds, own.experiment.size, decided)
    cost_of = {
        "thresholds": lambda some: ensemble_costs.thresholds(some, session.start),
        "inference": lambda some: ensemble_costs.inference(
            some, session.start, a_look * own.looks * folds
        ),
    }
    later = {stage: cost(runs) for stage, cost in cost_of.items()}
    inference = later["inference"].hours
    hours = {plan.experiment_name: cost.sessions for plan, cost in zip(chain, costs, strict=True)}
    nodes = graph.nodes(plans, folds, hours, inference, session.max_hours, slug, decided)
    advice = [line for cost in costs for line in _fold_advice(cost, session)]
    fits = max(node.hours for node in nodes) <= week.total
    by_week = graph.weeks(nodes, week.total, week.left) if fits else []
    for stage, cost in cost_of.items():
        advice += ensemble_costs.advice(stage, cost, runs, session.max_hours)
    advice += _week_advice(costs, len(plans), folds, inference, week.total)
    return Estimate(
        costs, tuple(plans), folds, tuple(nodes), tuple(map(tuple, by_week)), tuple(advice), later,
        week,
    )  # fmt: skip


def _measured(plan: TrainPlan, wanted: TrainPlan, measured: Mapping[str, Measured]) -> Measured:
    if plan.experiment_name in measured:
        return measured[plan.experiment_name]
    factor = (plan.experiment.size / wanted.experiment.size) ** 2
    images = {"competition": TRAIN_IMAGES, "nih": NIH_IMAGES}
    factor *= images[plan.experiment.images] / images[wanted.experiment.images]
    return measured[wanted.experiment_name].times(factor)


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
    costs: Sequence[FoldCost], seeds: int, folds: int, inference: float, week: float
) -> list[str]:
    """Return what to change where the plan does not fit a week of so many hours."""
    fold = sum(cost.gpu_hours for cost in costs)
    total = fold * folds * seeds + inference
    if total <= week:
        return []
    experiment, fits = costs[-1].experiment, []
    if (fewer := int(week / (fold * folds + inference / seeds))) >= 1:
        fits.append(f"--seeds {fewer}")
    elif (some := int(week / fold)) >= 1:
        fits.append(f"{some} of {folds} folds of one seed")
    # A tenth of the epochs is another experiment, and so is a quarter of the side.
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
