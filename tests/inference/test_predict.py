"""The rule of the map: views as logits, models as probabilities, then levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kernel_lib.artifacts import maps
from kernel_lib.engine import choose_engine
from kernel_lib.inference import tta
from kernel_lib.inference.predict import mean_logits, predict
from kernel_lib.models.networks import Logits

CPU = choose_engine("cpu")
IDS = [f"image{i}" for i in range(15)]


class Ramp(nn.Module):
    """Logits that depend on level and column, so that a flip is seen."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, levels: torch.Tensor) -> Logits:
        assert not self.training
        columns = torch.linspace(-2, 2, levels.shape[-1])
        return Logits(mask=self.factor * (levels.float() / 128 - 1) + columns)


def images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator())


def batched(levels: torch.Tensor, size: int, first_row: int = 0):
    for start in range(0, len(levels), size):
        rows = torch.arange(start, min(start + size, len(levels))) + first_row
        yield levels[start : start + size], rows


def test_views_are_averaged_as_logits():
    levels = images(2)
    model = Ramp(1.0).eval()
    logits = mean_logits(model, levels, tta.views("hflip"), CPU).mask
    expected = (model(levels).mask + model(levels.flip(-1)).mask.flip(-1)) / 2
    torch.testing.assert_close(logits, expected)
    # The column's share cancels: what is left is the flip-free part.
    torch.testing.assert_close(logits, levels.float() / 128 - 1)


def test_models_are_averaged_as_probabilities_and_then_rounded():
    levels = images(3)
    models = [Ramp(1.0), Ramp(5.0)]
    found = dict(predict(models, batched(levels, 2), tta.views("none"), CPU, IDS))
    probs = [torch.sigmoid(m(levels).mask) for m in models]
    expected = maps.quantise(((probs[0] + probs[1]) / 2).squeeze(1).numpy())
    assert list(found) == [0, 1, 2]
    assert all(np.array_equal(found[i].levels, expected[i]) for i in found)
    assert all(m.dtype == np.uint8 and m.shape == (8, 8) for m, _ in found.values())


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_batches_do_not_matter_and_rows_are_kept(size):
    levels = images(5)
    found = dict(predict([Ramp(2.0)], batched(levels, size, 10), tta.views("hflip"), CPU, IDS))
    whole = dict(predict([Ramp(2.0)], batched(levels, 5, 10), tta.views("hflip"), CPU, IDS))
    assert list(found) == list(range(10, 15))
    assert all(np.array_equal(found[i].levels, whole[i].levels) for i in found)


def test_it_streams():
    """A batch is asked for when its maps are, so that no test set has to fit into memory."""
    asked = []

    def batches():
        for number, batch in enumerate(batched(images(6), 2)):
            asked.append(number)
            yield batch

    stream = predict([Ramp(1.0)], batches(), tta.views("none"), CPU, IDS)
    assert asked == []
    next(stream)
    assert asked == [0]


def test_no_gradient_is_kept_and_training_mode_is_left():
    model = nn.Sequential(Ramp(1.0)).train()
    list(predict([model], batched(images(1), 1), tta.views("none"), CPU, IDS))
    assert not model.training


class Labelled(nn.Module):
    """A label from the left column, with a mask or, as a classifier, without."""

    def __init__(self, factor: float, mask: bool) -> None:
        super().__init__()
        self.factor, self.mask = factor, mask

    def forward(self, levels: torch.Tensor) -> Logits:
        label = self.factor * (levels[..., 0].float().mean(dim=(1, 2)) / 128 - 1)
        return Logits(mask=levels.float() / 128 - 1 if self.mask else None, label=label)


@pytest.mark.parametrize("mask", [True, False])
def test_labels_are_averaged_as_maps_are(mask):
    levels = images(3)
    models = [Labelled(1.0, mask), Labelled(5.0, mask)]
    found = dict(predict(models, batched(levels, 2), tta.views("hflip"), CPU, IDS))
    per_model = [(m(levels).label + m(levels.flip(-1)).label) / 2 for m in models]
    expected = torch.stack([torch.sigmoid(logits) for logits in per_model]).mean(0)
    assert [p.label for p in found.values()] == pytest.approx(expected.tolist())
    assert all((p.levels is not None) == mask for p in found.values())


class Overflowing(nn.Module):
    """NaN, in map or label, of images whose first pixel is bright; 0 elsewhere."""

    def __init__(self, head: str, mask: bool) -> None:
        super().__init__()
        self.head, self.mask = head, mask

    def forward(self, levels: torch.Tensor) -> Logits:
        bright = levels[:, 0, 0, 0] > 128
        broken = torch.where(bright, torch.nan, 0.0)
        mask = torch.zeros(levels.shape)
        mask[:, 0, 3, 3] = broken if self.head == "mask" else 0.0
        label = broken if self.head == "label" else torch.zeros(len(levels))
        return Logits(mask=mask if self.mask else None, label=label)


@pytest.mark.parametrize(("head", "mask"), [("mask", True), ("label", True), ("label", False)])
def test_a_map_or_a_label_that_is_no_number_stops_it_with_its_images_named(head, mask):
    levels = torch.zeros((5, 1, 8, 8), dtype=torch.uint8)
    levels[[2, 4]] = 255
    models = [Overflowing("none", mask), Overflowing(head, mask)]
    stream = predict(models, batched(levels, 2, 10), tta.views("none"), CPU, IDS)
    assert [next(stream)[0], next(stream)[0]] == [10, 11], "the batch before is good"
    words = r"probabilities of image12 are not numbers: .*-p PRECISION float32"
    with pytest.raises(FloatingPointError, match=words):
        next(stream)
    words = r"probabilities of image12, image14 are not numbers"
    with pytest.raises(FloatingPointError, match=words):
        list(predict(models, batched(levels, 5, 10), tta.views("hflip"), CPU, IDS))


def test_scales_that_round_to_one_size_are_one_look():
    levels = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    looked = []

    class Counting(Ramp):
        def forward(self, levels: torch.Tensor) -> Logits:
            looked.append(tuple(levels.shape[2:]))
            return super().forward(levels)

    mean_logits(Counting(1.0).eval(), levels, tta.views("multiscale"), CPU)
    assert looked == [(32, 32)]  # ×0.75 and ×1.25 are nearest to 32 as well
