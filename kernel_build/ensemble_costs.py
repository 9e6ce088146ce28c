"""Costs of what an ensemble's runs become on Kaggle: thresholds, and masks of the test images.

Both stages read every map of every run, as here counted by two processes at a time, which is what
was measured; the thresholds stage has one per core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from kernel_lib.config import ThresholdsParameters
from kernel_lib.kaggle import quota

TRAIN_IMAGES, TEST_IMAGES = 12_047, 3_205  # the competition's second stage
# Of a trained network's map: 0.017 where 5 % of its pixels are above 0, 0.036 where 17 % are.
MAP_BYTES_PER_PX = 0.04

# Seconds of one process at 512 px, with another one beside it on two cores: docs/results.md,
# "Ensembles". They are proportional to pixels where they are of maps.
PROCESSES = 2
PACK = 0.3e-3  # a map, decoded and packed
RANK = 0.3e-3  # the statistics of an image under one weighting, from its packed maps
VOTE = 3.5e-3  # a map that members' rules keep, those of all selections
DISTANCE = 0.6e-3  # a map of an image whose boundaries are compared
AVERAGE = 0.6e-3  # a map of a test image, decoded, and added to its mean
MASK = 4e-3  # a mask of a test image, 1024²: the mean resized, the rule applied, the RLE
# Of the one thread that searches, an image.
BEST_RULE = 0.04 / 12_047  # a weighting's score
SEARCH = 0.2 / 12_047  # a rule that is chosen, with what the report shows of its search
REPORT = 25.0  # in all, with opening and writing files

# Of a greedy selection, which ends where no member raises the score: 5 draws among ten runs and 12
# among twenty, in what was measured.
DRAWS_PER_RUN = 0.55
DISTINCT = 0.4  # share of a draw's weightings left where selections have some in common, or end
MASKED = 0.25  # share of images with a mask

# Bytes; `INDEX`, `STATISTICS` and `PACKED` are of an image.
LIBRARIES = 240e6  # of thresholds and its workers, with all tables
INDEX = 3_800  # of a run's two open archives
STATISTICS = 2 * 256 * 4  # in memory, and at most as many in the file
SAVING = 3.5  # times in memory where they are saved and read again for the report
PACKED = 13_000  # a map of 512 px in the temporary file
PREDICTING = 1.5e9  # of inference: docs/results.md, `tools.benchmarks.memory`


@dataclass(frozen=True)
class Runs:
    """The runs of an ensemble, the side of their maps in px, and how they are combined."""

    n: int
    folds: int
    size: float  # where they differ, of the mean area
    decided: ThresholdsParameters

    @property
    def greedy(self) -> bool:
        return self.decided.choose == "greedy"

    @property
    def by_members(self) -> bool:
        return self.decided.combine in ("member_vote", "member_union")

    @property
    def scale(self) -> float:
        """The pixels of a map relative to 512²."""
        return (self.size / 512) ** 2

    @property
    def selections(self) -> int:
        """Choices made: on all images, and without each fold."""
        return self.folds + 1


@dataclass(frozen=True)
class StageCost:
    """Hours of a stage's kernel with its start, memory at its peak, and disk, both in bytes."""

    hours: float
    memory: float
    output: float  # in the working folder
    scratch: float = 0.0  # in temporary files


class _Search(NamedTuple):
    """One of the two searches: of the kept checkpoints, and of the last ones."""

    seconds: float
    kept: int  # weightings whose statistics stay in memory
    held: int = 0  # those that do not
    scratch: float = 0.0


def thresholds(runs: Runs, start: float, images: int = TRAIN_IMAGES) -> StageCost:
    """Return the cost of thresholds; `start` are the hours until it begins."""
    search = (_greedy if runs.greedy else _votes if runs.by_members else _mean)(runs, images)
    distances = MASKED * images * runs.n * DISTANCE * runs.scale / PROCESSES
    statistics = STATISTICS * images
    saved = runs.n if runs.by_members else 1  # weightings of which the statistics are saved
    most = max(2 * search.kept + search.held, search.kept + SAVING * saved)
    return StageCost(
        start + (2 * search.seconds + distances + REPORT) / 3600,
        LIBRARIES + INDEX * images * runs.n + statistics * most,
        statistics * saved,
        search.scratch,
    )


def _passes(runs: Runs, images: int) -> tuple[float, float]:
    """Return the seconds of a pass that packs all maps, and of one weighting's statistics."""
    by_images = images * runs.scale / PROCESSES
    return by_images * runs.n * PACK, by_images * RANK


def _mean(runs: Runs, images: int) -> _Search:
    pack, rank = _passes(runs, images)
    return _Search(pack + rank + images * runs.selections * SEARCH, kept=1)


def _votes(runs: Runs, images: int) -> _Search:
    """One rule a member and selection; the mean of all members is for the report."""
    pack, rank = _passes(runs, images)
    seconds = pack + (runs.n + 1) * rank + images * runs.n * runs.selections * SEARCH
    seconds += MASKED * images * runs.n * VOTE * runs.scale / PROCESSES
    return _Search(seconds, kept=runs.n + 1)


def _greedy(runs: Runs, images: int) -> _Search:
    """Each draw ranks, for each selection, one weighting a run; the mean is for the report."""
    from kernel_lib.inference.out_of_fold import AT_ONCE
    from kernel_lib.inference.weightings import STORE_BYTES

    pack, rank = _passes(runs, images)
    ranked = max(2, DRAWS_PER_RUN * runs.n) * runs.n * runs.selections
    packed = images * runs.n * PACKED * runs.scale
    # What the temporary file does not hold is packed again for each pass.
    packs = 1 + max(0.0, 1 - STORE_BYTES / packed) * DISTINCT * ranked / AT_ONCE
    seconds = packs * pack + (DISTINCT * ranked + runs.selections + 1) * rank
    seconds += images * (ranked * BEST_RULE + runs.selections * SEARCH)
    return _Search(seconds, runs.selections + 1, AT_ONCE, min(packed, STORE_BYTES))


def inference(runs: Runs, start: float, predicting: float) -> StageCost:
    """Return the cost of inference, whose networks take `predicting` hours a run."""
    maps = runs.n * runs.folds
    masks = runs.n if runs.by_members else runs.folds if runs.decided.combine == "vote" else 1
    seconds = TEST_IMAGES * (maps * AVERAGE * runs.scale + masks * MASK) / PROCESSES
    return StageCost(
        start + predicting * runs.n + seconds / 3600,
        PREDICTING + PROCESSES * maps * runs.size**2,
        MAP_BYTES_PER_PX * runs.size**2 * TEST_IMAGES * maps,
    )


def advice(
    stage: str,
    cost_of: Callable[[Runs], StageCost],
    runs: Runs,
    max_hours: float,
    how_to_plan: Callable[[int], str],
) -> list[str]:
    """Return what to change where a stage does not fit a session of `max_hours`, or a machine.

    `how_to_plan` words a plan of so many runs.
    """
    lines = []
    for what, text in _exceeded(cost_of(runs), max_hours).items():
        fewer = range(runs.n - 1, int(runs.by_members), -1)
        fits = (n for n in fewer if what not in _exceeded(cost_of(replace(runs, n=n)), max_hours))
        ways = [how_to_plan(n) for n in (next(fits, None),) if n]
        lines.append(f"{stage} {text}: {' or '.join([*ways, *_other_ways(stage, what, runs)])}")
    return lines


def _exceeded(cost: StageCost, max_hours: float) -> dict[str, str]:
    """Return, by hours, memory and output, what a stage has too much of."""
    texts = {}
    if cost.hours > max_hours:
        texts["hours"] = (
            f"takes {cost.hours:.1f} h and cannot be cut, a session leaves {max_hours:g}"
        )
    if cost.memory > quota.MEMORY_BYTES:
        texts["memory"] = (
            f"needs about {cost.memory / 1e9:.0f} GB of memory, a session has "
            f"{quota.MEMORY_BYTES / 1e9:.0f}"
        )
    if cost.output > quota.OUTPUT_BYTES:
        texts["output"] = (
            f"leaves about {cost.output / 1e9:.0f} GB, the working folder holds "
            f"{quota.OUTPUT_BYTES / 1e9:.0f}"
        )
    return texts


def _other_ways(stage: str, what: str, runs: Runs) -> Sequence[str]:
    if stage == "inference":
        return ["a lower KEEP or TTA" if what == "hours" else "a smaller SIZE"]
    ways = ["--choose none"] * runs.greedy + ["--combine mean"] * runs.by_members
    return [*ways, *["a smaller SIZE"] * (what == "hours")]
