"""Look-ups, and near names in errors: few, the best first, and found inside longer ones."""

from __future__ import annotations

import pytest

from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.registry import lookup, nearest

FEW = ("all", "nonempty", "hard")


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("nonemtpy", FEW, "nonempty"),
        ("zzz", FEW, "all, nonempty, hard"),
        ("", FEW, "all, nonempty, hard"),
        ("unet", EXPERIMENTS, "UNetResNet34_512_v1, UNetResNet34_512_v2, UNetResNet34_512_v3"),
        ("LITE", EXPERIMENTS, "lite0_256, lite0_384"),
        ("convnext_atto", ["convnextv2_atto", "tu-convnext_atto", "x"], None),
    ],
)
def test_near_names(name: str, known, expected: str | None):
    assert nearest(name, known) == (expected or "tu-convnext_atto, convnextv2_atto")


def test_of_many_names_three_are_listed_where_none_is_near():
    assert len(nearest("zzz", EXPERIMENTS).split(", ")) == 3


def test_a_name_is_looked_up_or_refused_with_the_nearest():
    assert lookup("loss", "dice", {"bce": 1, "dice": 2}) == 2
    with pytest.raises(InputError, match=r"^loss 'dise' is unknown; nearest: dice, see README$"):
        lookup("loss", "dise", {"bce": 1, "dice": 2}, ", see README")
