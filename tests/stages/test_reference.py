"""Every strategy from archives to test masks against a reference that knows nothing of ours."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.config import ThresholdsParameters
from kernel_lib.inference.ensemble_maps import test_masks as masks_of_test
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.stages import thresholds as stage
from tests.stages import reference
from tests.stages.place import fold_table, write_fold
from tests.stages.reference import Image, Rule

RUNS, FOLDS, N = ("a", "b", "c", "d"), (0, 1, 2), 48
SIDES = {"a": 16, "b": 16, "c": 12, "d": 16}  # of the maps
SHAPES = ((16, 16), (20, 24), (16, 12))  # of the images
TESTS = {f"t{i}": SHAPES[i % 3] for i in range(8)}


def truth(number: int) -> np.ndarray:
    """A third of the images have a mask, from small to large."""
    height, width = SHAPES[number % 3]
    mask = np.zeros((height, width), bool)
    if number % 3 != 1 and number % 2:
        mask[2 : 5 + number % 7, 3 : 5 + number % 5] = True
    return mask


def square(shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[3:11, 2:10] = True
    return mask


def level_map(run: str, fold: int, image_id: str, mask: np.ndarray) -> np.ndarray:
    """What a member predicts: better members have less noise, and each errs in its own images."""
    random = np.random.default_rng([ord(c) for c in f"{run}{fold}{image_id}"])
    side, skill = SIDES[run], {"a": 1.0, "b": 0.9, "c": 0.8, "d": 0.35}[run]
    signal = reference.at_size((mask * 255).astype(np.uint8), (side, side)) / 255
    seen = signal * (170 * skill if random.random() < 0.85 else 30)
    if random.random() < 0.25:  # a false alarm
        seen[side // 2 : side // 2 + 4, 1:5] += 110
    noisy = seen + random.normal(25, 40, (side, side))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def label(run: str, fold: int, image_id: str, positive: bool) -> float:
    random = np.random.default_rng([ord(c) for c in f"label{run}{fold}{image_id}"])
    return float(np.clip(random.normal(0.65 if positive else 0.35, 0.15), 0, 1))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Four runs of three folds, with what they predict of held-out and of test images."""
    place = tmp_path_factory.mktemp("reference")
    # Each fold holds every shape.
    table = fold_table([truth(i) for i in range(N)], [(i // 3) % 3 for i in range(N)])
    folds_file.save(table, place / "folds.csv")
    tests = {t: square(shape) & (at % 3 > 0) for at, (t, shape) in enumerate(TESTS.items())}
    for run, fold in itertools.product(RUNS, FOLDS):
        held_out = {i: truth(int(i[1:])) for i in table.loc[table["fold"] == fold, "image_id"]}
        kept, test = (
            [
                (i, level_map(run, fold, i, mask), label(run, fold, i, mask.any()))
                for i, mask in images.items()
            ]
            for images in (held_out, tests)
        )
        write_fold(place, run, fold, table, kept, test=test, label_weight=0.05)
    return place


class Seen:
    """The archives as the reference reads them."""

    def __init__(self, work: Path, gate: str) -> None:
        self.gate = gate
        self.archives = {
            (run, fold, name): reference.read(fold_run.fold_folder(work, run, fold).path / name)
            for run in RUNS
            for fold in FOLDS
            for name in ("oof.zip", "test.zip")
        }
        self.folds = np.array([(i // 3) % 3 for i in range(N)])

    def image(self, image_id, mask, shape, folds, weights, name) -> Image:
        """An image by these folds of the members under integer weights."""
        used = [(f, r, w) for f in folds for r, w in zip(RUNS, weights, strict=True) if w]
        archives = [(self.archives[run, fold, name], w) for fold, run, w in used]
        level = reference.mean_map(
            [maps_[image_id] for (maps_, _), _ in archives], [w for _, w in archives]
        )
        own = reference.at_size(level, shape)
        if self.gate == "sum":
            return Image(own, mask, reference.sum_level(own))
        if self.gate == "label":
            labels = [labels[image_id] for (_, labels), _ in archives]
            return Image(own, mask, reference.label_level(labels, [w for _, w in archives]))
        return Image(own, mask, None)

    def held_out(self, weights) -> list[Image]:
        return [
            self.image(f"i{i:02d}", truth(i), truth(i).shape, [self.folds[i]], weights, "oof.zip")
            for i in range(N)
        ]

    def test(self, image_id, folds, weights) -> Image:
        shape = TESTS[image_id]
        return self.image(image_id, np.zeros(shape, bool), shape, folds, weights, "test.zip")


ALL = (1, 1, 1, 1)
EACH = [tuple(int(at == m) for at in range(4)) for m in range(4)]


class Reference:
    """What a strategy chooses on rows, decides on held-out images, and draws on test images."""

    def __init__(self, work: Path, combine: str, choose: str, gate: str) -> None:
        self.seen, self.combine, self.choose = Seen(work, gate), combine, choose
        self.labelled = gate != "none"
        self.of_weights = cache(self.seen.held_out)
        self.draw = {"member_vote": reference.vote, "member_union": reference.union}.get(combine)

    def chosen(self, rows: list[int]) -> tuple:
        def some(weights):
            images = self.of_weights(weights)
            return [images[row] for row in rows]

        if self.draw:
            members = [some(one) for one in EACH]
            rules = [reference.chosen(own, self.labelled) for own in members]
            return rules, reference.best_k(members, rules, self.draw)
        weights = reference.greedy(some, 4) if self.choose == "greedy" else ALL
        return reference.chosen(some(weights), self.labelled), weights

    def decided(self, choice: tuple, row: int) -> np.ndarray:
        if self.draw:
            rules, k = choice
            own = [self.of_weights(one)[row] for one in EACH]
            masks = [reference.mask(i, rule) for i, rule in zip(own, rules, strict=True)]
            return self.draw(masks, k)
        rule, weights = choice
        return reference.mask(self.of_weights(weights)[row], rule)

    def honest(self) -> float:
        each = np.zeros(N)
        for fold in FOLDS:
            choice = self.chosen([i for i in range(N) if self.seen.folds[i] != fold])
            for row in np.flatnonzero(self.seen.folds == fold):
                each[row] = reference.dice(self.decided(choice, row), truth(row))
        return float(each.mean())

    def on_test(self, choice: tuple, image_id: str) -> np.ndarray:
        if self.draw:
            rules, k = choice
            own = [self.seen.test(image_id, FOLDS, one) for one in EACH]
            masks = [reference.mask(i, rule) for i, rule in zip(own, rules, strict=True)]
            return self.draw(masks, k)
        rule, weights = choice
        if self.combine == "vote":
            apart = [reference.mask(self.seen.test(image_id, [k], weights), rule) for k in FOLDS]
            return reference.vote(apart, 2)
        return reference.mask(self.seen.test(image_id, FOLDS, weights), rule)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("combine", "choose", "gate"),
    [
        ("mean", "none", "none"),
        ("mean", "none", "label"),
        ("mean", "none", "sum"),
        ("vote", "none", "label"),
        ("mean", "greedy", "none"),
        ("member_vote", "none", "none"),
        ("member_union", "none", "none"),
    ],
)
def test_choice_score_and_test_masks_are_the_reference_s(work, combine, choose, gate):
    result = stage.run(ThresholdsParameters(
        work_dir=str(work), runs=",".join(RUNS), combine=combine, choose=choose, gate=gate,
        single=True, bootstrap=100, ensemble=f"{combine}-{choose}-{gate}",
    ))  # fmt: skip
    ours, theirs = result.choice, Reference(work, combine, choose, gate)
    choice = theirs.chosen(list(range(N)))
    if theirs.draw:
        assert [_rule(one) for one in ours.rules] == choice[0]
        assert ours.at_least == choice[1]
    else:
        assert _rule(ours.triplet) == choice[0]
    if choose == "greedy":
        assert ours.weights == choice[1]
        assert max(ours.weights) > 1  # else integer weights would not be tried
    assert result.honest.honest.dice == pytest.approx(theirs.honest(), abs=1e-12)

    images = pd.DataFrame(
        [(i, *shape) for i, shape in TESTS.items()], columns=["image_id", "height", "width"]
    )
    submitted = Decision.load(result.folder).choice
    drawn = dict(masks_of_test(Ensemble.load(result.folder), [work], images, submitted))
    assert any(mask.any() for mask in drawn.values())
    for image_id, mask in drawn.items():
        assert np.array_equal(mask.astype(bool), theirs.on_test(choice, image_id)), image_id


def _rule(rule: Triplet) -> Rule:
    assert rule.top == rule.bottom
    return Rule(rule.label, rule.top, rule.min_area_px)
