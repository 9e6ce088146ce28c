"""Input of the training of a fold, and its position."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.data.cache import Prepared
from kernel_lib.engine import Engine
from kernel_lib.parallel.world import SINGLE_PROCESS, World
from kernel_lib.plan import TrainPlan


@dataclass
class Position:
    """Position of a training, and its results so far."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimiser steps done in the present epoch
    loss_sum: float = 0.0  # Σ loss · images of the present epoch
    images: int = 0
    skipped: int = 0  # optimiser steps of the present epoch (`nan_guard`)
    seconds: float = 0.0  # spent in the present epoch, over all sessions
    history: list[dict] = field(default_factory=list)  # a log line for each epoch
    kept: list[dict] = field(default_factory=list)  # {"epoch", "value"}, best first
    ended: str = ""  # why the training has ended


@dataclass(frozen=True)
class Job:
    """Everything that the training of a fold needs."""

    folder: FoldRun
    plan: TrainPlan
    prepared: Prepared
    train_rows: np.ndarray
    held_rows: np.ndarray
    truth: pd.DataFrame  # by cache row: rle, height, width, positive (has a pneumothorax)
    lineage: Lineage  # of the weights it ends with
    engine: Engine
    workers: int
    world: World = SINGLE_PROCESS  # the processes that train it together
