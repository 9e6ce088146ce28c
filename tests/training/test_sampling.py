from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from kernel_lib.training import sampling


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 5))
def test_every_image_is_in_one_batch_of_one_group(n, batch_size, accumulate):
    order = np.random.default_rng(n).permutation(n)
    batches = sampling.batches(order, batch_size)
    assert np.concatenate(batches).tolist() == order.tolist()
    assert max(map(len, batches)) <= (3 if batch_size == 2 else batch_size)
    if n > 1 and batch_size > 1:
        assert min(map(len, batches)) >= 2  # batch norm needs company
    groups = sampling.groups(batches, accumulate)
    assert [len(b) for g in groups for b in g] == [len(b) for b in batches]
    assert all(len(g) == accumulate for g in groups[:-1])


def test_the_order_depends_on_seed_and_epoch_alone():
    rows = list(range(50))
    one = sampling.epoch_order("all", rows, seed=3, epoch=4)
    np.random.rand(7)
    assert sampling.epoch_order("all", rows, 3, 4).tolist() == one.tolist()
    assert sorted(one.tolist()) == rows
    for other in ((4, 4), (3, 5)):
        assert sampling.epoch_order("all", rows, *other).tolist() != one.tolist()


def test_an_unknown_sampler_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'everything' is none of all"):
        sampling.check("everything")
