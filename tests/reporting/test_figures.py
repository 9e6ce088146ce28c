"""Every figure for common, empty and one-image input; the sentences give the true numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from kernel_lib.data import folds
from kernel_lib.postprocess.histograms import areas, statistics
from kernel_lib.postprocess.metrics import Resampler
from kernel_lib.postprocess.nested_cv import compare_areas, score_rule
from kernel_lib.postprocess.search import SearchOptions, search
from kernel_lib.reporting import figures, overlays
from kernel_lib.reporting.overlays import Example
from kernel_lib.reporting.picture import Picture


def drawn(picture: Picture) -> str:
    """Return the sentence of a picture that can be drawn."""
    assert picture.png(dpi=40).startswith(b"\x89PNG")
    return picture.sentence


def log(n: int) -> list[dict]:
    return [
        {"epoch": epoch, "lr": 1e-3 / epoch, "train_loss": 1 / epoch, "val_loss": 1.5 / epoch,
         "dice": 0.8 + 0.01 * epoch, "dice_half": 0.78, "dice_nonempty": 0.1 * epoch,
         "images_per_second": 20.0, "best": epoch > 2}
        for epoch in range(1, n + 1)
    ]  # fmt: skip


def maps(n: int, seed: int = 0) -> tuple[list, list]:
    """Return probability maps and masks of n images, every third positive."""
    rng = np.random.default_rng(seed)
    probs, masks = [], []
    for number in range(n):
        mask = np.zeros((32, 32), np.uint8)
        if number % 3 == 0:
            mask[4 : 10 + number % 7, 5:14] = 1
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2) * rng.uniform(0.3, 1)
        soft += 0.1 * rng.random((32, 32))
        probs.append(np.round(255 * np.clip(soft, 0, 1)).astype(np.uint8))
        masks.append(mask)
    return probs, masks


def stats_of(n: int) -> list:
    return [statistics(prob, mask) for prob, mask in zip(*maps(n), strict=True)]


def table(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    truth = np.where(np.arange(n) % 2 == 0, rng.lognormal(9, 1, n).round(), 0)
    predicted = np.where(rng.random(n) < 0.7, truth, 0)
    return pd.DataFrame({
        "image_id": [f"id{k}" for k in range(n)],
        "fold": np.arange(n) % 2,
        "group": [f"p{k // 2}" for k in range(n)],
        "truth_px": truth,
        "predicted_px": predicted,
        "dice": np.where(truth == predicted, 0.9, 0.0),
    })  # fmt: skip


def test_learning_curves_name_the_best_epoch_and_lines_may_lack_keys() -> None:
    sentence = drawn(figures.learning_curves({"fold0": log(5), "fold1": log(1)}))
    assert "fold0: 5 epochs, best held-out Dice 0.8500 in epoch 5 (0.7800 at" in sentence
    assert "fold1: 1 epoch," in sentence
    lines = [{"epoch": 1, "train_loss": 0.5, "dice": None}]
    assert drawn(figures.learning_curves({"$a$_b": lines})) == "$a$_b: 1 epoch."


def test_no_two_runs_differ_in_colour_alone() -> None:
    picture = figures.learning_curves({f"run{k}": log(2) for k in range(14)})
    drawn(picture)
    looks = [
        (str(line.get_linestyle()), line._dash_pattern, line.get_marker())
        for line in picture.figure.axes[0].lines
        if line.get_label().startswith("run")
    ]
    assert len(set(map(str, looks))) == 14
    (names,) = picture.figure.legends
    assert [text.get_text() for text in names.get_texts()] == [f"run{k}" for k in range(14)]
    drawn(figures.learning_curves({f"run{k}": log(2) for k in range(40)}))


def test_threshold_surface_states_the_label_threshold() -> None:
    gated = [replace(one, label=200 * bool(one.hist_true.any())) for one in stats_of(12)]
    blurred = [replace(one, hist_all=gated[0].hist_all) for one in gated]  # all look alike
    result = search(blurred)
    assert result.chosen.label is not None
    assert f"label {result.chosen.label:.4f}, top" in drawn(figures.threshold_surface(result))


@pytest.mark.parametrize("n", [30, 1])
@pytest.mark.parametrize("single", [False, True])
def test_threshold_surface(n: int, single: bool) -> None:
    result = search(stats_of(n), SearchOptions(single=single))
    sentence = drawn(figures.threshold_surface(result))
    assert f"{result.score:.4f}" in sentence
    assert f"{result.chosen_score:.4f}" in sentence


@pytest.mark.parametrize("n", [60, 1])
def test_charts_by_size(n: int) -> None:
    images = table(n)
    positive = images[images["truth_px"] > 0]
    missed = int((positive["predicted_px"] == 0).sum())
    sentence = drawn(figures.dice_against_area(images))
    assert f"mean Dice {positive['dice'].mean():.3f}" in sentence
    assert f"{missed} false negative" in sentence
    sentence = drawn(figures.false_negatives_by_size(images))
    assert sentence.startswith(f"{missed} of {len(positive)} positive image")
    extreme = table(1).assign(truth_px=1024 * 1024, predicted_px=0, dice=0.0)
    assert "1 of 1 positive image" in drawn(figures.false_negatives_by_size(extreme))
    drawn(figures.dice_against_area(extreme.assign(truth_px=0.25)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: figures.learning_curves({}),
        lambda: figures.learning_curves({"fold0": []}),
        lambda: figures.threshold_surface(SimpleNamespace(surface=np.full((255, 255), np.nan))),
        lambda: figures.dice_against_area(table(0)),
        lambda: figures.dice_against_area(table(4).assign(truth_px=0)),
        lambda: figures.false_negatives_by_size(table(0)),
        lambda: figures.false_negatives_by_size(table(4).assign(truth_px=0)),
        lambda: figures.mask_areas([], None),
        lambda: figures.mask_areas([0, 0], []),
        lambda: figures.folds(folds_table(0)),
        lambda: overlays.examples([]),
        lambda: overlays.augmentations(np.zeros((8, 8), np.uint8), None, []),
    ],
)
def test_without_data_there_is_a_sentence_but_no_figure(make: Callable[[], Picture]) -> None:
    picture = make()
    assert picture.figure is None
    assert picture.png() is None
    assert picture.sentence
    assert "<img" not in picture._repr_html_()


@pytest.fixture(scope="module")
def report():
    n = 30
    ids, groups = ([f"{kind}{k}" for k in range(n)] for kind in ("id", "p"))
    return score_rule(stats_of(n), ids, np.arange(n) % 3, groups, resampler=Resampler(50))


def test_scores_of_a_report(report) -> None:
    sentence = drawn(figures.scores(report))
    for score in (report.all_empty, report.above_half, report.in_sample, report.honest):
        assert f"{score.dice:.4f} ({score.dice_nonempty:.4f})" in sentence
    assert "NOT HONEST" not in sentence
    assert "NOT HONEST" in figures.scores(report, is_honest=False).sentence
    unknown = replace(report.all_empty, dice_nonempty=math.nan)
    assert "(none)" in drawn(figures.scores(replace(report, all_empty=unknown)))


def test_share_nonempty_with_test_and_without(report) -> None:
    assert f"{report.share_predicted:.1%}" in drawn(figures.share_nonempty(report))
    probs, _ = maps(9)
    px = areas([statistics(p, None) for p in probs], report.chosen)
    summary = compare_areas(px * 1024, report)  # the maps are 32², areas those of 1024²
    summary = replace(summary, warnings=("Look at the masks.",))
    sentence = drawn(figures.share_nonempty(report, summary))
    assert f"predicted, test: {summary.share_predicted:.1%}" in sentence
    assert sentence.endswith("Look at the masks.")


def test_mask_areas() -> None:
    picture = figures.mask_areas([0, 100, 300], [50, 0, 0])
    assert repr(picture) == drawn(picture)
    assert "Out of fold: 2 masks, mean 200, median 200 px of 1024²" in picture.sentence
    assert "test: 1 mask, mean 50, median 50 px of 1024²" in picture.sentence
    assert "test: every mask is empty" in drawn(figures.mask_areas([7], [0]))
    assert drawn(figures.mask_areas([5], names=("as labelled", ""))).startswith("As labelled: 1")
    assert 'src="data:image/png;base64,' in picture._repr_html_()
    assert pyplot.get_fignums() == [], "no figure leaves a trace in pyplot"


def folds_table(n: int) -> pd.DataFrame:
    images = table(n)[["image_id", "fold", "group", "truth_px"]]
    images = images.rename(columns={"truth_px": "area_px"}).astype({"fold": int, "area_px": int})
    return images.assign(height=32, width=32, rle="-1")


def test_folds() -> None:
    sentence = drawn(figures.folds(folds_table(20)))
    assert "20 images of " in sentence
    assert "in 2 folds of 10 to 10 images" in sentence
    median = folds.balance(folds_table(20))["median_area_px_1024"]
    assert f"{median.min():,.0f} to {median.max():,.0f} px of 1024²." in sentence
    drawn(figures.folds(folds_table(1)))
    assert "none" in drawn(figures.folds(folds_table(4).assign(area_px=0)))


def test_examples_count_what_they_show() -> None:
    probs, masks = maps(6)
    empty = np.zeros_like(masks[0])
    uid = "1.2.276.0.7230010.3.1.4.8323329.1000.1517875165.878027"
    shown = [
        Example("a", probs[0], masks[0], probs[0], masks[0], "hit"),
        Example("b", probs[0], masks[0], probs[0], empty, "missed"),
        Example("c$\\frac", probs[1], empty, None, masks[0], "$ false"),
        Example(uid, probs[1], empty, None, empty),
        Example("e", probs[1]),
    ]
    sentence = drawn(overlays.examples(shown))
    assert "5 images, 2 with a ground-truth mask" in sentence
    assert "1 false negative and 1 false positive" in sentence
    assert "0.000 to 1.000" in sentence


@pytest.mark.parametrize(
    ("masks", "sentence", "names"),
    [
        ((), "1 image without known ground truth.", []),
        (("truth",), "1 image, 1 with a ground-truth mask (solid).", ["ground truth"]),
        (
            ("mask",),
            "1 image without known ground truth, 1 predicted positive (dashed).",
            ["prediction"],
        ),
        (("truth", "prob", "mask"), "1 image, 1 with", ["ground truth", "prediction"]),
    ],
)
def test_sentence_and_legend_name_only_what_can_be_seen(masks, sentence, names) -> None:
    image = np.zeros((1500, 900), np.uint8)
    image[700, 400] = 1
    picture = overlays.examples([Example("a", image, **dict.fromkeys(masks, image))])
    assert drawn(picture).startswith(sentence)
    shown = [text.get_text() for box in picture.figure.legends for text in box.get_texts()]
    assert shown == names


def test_augmentations() -> None:
    probs, masks = maps(1)
    turned = [(probs[0].T, masks[0].T)] * 5
    sentence = drawn(overlays.augmentations(probs[0], masks[0], turned))
    area = int(masks[0].sum()) * 1024  # of 32² pixels
    assert f"mask of {area:,} px of 1024²" in sentence
    assert f"{area:,} to {area:,}." in sentence
    assert "no mask" in drawn(overlays.augmentations(probs[0], None, [(probs[0], None)]))
    assert "no masks" in drawn(overlays.augmentations(probs[0], masks[0], [(probs[0], None)]))
