"""Whether the nested cross-validated score holds on new images: simulated again and again.

    python -m tools.ablation honesty [--sets 400] [--images 1000]

Each set is 1,000 drawn out-of-fold images. A rule, and whatever else a strategy chooses on labels,
is chosen and scored on it as the thresholds stage does, and then applied to thousands of new images
of the same kind. The gap is the score reported minus the score on the new images: above 0 is
optimism. What the choice scores on the images it was made on is kept beside it, to show how much
optimism there is to be found. Results are kept set by set, so that a stopped run goes on.

What the strategy chose on other images is scored on both samples, too, and the difference of the
two scores, whose expectation is 0, is subtracted: it removes most of the chance in which images
were drawn (a control variate).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from kernel_lib.artifacts import maps
from kernel_lib.notebook import bar
from kernel_lib.postprocess import nested_cv
from kernel_lib.postprocess.histograms import Stacked, per_image_dice
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.nested_cv_report import NestedCVReport
from kernel_lib.postprocess.search import SearchOptions, best_score
from kernel_lib.postprocess.strategies import Choice, Fitted, Greedy, MemberVote, OneRule, Strategy
from kernel_lib.postprocess.triplet import Triplet, first_level
from kernel_lib.postprocess.units import FULL_AREA
from tools.ablation import jobs

BEGIN, END = "<!-- honesty:begin -->", "<!-- honesty:end -->"
PIXELS = 256  # of an image; their order does not matter to any rule
FOLDS = 5
EPOCHS = 10  # among which one is selected
NEW_PER_SET = 2  # new images for each image of a set
SINGLE = SearchOptions(single=True, label=False)  # rules of one threshold and one area
SHARE = 0.2  # of images with a mask
_N_FIXED = 3000  # images on which the choice of the control variate is made


@dataclass(frozen=True)
class Sample:
    """Drawn images, and what each member predicts of them."""

    truth: np.ndarray  # (N, P) bool
    levels: np.ndarray  # (M, N, P) uint8, a map of each member
    labels: np.ndarray  # (N,) uint8 levels of the image label

    def __len__(self) -> int:
        return len(self.truth)

    def stats(self, weights: Sequence[float], labelled: bool = False) -> Stacked:
        """Return histograms of the weighted mean of the members' maps."""
        weighted = [(levels, w) for levels, w in zip(self.levels, weights, strict=True) if w]
        mean = maps.mean([levels for levels, _ in weighted], [w for _, w in weighted])  # (N, P)
        labels = self.labels.astype(np.int16) if labelled else np.full(len(self), -1, np.int16)
        return Stacked(
            _histograms(mean, np.ones_like(self.truth)),
            _histograms(mean, self.truth),
            np.full(len(self), PIXELS),
            np.ones(len(self), dtype=bool),
            labels,
        )

    def vote_counts(self, rule_sets: Sequence[Sequence[Triplet]]) -> np.ndarray:
        """Return (R, N, M, 2): for each k the pixels shared with the truth, and the area."""
        return np.stack([self._vote_counts(rules) for rules in rule_sets])

    def _vote_counts(self, rules: Sequence[Triplet]) -> np.ndarray:
        agreeing = np.zeros((len(self), PIXELS), np.int64)
        for rule, levels in zip(rules, self.levels, strict=True):
            kept = (levels >= first_level(rule.top)).sum(axis=1) / PIXELS
            kept = kept * FULL_AREA >= rule.min_area_px
            agreeing += (levels >= first_level(rule.bottom)) & kept[:, None]
        each = [agreeing >= k for k in range(1, len(rules) + 1)]
        truth = self.truth
        return np.stack(
            [np.stack([(mask & truth).sum(axis=1), mask.sum(axis=1)], axis=1) for mask in each],
            axis=1,
        )


def draw(
    random: np.random.Generator,
    n: int,
    n_members: int,
    informative: bool,
    qualities: Sequence[float] | None = None,
) -> Sample:
    """Draw images and what members predict of them.

    Every image has a region that may look like a pneumothorax; where the image has one, it is that
    region and tends to look more so, by as much as a member's quality more. Members share most of
    what they see. Maps that are not informative are drawn for another image's truth.
    """
    positive = random.random(n) < SHARE
    size = np.exp(random.uniform(np.log(2), np.log(60), n)).astype(int)  # px of the region
    region = np.arange(PIXELS) < size[:, None]
    seen = np.where(positive, 1.2, -0.8) + random.normal(0, 1.1, n)
    logits = np.empty((n_members, n, PIXELS), np.float32)
    for logit, quality in zip(logits, qualities or [0.0] * n_members, strict=True):
        look = seen + quality * positive + random.normal(0, 0.6, n)
        logit[:] = np.where(region, -1.5 + 1.5 * look[:, None], -5.0)
        logit += random.normal(0, 0.8, (n, PIXELS)).astype(np.float32)
    levels = maps.quantise(_sigmoid(logits))
    labels = maps.quantise(_sigmoid(seen + random.normal(0, 0.8, n)))
    truth = region & positive[:, None]
    if not informative:
        truth = truth[random.permutation(n)]
    return Sample(truth, levels, labels)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _histograms(levels: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the pixels (N, 256) int64 of each level where `counted` (N, P)."""
    at = (np.arange(len(levels))[:, None] * 256 + levels)[counted]
    return np.bincount(at, minlength=len(levels) * 256).reshape(-1, 256)


@dataclass(frozen=True)
class SimulatedStrategy:
    """What is chosen on labels, tried on images whose truth is known and on new ones."""

    tries: str
    n_members: int
    build: Callable[[Sample], Strategy]


def _one_rule(sample: Sample, labelled: bool = False, single: bool = False) -> Strategy:
    return OneRule(sample.stats(_equal(sample), labelled), SearchOptions(single, labelled))


def _greedy(sample: Sample) -> Strategy:
    stats = cache(sample.stats)
    return Greedy(lambda weightings: map(stats, weightings), len(sample.levels), SINGLE)


def _vote(sample: Sample) -> Strategy:
    members = [sample.stats(weights) for weights in np.eye(len(sample.levels))]
    return MemberVote(members, sample.vote_counts, options=SearchOptions(label=False))


def _equal(sample: Sample) -> list[float]:
    return [1.0] * len(sample.levels)


STRATEGIES = {
    "triplet": SimulatedStrategy("one run: top, area and bottom", 1, _one_rule),
    "one": SimulatedStrategy("one run: threshold and area", 1, partial(_one_rule, single=True)),
    "greedy": SimulatedStrategy("greedy of six: members, weights, threshold and area", 6, _greedy),
    "vote": SimulatedStrategy(
        "vote of three: top, area and bottom for each member, and k", 3, _vote
    ),
    "label": SimulatedStrategy(
        "label gate: label threshold, top, area and bottom", 1, partial(_one_rule, labelled=True)
    ),
}
EPOCH_CELLS = {
    "epoch_last": "the last of ten epochs, none selected (the default): threshold and area",
    "epoch_dice": (
        "the best of ten epochs by its fold's dice (`MONITOR dice`, not called honest): threshold "
        "and area"
    ),
}


def run(folder: Path, sets: int, images: int, at_once: int) -> str:
    """Simulate the sets that are missing; return the table of all that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {(line["cell"], line["informative"], line["set"]) for line in _read(folder, images)}
    todo = [
        (cell, informative, number)
        for number in range(sets)
        for informative in (True, False)
        for cell in (*STRATEGIES, *EPOCH_CELLS)
        if (cell, informative, number) not in done
    ]
    with (
        ProcessPoolExecutor(at_once, get_context("spawn"), initializer=jobs.start_worker) as pool,
        _path(folder, images).open("a", encoding="utf-8") as file,
    ):
        futures = [pool.submit(simulate, *cell_and_set, images) for cell_and_set in todo]
        for future in bar(as_completed(futures), total=len(futures), desc="honesty", unit="set"):
            file.write(json.dumps(future.result()) + "\n")
            file.flush()
    return table(_read(folder, images))


def simulate(cell: str, informative: bool, number: int, images: int) -> dict:
    """Return the gaps of one set, with the control variate, as a line of the results."""
    random = np.random.default_rng([number, images, *cell.encode(), informative])
    if cell in EPOCH_CELLS:
        report, on_new = _of_epochs(random, cell == "epoch_dice", informative, images)
    else:
        report, on_new = _of_strategy(random, cell, informative, images)
    gaps = {"gap": report.honest.dice - on_new, "in_sample": report.in_sample.dice - on_new}
    return {"cell": cell, "informative": informative, "set": number, **gaps}


def _of_strategy(
    random: np.random.Generator, cell: str, informative: bool, images: int
) -> tuple[NestedCVReport, float]:
    """Return the report on a set, and what its choice scores on new images, controlled."""
    simulated = STRATEGIES[cell]
    sampled, new = (
        draw(random, n, simulated.n_members, informative) for n in (images, NEW_PER_SET * images)
    )
    strategy, new_strategy = simulated.build(sampled), simulated.build(new)
    rows, rows_new = np.arange(images), np.arange(len(new))
    fixed = _fixed(cell, informative)
    folds = random.permutation(images) % FOLDS
    fitted, report = _scored(strategy, sampled.stats(_equal(sampled)), folds)
    on_new = new_strategy.apply(fitted.choice, rows_new).dice.mean()
    control = strategy.apply(fixed, rows).dice.mean()
    control -= new_strategy.apply(fixed, rows_new).dice.mean()
    return report, float(on_new + control)


def _of_epochs(
    random: np.random.Generator, select: bool, informative: bool, images: int
) -> tuple[NestedCVReport, float]:
    """Return the same where each fold's epoch is its last, or the best on its own images."""
    qualities = random.normal(0, 0.15, (FOLDS, EPOCHS))  # epochs differ in truth, too
    size = images // FOLDS
    picked_epochs, parts, last = [], [], []
    for fold in range(FOLDS):
        epochs = draw(random, size, EPOCHS, informative, qualities[fold].tolist())
        each = [epochs.stats(stats) for stats in np.eye(EPOCHS)]
        at = EPOCHS - 1
        if select:
            at = int(np.argmax([best_score(stats, SINGLE) for stats in each]))
        picked_epochs.append(at)
        parts.append(each[at])
        last.append(each[-1])
    facts = _joined(parts)
    fitted, report = _scored(OneRule(facts, SINGLE), facts, np.repeat(np.arange(FOLDS), size))
    fixed, on_new, fixed_new = _fixed("one", informative).triplet, [], []
    for fold, at in enumerate(picked_epochs):
        seed = int(random.integers(1 << 62))  # the same new images for both epochs
        picked, final = (
            draw(np.random.default_rng(seed), NEW_PER_SET * size, 1, informative, [quality])
            for quality in (qualities[fold, at], qualities[fold, -1])
        )
        on_new.append(_dice(picked.stats([1.0]), fitted.choice.triplet))
        fixed_new.append(_dice(final.stats([1.0]), fixed))
    control = _dice(_joined(last), fixed) - float(np.mean(fixed_new))
    return report, float(np.mean(on_new) + control)


def _joined(parts: Sequence[Stacked]) -> Stacked:
    fields = ("hist_all", "hist_true", "n_px", "has_truth", "label")
    return Stacked(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def _scored(strategy: Strategy, facts: Stacked, folds: np.ndarray) -> tuple[Fitted, NestedCVReport]:
    ids = [str(i) for i in range(len(facts))]
    return nested_cv.score_strategy(strategy, facts, ids, folds, None, Resampler(n_bootstrap=1))


@cache
def _fixed(cell: str, informative: bool) -> Choice:
    """Return what the strategy chooses on images that no set has."""
    simulated, n = STRATEGIES[cell], _N_FIXED
    sample = draw(np.random.default_rng([n, informative]), n, simulated.n_members, informative)
    (fitted,) = simulated.build(sample).fit([np.arange(n)])
    return fitted.choice


def _dice(stats: Stacked, rule: Triplet) -> float:
    return float(per_image_dice(stats, rule).mean())


def table(lines: Sequence[Mapping]) -> str:
    """Return each cell's mean gap with its standard error, and the gap of the score in sample."""
    rows = [
        "| what is chosen on labels | maps | sets | gap | standard error | in sample |",
        "|---|---|---|---|---|---|",
    ]
    tries = {name: line.tries for name, line in STRATEGIES.items()} | EPOCH_CELLS
    for cell, what in tries.items():
        for informative, kind in ((True, "informative"), (False, "random")):
            same = [x for x in lines if x["cell"] == cell and x["informative"] == informative]
            gaps = np.array([line["gap"] for line in same])
            if len(gaps) > 1:
                error = gaps.std(ddof=1) / len(gaps) ** 0.5
                in_sample = np.mean([line["in_sample"] for line in same])
                rows.append(
                    f"| {what} | {kind} | {len(gaps)} | {gaps.mean():+.4f} | {error:.4f} "
                    f"| {in_sample:+.4f} |"
                )
    return "\n".join([*rows, ""])


def _path(folder: Path, images: int) -> Path:
    return folder / f"sets_{images}.jsonl"


def _read(folder: Path, images: int) -> list[dict]:
    """Return the lines of results; one that a kill cut short is dropped."""
    path = _path(folder, images)
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete, _, rest = text.rpartition("\n")
    if rest:
        path.write_text(f"{complete}\n" if complete else "", encoding="utf-8")
    return [json.loads(line) for line in complete.splitlines()]
