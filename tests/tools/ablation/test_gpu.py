import pytest

from kernel_lib.engine import choose_engine
from tools.ablation import arms, gpu

TINY = arms.BASELINE.differing(name="tiny", size=32, batch_size=2)


@pytest.mark.parametrize("deterministic", [False, True])
def test_speeds_are_of_steps_that_ran(deterministic):
    speed = gpu.images_per_second(TINY, choose_engine("cpu"), deterministic, warm_up=1, steps=1)
    assert 0 < speed < float("inf")
