"""Augmentations are a function of the seed, and keep image and mask together."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from kernel_lib.data import augment
from kernel_lib.errors import InputError

SIZE = 48


def image_and_mask() -> tuple[np.ndarray, np.ndarray]:
    """An image whose bright part is the mask, so that the two are seen to stay together."""
    y, x = np.mgrid[:SIZE, :SIZE]
    mask = ((y - 15) ** 2 + (x - 30) ** 2 < 81).astype(np.uint8)
    return (40 + 160 * mask + (x % 5)).astype(np.uint8), mask


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_only_the_seed_decides(name):
    first, other = augment.Augment(name), augment.Augment(name)
    spawned = pickle.loads(pickle.dumps(first))
    for seed in (0, 7, 2**32 - 1):
        np.random.seed(1)
        wanted = first(*image_and_mask(), seed)
        first(*image_and_mask(), 99)  # calls between do not matter, nor do global generators
        np.random.seed(2)
        for augmentation in (first, other, spawned):
            repeated = augmentation(*image_and_mask(), seed)
            assert all(np.array_equal(a, b) for a, b in zip(wanted, repeated, strict=True))
    if name == "none":
        assert all(map(np.array_equal, wanted, image_and_mask()))


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_image_and_mask_move_together_by_the_seed_and_are_not_written_to(name):
    augmentation, made = augment.Augment(name), set()
    given = image_and_mask()
    for array in given:
        array.setflags(write=False)
    for seed in range(60):
        image, mask = augmentation(*given, seed)
        assert image.shape == mask.shape == (SIZE, SIZE)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}
        # Blur and interpolation touch only the rim.
        assert np.mean((image > 130) == (mask > 0)) > 0.97
        made.add(image.tobytes())
    assert len(made) > 25 or name in ("hflip", "none")
    assert np.array_equal(given[0], image_and_mask()[0])


def test_each_of_the_notes_groups_acts_on_its_own():
    """Each of three groups has a chance of 0.5, so an eighth of the items stays as it is."""
    augmentation, given = augment.Augment("notes"), image_and_mask()
    n, same, moved = 400, 0, 0
    for seed in range(n):
        image, mask = augmentation(*given, seed)
        same += np.array_equal(image, given[0])
        moved += not np.array_equal(mask, given[1])
    assert 0.08 < same / n < 0.25  # an eighth, and full turns and faint changes
    assert 0.45 < moved / n < 0.75  # a flip or turn (a half, less full turns), or a perspective


def test_an_item_s_seed_depends_on_seed_epoch_and_image():
    keys = [(s, e, i) for s in (1, 2) for e in (1, 2, 12) for i in ("a", "2/a", "1/a")]
    seeds = {augment.item_seed(*key) for key in keys}
    assert len(seeds) >= len(keys) - 2
    assert all(0 <= s < 2**32 for s in seeds)
    # Frozen: another number here is another training on every machine.
    assert augment.item_seed(3456, 0, "image0") == 1600692171


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="AUGMENT 'note' is unknown; nearest: notes"):
        augment.Augment("note")
