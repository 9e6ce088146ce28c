"""Views as logits, models as probabilities, then levels; and what stops an archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kernel_lib.artifacts import maps
from kernel_lib.artifacts.maps import Maps
from kernel_lib.engine import choose_engine
from kernel_lib.errors import InputError
from kernel_lib.inference import predictions, tta
from kernel_lib.inference.predictions import mean_logits
from kernel_lib.models.base import Logits
from tests.training.test_loop import FakePrepared, tiny

CPU = choose_engine("cpu")
IDS = [f"image{i}" for i in range(15)]
META = {"run": "tiny_seed7", "fold": 0, "tta": "none"}


class Network(nn.Module):
    """A network of any function from levels to logits."""

    def __init__(self, heads: Callable[[torch.Tensor], Logits]) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, levels: torch.Tensor) -> Logits:
        assert not self.training
        return self.heads(levels)


def ramp(factor: float) -> nn.Module:
    """Logits that depend on level and column, so that a flip is seen."""

    def heads(levels: torch.Tensor) -> Logits:
        columns = torch.linspace(-2, 2, levels.shape[-1])
        return Logits(mask=factor * (levels.float() / 128 - 1) + columns)

    return Network(heads).eval()


def labelled(factor: float, mask: bool) -> nn.Module:
    """A label from the left column, with a mask or, as a classifier, without."""

    def heads(levels: torch.Tensor) -> Logits:
        label = factor * (levels[..., 0].float().mean(dim=(1, 2)) / 128 - 1)
        return Logits(mask=levels.float() / 128 - 1 if mask else None, label=label)

    return Network(heads).eval()


def overflowing(head: str, mask: bool) -> nn.Module:
    """NaN, in map or label, of images whose first pixel is bright; 0 elsewhere."""

    def heads(levels: torch.Tensor) -> Logits:
        broken = torch.where(levels[:, 0, 0, 0] > 128, torch.nan, 0.0)
        logits = torch.zeros(levels.shape)
        logits[:, 0, 3, 3] = broken if head == "mask" else 0.0
        label = broken if head == "label" else torch.zeros(len(levels))
        return Logits(mask=logits if mask else None, label=label)

    return Network(heads)


def constant(label: float) -> nn.Module:
    return Network(lambda levels: Logits(mask=None, label=torch.full((len(levels),), label)))


def exhausting(levels: torch.Tensor) -> Logits:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator())


def batched(levels: torch.Tensor, size: int, first_row: int = 0):
    rows = torch.arange(len(levels)) + first_row
    yield from zip(levels.split(size), rows.split(size), strict=True)


def predicted(models, levels: torch.Tensor, size: int, views: str, first_row: int = 0) -> dict:
    batches = batched(levels, size, first_row)
    return dict(predictions.predict(models, batches, tta.views(views), CPU, IDS))


def test_views_are_averaged_as_logits():
    levels = images(2)
    model = ramp(1.0)
    logits = mean_logits(model, levels, tta.views("hflip"), CPU).mask
    expected = (model(levels).mask + model(levels.flip(-1)).mask.flip(-1)) / 2
    torch.testing.assert_close(logits, expected)
    # The column's share cancels: what is left is the flip-free part.
    torch.testing.assert_close(logits, levels.float() / 128 - 1)


def test_models_are_averaged_as_probabilities_and_then_rounded():
    levels = images(3)
    models = [ramp(1.0), ramp(5.0)]
    results = predicted(models, levels, 2, "none")
    probs = [torch.sigmoid(m(levels).mask) for m in models]
    expected = maps.quantise(((probs[0] + probs[1]) / 2).squeeze(1).numpy())
    assert list(results) == [0, 1, 2]
    assert all(np.array_equal(results[i].levels, expected[i]) for i in results)
    assert all(m.dtype == np.uint8 and m.shape == (8, 8) for m, *_ in results.values())


@pytest.mark.parametrize("mask", [True, False])
def test_labels_are_averaged_as_maps_are(mask):
    levels = images(3)
    models = [labelled(1.0, mask), labelled(5.0, mask)]
    results = predicted(models, levels, 2, "hflip")
    per_model = [(m(levels).label + m(levels.flip(-1)).label) / 2 for m in models]
    expected = torch.stack([torch.sigmoid(logits) for logits in per_model]).mean(0)
    assert [p.label for p in results.values()] == pytest.approx(expected.tolist())
    assert all((p.levels is not None) == mask for p in results.values())


def test_the_views_disagreement_is_of_their_probabilities_and_the_mean_of_models():
    levels = images(3)
    models = [ramp(1.0), ramp(5.0)]
    results = predicted(models, levels, 2, "hflip")
    per_model = [
        tta.disagreement(
            [torch.sigmoid(m(levels).mask), torch.sigmoid(m(levels.flip(-1)).mask).flip(-1)]
        )
        for m in models
    ]
    expected = torch.stack(per_model).mean(dim=(0, 2)).tolist()
    assert [p.disagreement for p in results.values()] == pytest.approx(expected)
    assert min(expected) > 0.01
    for given, views in ((models, "none"), ([labelled(1.0, mask=False)], "hflip")):
        results = predicted(given, levels, 2, views)
        assert [p.disagreement for p in results.values()] == [None] * 3
    same = predicted([labelled(1.0, mask=True)], levels, 2, "flips")
    assert [p.disagreement for p in same.values()] == [0.0] * 3


@pytest.mark.parametrize("size", [1, 2, 9])
def test_batches_do_not_matter_and_rows_are_kept(size):
    levels = images(5)
    results = predicted([ramp(2.0)], levels, size, "hflip", 10)
    together = predicted([ramp(2.0)], levels, 5, "hflip", 10)
    assert list(results) == list(range(10, 15))
    assert all(np.array_equal(results[i].levels, together[i].levels) for i in results)
    assert all(results[i].disagreement == together[i].disagreement for i in results)


def test_it_streams_and_leaves_training_mode():
    """A batch is asked for when its maps are, so that no test set has to fit into memory."""
    asked = []

    def batches():
        for number, batch in enumerate(batched(images(6), 2)):
            asked.append(number)
            yield batch

    model = nn.Sequential(ramp(1.0)).train()
    stream = predictions.predict([model], batches(), tta.views("none"), CPU, IDS)
    assert asked == []
    next(stream)
    assert asked == [0]
    assert not model.training


@pytest.mark.parametrize(("head", "mask"), [("mask", True), ("label", True), ("label", False)])
def test_a_map_or_a_label_that_is_no_number_stops_it_with_its_images_named(head, mask):
    levels = torch.zeros((5, 1, 8, 8), dtype=torch.uint8)
    levels[[2, 4]] = 255
    models = [overflowing("none", mask), overflowing(head, mask)]
    stream = predictions.predict(models, batched(levels, 2, 10), tta.views("none"), CPU, IDS)
    assert [next(stream)[0], next(stream)[0]] == [10, 11], "the batch before is good"
    with pytest.raises(FloatingPointError, match=r"image12 are .*-p PRECISION float"):
        next(stream)
    with pytest.raises(FloatingPointError, match="image12, image14 are"):
        predicted(models, levels, 5, "hflip", 10)


def test_scales_that_round_to_one_size_are_one_look():
    levels = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    model, seen = ramp(1.0), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
    mean_logits(model, levels, tta.views("multiscale"), CPU)
    assert seen == [(32, 32)]  # ×0.75 and ×1.25 are nearest to 32 as well


def write(
    target: Path,
    model: nn.Module,
    batch_size: int | None = None,
    trained: int = 2,
    held_out: bool = False,
    views: str = "none",
) -> None:
    given = predictions.Images(FakePrepared(), range(7, 10), CPU, 0, batch_size)
    meta = META | {"tta": views}
    predictions.write(target, [model], tiny(batch_size=trained), given, meta, held_out=held_out)


def test_a_label_that_is_no_number_leaves_no_archive_and_names_the_images(tmp_path):
    target = tmp_path / "oof.zip"
    with pytest.raises(FloatingPointError, match="image7, image8, image9 are"):
        write(target, constant(float("nan")))
    assert list(tmp_path.iterdir()) == []
    write(target, constant(0.0))
    assert [Maps(target).label(f"image{i}") for i in (7, 8, 9)] == [0.5] * 3


@pytest.mark.parametrize(
    ("batch_size", "trained", "held_out", "words"),
    [
        (None, 4, True, "BATCH_SIZE 4, ACCUMULATE 2: -p BATCH_SIZE 2 -p ACCUMULATE 4, the same"),
        (None, 5, True, "BATCH_SIZE 5, ACCUMULATE 2: -p BATCH_SIZE 2 -p ACCUMULATE 5, the same"),
        (None, 4, False, "BATCH_SIZE 8: -p BATCH_SIZE 4; or"),
        (3, 4, False, "BATCH_SIZE 3: -p BATCH_SIZE 1; or"),
    ],
)
def test_a_full_memory_names_the_training_s_batch_size_for_held_out_images_else_its_own(
    tmp_path, batch_size, trained, held_out, words
):
    with pytest.raises(InputError, match=f"full at SIZE 32, {words}"):
        write(tmp_path / "x.zip", Network(exhausting), batch_size, trained, held_out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("views", "known"), [("none", False), ("hflip", True)])
def test_an_archive_has_the_views_disagreement_if_there_are_several(tmp_path, views, known):
    write(tmp_path / "oof.zip", ramp(1.0), views=views)
    archive = Maps(tmp_path / "oof.zip")
    assert [archive.disagreement(i) is not None for i in archive.ids] == [known] * 3
