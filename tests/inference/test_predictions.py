"""Archives of maps: what stops one, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kernel_lib.artifacts.maps import Maps
from kernel_lib.engine import choose_engine
from kernel_lib.errors import InputError
from kernel_lib.inference import predictions
from kernel_lib.models.networks import Logits
from tests.training.test_loop import FakePrepared, tiny

META = {"run": "tiny_seed7", "fold": 0, "tta": "none"}


class Classifier(nn.Module):
    """The same label of every image."""

    def __init__(self, label: float, full: bool = False) -> None:
        super().__init__()
        self.label, self.full = label, full

    def forward(self, levels: torch.Tensor) -> Logits:
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return Logits(mask=None, label=torch.full((len(levels),), self.label))


def write(
    target: Path, model: nn.Module, batch_size: int | None = None, trained: int = 2,
    held_out: bool = False,
) -> None:  # fmt: skip
    images = predictions.Images(FakePrepared(), range(7, 10), choose_engine("cpu"), 0, batch_size)
    predictions.write(target, [model], tiny(batch_size=trained), images, META, held_out=held_out)


def test_a_label_that_is_no_number_leaves_no_archive_and_names_the_images(tmp_path):
    target = tmp_path / "oof.zip"
    words = "probabilities of image7, image8, image9 are not numbers: .*-p PRECISION float32"
    with pytest.raises(FloatingPointError, match=words):
        write(target, Classifier(float("nan")))
    assert list(tmp_path.iterdir()) == []
    write(target, Classifier(0.0))
    assert [Maps(target).label(f"image{i}") for i in (7, 8, 9)] == [0.5] * 3


@pytest.mark.parametrize(("size", "mend"), [(4, "2 -p ACCUMULATE 4"), (5, "2 -p ACCUMULATE 5")])
def test_a_full_memory_names_the_training_s_values_where_images_are_held_out(tmp_path, size, mend):
    words = rf"full at SIZE 32, BATCH_SIZE {size}, ACCUMULATE 2: -p BATCH_SIZE {mend}, the same opt"
    with pytest.raises(InputError, match=words):
        write(tmp_path / "oof.zip", Classifier(0.0, full=True), trained=size, held_out=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "now", "mend"), [(None, 8, 4), (3, 3, 1)])
def test_a_full_memory_names_the_prediction_s_own_batch_where_images_are_test_images(
    tmp_path, given, now, mend
):
    with pytest.raises(InputError, match=rf"SIZE 32, BATCH_SIZE {now}: -p BATCH_SIZE {mend}; or"):
        write(tmp_path / "test.zip", Classifier(0.0, full=True), given, trained=4)
    assert list(tmp_path.iterdir()) == []
