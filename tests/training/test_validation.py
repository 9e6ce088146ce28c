from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from kernel_lib.config import Experiment
from kernel_lib.data import rle
from kernel_lib.engine import choose_engine
from kernel_lib.errors import InputError
from kernel_lib.inference import tta
from kernel_lib.models import losses
from kernel_lib.models.base import Logits
from kernel_lib.training.validation import HeldOut, better, check, validate

SIZE, HEIGHT, WIDTH = 16, 32, 24
EXPERIMENT = Experiment(name="r")
LABELLED = Experiment(name="r", network="Classifier", label_weight=1.0)


class Copy(nn.Module):
    """Says what it sees: p = level / 255, nearly."""

    def forward(self, levels: torch.Tensor) -> Logits:
        return Logits(mask=torch.logit((levels.float() / 255).clamp(1e-6, 1 - 1e-6)))


def scores(
    images: np.ndarray, own_masks: list[np.ndarray], batch: int = 2,
    model: nn.Module | None = None, experiment: Experiment = EXPERIMENT,
) -> dict[str, float]:  # fmt: skip
    """Validate `Copy` on images (N, S, S); own_masks have the images' own geometry."""
    rows = list(range(len(images)))
    small = [(m[:: HEIGHT // SIZE, :][:, :SIZE] > 0).astype(np.uint8) for m in own_masks]
    truth = pd.DataFrame(
        {"rle": [rle.encode(m) for m in own_masks], "height": HEIGHT, "width": WIDTH}, index=rows
    )
    truth["image_id"] = [f"image{i}" for i in rows]
    truth["positive"] = [bool(m.any()) for m in own_masks]
    batches = [
        (torch.from_numpy(images[i : i + batch]).unsqueeze(1), torch.tensor(rows[i : i + batch]))
        for i in range(0, len(images), batch)
    ]
    return validate(
        model or Copy(), HeldOut(batches, small.__getitem__, truth), losses.build(experiment),
        tta.views("none"), choose_engine("cpu"),
    )  # fmt: skip


def half(on: bool) -> tuple[np.ndarray, np.ndarray]:
    """A map whose left half is sure, and the mask of the same half at the image's own geometry."""
    level_map = np.zeros((SIZE, SIZE), np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if on:
        level_map[:, : SIZE // 2] = 255
        mask[:, : WIDTH // 2] = 1
    return level_map, mask


def test_dice_is_a_mean_over_images_and_not_over_batches():
    images, masks = zip(*[half(on) for on in (True, False, True)], strict=True)
    perfect = scores(np.stack(images), list(masks))
    assert perfect["dice"] == perfect["dice_half"] == perfect["dice_nonempty"] == 1.0
    images, masks = zip(*[half(on) for on in (True, True, True)], strict=True)
    images = [images[0], images[1], np.zeros_like(images[2])]  # the third is missed
    for batch in (1, 2, 3):
        result = scores(np.stack(images), list(masks), batch)
        assert result["dice_half"] == pytest.approx(2 / 3)
        assert result["dice_nonempty"] == pytest.approx(2 / 3)


def test_dice_half_and_nonempty_by_hand():
    mask = half(True)[1]
    full = np.full((SIZE, SIZE), 200, np.uint8)  # both images called full
    result = scores(np.stack([full, full]), [mask, np.zeros_like(mask)])
    expected = 2 * 0.5 / (1 + 0.5)  # half of the image is right, all of it is predicted
    assert result["dice_half"] == pytest.approx(expected / 2)
    assert result["dice_nonempty"] == pytest.approx(expected)
    assert result["dice"] == pytest.approx(0.5)  # nothing anywhere is better than that


def test_the_search_beats_one_half_where_maps_are_faint():
    level_map, mask = half(True)
    result = scores(np.stack([level_map // 4, np.zeros_like(level_map)]), [mask, mask * 0])
    assert (result["dice"], result["dice_half"]) == (1.0, 0.5)


def test_without_any_mask_the_non_empty_dice_is_zero():
    level_map, mask = half(False)
    result = scores(level_map[None], [mask])
    assert (result["dice_nonempty"], result["dice"]) == (0.0, 1.0)


def test_the_loss_is_a_mean_over_images():
    images, masks = zip(*[half(on) for on in (True, False, True)], strict=True)
    images = [images[0], np.full_like(images[1], 128), images[2]]
    by_batch = [scores(np.stack(images), list(masks), batch)["val_loss"] for batch in (1, 2, 3)]
    assert by_batch == pytest.approx([by_batch[0]] * 3, rel=1e-5)


@pytest.mark.parametrize(
    ("monitor", "worse", "best"),
    [("epoch", 1, 2), ("dice", 0.1, 0.2), ("dice_half", 0.1, 0.2), ("dice_nonempty", 0.1, 0.2),
     ("val_loss", 0.2, 0.1)],
)  # fmt: skip
def test_more_dice_and_less_loss_is_better(monitor, worse, best):
    key = better(monitor)
    assert key(best) > key(worse)


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="MONITOR 'dise' is unknown; nearest: dice, dice_half"):
        better("dise")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"monitor": "auc"},
            "'auc' needs a label, which r does not give: epoch, dice, dice_half, ",
        ),
        ({"monitor": "dice_gated"}, "'dice_gated' needs a mask and label, which r does not give"),
        (
            {"network": "Classifier", "label_weight": 1.0, "monitor": "dice"},
            "'dice' needs a mask, which r does not give: epoch, auc, val_loss",
        ),
    ],
)
def test_a_metric_that_the_network_does_not_give_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        check(Experiment(name="r", **fields))


class Labelled(nn.Module):
    """As `Copy`, with the first pixel's level as its label, or that alone."""

    def __init__(self, mask: bool) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, levels: torch.Tensor) -> Logits:
        mask = Copy()(levels).mask
        return Logits(mask=mask if self.mask else None, label=mask[:, 0, 0, 0].clone())


def test_a_label_is_scored_beside_the_mask_and_gates_it():
    """The second map calls more than the first, wrongly; only the label knows that it is empty."""
    called, mask = half(True)
    images = np.stack([called, np.full_like(called, 255)])
    images[1, 0, 0] = 100
    masks = [mask, np.zeros_like(mask)]
    result = scores(images, masks, model=Labelled(True), experiment=LABELLED)
    assert result["auc"] == 1.0
    assert result["dice"] == pytest.approx(0.5)
    assert result["dice_gated"] == 1.0


def test_a_classifier_is_scored_by_its_label_alone():
    images = np.stack([half(True)[0], half(False)[0]])
    masks, how = [half(True)[1], half(False)[1]], {"model": Labelled(False)}
    result = scores(images, masks, experiment=LABELLED, **how)
    assert set(result) == {"val_loss", "auc"}
    assert result["auc"] == 1.0
    single = scores(images[:1], masks[:1], experiment=LABELLED, **how)
    assert single["auc"] == 0.5, "one kind of image says nothing"


class Overflowing(Labelled):
    """As `Labelled`, but what it says of images that end bright is no number."""

    def __init__(self, head: str, mask: bool) -> None:
        super().__init__(mask)
        self.head = head

    def forward(self, levels: torch.Tensor) -> Logits:
        given = super().forward(levels)
        getattr(given, self.head)[levels[:, 0, -1, -1] > 0] = torch.nan
        return given


@pytest.mark.parametrize(("head", "mask"), [("mask", True), ("label", True), ("label", False)])
@pytest.mark.parametrize("kinds", [(False, False, False), (True, True, True), (True, False, True)])
def test_no_score_is_made_of_what_is_no_number(head, mask, kinds):
    """Also where all images are of one kind, and no label would be looked at for the AUC."""
    images, masks = (list(each) for each in zip(*[half(on) for on in kinds], strict=True))
    images[1][-1, -1] = 1
    for batch in (1, 3):
        with pytest.raises(FloatingPointError, match=r"of image1 are .*PRECISION"):
            scores(np.stack(images), masks, batch, Overflowing(head, mask), LABELLED)
