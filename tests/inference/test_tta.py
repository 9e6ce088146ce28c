from __future__ import annotations

import pytest
import torch

from kernel_lib.errors import InputError
from kernel_lib.inference import tta


@pytest.mark.parametrize("name", tta.TTA)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 1, 6, 10)])
def test_every_view_has_its_exact_inverse(name, shape):
    torch.manual_seed(0)
    for x in (torch.randn(shape), torch.randint(0, 256, shape, dtype=torch.uint8)):
        for view in tta.views(name):
            assert torch.equal(view.inverse(view.forward(x)), x)
            assert torch.equal(view.forward(view.inverse(x)), x)


@pytest.mark.parametrize("name", tta.TTA)
def test_no_view_is_there_twice_and_the_first_is_the_image(name):
    x = torch.arange(16.0).view(1, 1, 4, 4)
    seen = [view.forward(x).flatten().tolist() for view in tta.views(name)]
    assert len({tuple(s) for s in seen}) == len(seen)
    assert seen[0] == x.flatten().tolist()


def test_hflip_turns_the_columns():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert tta.views("hflip")[1].forward(x).flatten().tolist() == [1, 0, 3, 2]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="TTA 'vflip' is none of none, hflip"):
        tta.views("vflip")
