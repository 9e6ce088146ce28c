"""Near names in errors: few, the best first, and found inside longer ones."""

from __future__ import annotations

import pytest

from kernel_lib.errors import nearest
from kernel_lib.experiments import EXPERIMENTS

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
