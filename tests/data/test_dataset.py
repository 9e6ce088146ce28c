"""What an item is depends on (seed, epoch, image), and never on who makes it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from kernel_lib.data.dataset import PlainImages, TrainingImages, plain_loader, training_loader

SIZE, N = 32, 6


class FakePrepared:
    """The reader's interface over arrays that cannot be written to."""

    def __init__(self) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE), dtype=np.uint8)
        self.images.setflags(write=False)
        self.table = pd.DataFrame({"image_id": [f"image{i}" for i in range(N)]})

    def image(self, i: int) -> np.ndarray:
        return self.images[i]

    def mask(self, i: int) -> np.ndarray:
        return (self.images[i] > 127).astype(np.uint8)


def training_images(seed: int = 7, augmentation: str = "notes") -> TrainingImages:
    return TrainingImages(FakePrepared(), augmentation, seed)


def epoch(number: int, workers: int, seed: int = 7, batch: int = 2) -> torch.Tensor:
    """Images and masks (N, 2, S, S) of an epoch, in the rows' order."""
    keys = [(number, row, 0) for row in range(N)]
    batches = [keys[i : i + batch] for i in range(0, N, batch)]
    loader = training_loader(training_images(seed), batches, workers, pin=False)
    found = [(torch.cat([image, mask], 1), rows) for image, mask, rows in loader]
    assert torch.cat([rows for _, rows in found]).tolist() == list(range(N))
    return torch.cat([items for items, _ in found])


def test_an_item_is_an_image_a_mask_and_a_row():
    image, mask, row = training_images()[(3, 4, 0)]
    assert image.shape == mask.shape == (1, SIZE, SIZE)
    assert image.dtype == mask.dtype == torch.uint8
    assert mask.max() == 1
    assert row == 4
    image, mask, _ = training_images(augmentation="none")[(0, 2, 0)]
    assert np.array_equal(image[0].numpy(), FakePrepared().image(2))
    assert np.array_equal(mask[0].numpy(), FakePrepared().mask(2))


def test_an_image_shown_twice_in_an_epoch_looks_different():
    images = training_images()
    first, again = images[(0, 2, 0)][0], images[(0, 2, 1)][0]
    assert not torch.equal(first, again)
    assert torch.equal(again, images[(0, 2, 1)][0])


def test_workers_make_the_same_items_and_do_not_repeat_epochs():
    own = [epoch(number, workers=0) for number in range(2)]
    loaded = [epoch(number, workers=2) for number in range(2)]
    assert all(map(torch.equal, own, loaded))
    assert not torch.equal(loaded[0], loaded[1])


def test_batches_and_order_do_not_matter_and_seeds_do():
    assert torch.equal(epoch(1, 0, batch=2), epoch(1, 0, batch=5))
    images = training_images()
    late = images[(1, 3, 0)]
    images[(0, 1, 0)]
    assert torch.equal(images[(1, 3, 0)][0], late[0])
    assert not torch.equal(epoch(0, 0, seed=7), epoch(0, 0, seed=8))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_generators_alone(workers):
    """Dropout draws from them: a resumed run makes one loader more, and must not drop others."""
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    epoch(0, workers)
    list(plain_loader(PlainImages(FakePrepared(), range(N)), 4, workers, pin=False))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_plain_images_come_once_in_order_the_last_batch_short():
    rows = np.array([5, 0, 3])
    loader = plain_loader(PlainImages(FakePrepared(), rows), 2, 0, pin=False)
    batches = list(loader)
    assert [b[1].tolist() for b in batches] == [[5, 0], [3]]
    assert [b[0].shape for b in batches] == [(2, 1, SIZE, SIZE), (1, 1, SIZE, SIZE)]
    assert np.array_equal(batches[1][0][0, 0].numpy(), FakePrepared().image(3))
    batches[0][0].zero_()  # a tensor of its own, not the read-only cache
