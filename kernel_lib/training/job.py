"""Inputs, progress and time budget of the training of one fold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kernel_lib.artifacts.fold_run import FoldRun, LogLine
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.data.cache import Prepared
from kernel_lib.engine import Engine
from kernel_lib.errors import InputError
from kernel_lib.parallel.world import SINGLE_PROCESS, World
from kernel_lib.plan import TrainPlan


@dataclass
class Position:
    """Where a training stands, and its results so far."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimiser steps done in the current epoch
    loss_sum: float = 0.0  # Σ loss · images of the current epoch
    images: int = 0  # in the current epoch
    skipped: int = 0  # optimiser steps skipped in this epoch (`step.Step`)
    seconds: float = 0.0  # spent in the current epoch, over all sessions
    history: list[LogLine] = field(default_factory=list)
    kept: list[dict] = field(default_factory=list)  # checkpoints: {"epoch", "value"}, best first
    ended: str = ""  # why the training has ended; empty while it goes on


@dataclass(frozen=True)
class Job:
    """Everything that the training of a fold needs."""

    folder: FoldRun
    plan: TrainPlan
    prepared: Prepared
    train_rows: np.ndarray  # of the cache
    held_rows: np.ndarray  # likewise
    truth: pd.DataFrame  # by cache row: rle, height, width, positive (has a pneumothorax)
    lineage: Lineage  # of the weights it ends with
    engine: Engine
    workers: int
    world: World = SINGLE_PROCESS  # the processes that train it together


class Clock:
    """Time budget of `max_hours` from its construction; None means no limit."""

    def __init__(self, max_hours: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.max_hours = max_hours
        self._now = now
        self._start = now()

    def spent(self) -> float:
        """Return the seconds since the start."""
        return self._now() - self._start

    def left(self) -> float:
        """Return the seconds until the limit, infinite without one."""
        return float("inf") if self.max_hours is None else self.max_hours * 3600 - self.spent()

    def allows(self, seconds: float) -> bool:
        """Return whether work of about that length fits before the limit.

        Twice the estimate and a hundredth of the limit must be left: steps vary, and the results
        have still to be written.
        """
        return self.max_hours is None or self.left() > self._needed(seconds)

    def allows_uninterrupted(self, seconds: float, what: str) -> bool:
        """Return `allows`, for work that cannot resume; InputError if it can never fit."""
        if self.max_hours is not None and self.max_hours * 3600 <= self._needed(seconds):
            # Where `_needed` equals the limit, rounded up, with 0.01 h to spare.
            least = math.ceil(100 * 2 * seconds / 0.99 / 3600 + 1) / 100
            raise InputError(
                f"MAX_HOURS {self.max_hours} is too short for {what}, about {seconds:.0f} s in one "
                f"go: give {least:.2f} or more; all that was trained is saved"
            )
        return self.allows(seconds)

    def _needed(self, seconds: float) -> float:
        return 2 * seconds + 0.01 * self.max_hours * 3600


class SharedClock(Clock):
    """The first rank's clock on every rank; all ranks must call each method together."""

    def __init__(self, world: World, clock: Clock) -> None:
        self.max_hours = clock.max_hours
        self._world, self._clock = world, clock

    def spent(self) -> float:
        return self._world.from_first(self._clock.spent)

    def left(self) -> float:
        return self._world.from_first(self._clock.left)

    def allows(self, seconds: float) -> bool:
        return self._world.from_first(lambda: self._clock.allows(seconds))

    def allows_uninterrupted(self, seconds: float, what: str) -> bool:
        return self._world.from_first(lambda: self._clock.allows_uninterrupted(seconds, what))
