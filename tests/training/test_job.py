from __future__ import annotations

import pytest

from kernel_lib.errors import InputError
from kernel_lib.training.job import Clock


class Now:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_without_a_limit_there_is_always_time():
    assert Clock(None).allows(1e12)


def test_it_looks_ahead_by_twice_the_work_and_a_hundredth_of_the_limit():
    now = Now()
    clock = Clock(1.0, now)
    assert clock.left() == 3600
    now.seconds += 3600 - 136 - 1e-6
    assert clock.allows(50)
    now.seconds += 1
    assert not clock.allows(50)


def test_work_that_no_session_can_hold_is_an_error_and_not_a_stop():
    now = Now()
    clock = Clock(0.01, now)  # 36 s
    assert clock.allows_uninterrupted(17, "scoring")
    now.seconds += 10
    assert not clock.allows_uninterrupted(17, "scoring"), "the next session holds it"
    with pytest.raises(InputError, match=r"0\.01 is too short for scoring, about 30 s.*0\.03"):
        clock.allows_uninterrupted(30, "scoring")


def test_the_least_it_asks_for_is_enough():
    for seconds in (1, 20, 100, 5000):
        with pytest.raises(InputError) as caught:
            Clock(1e-6).allows_uninterrupted(seconds, "scoring")
        least = float(str(caught.value).split("give ")[1].split(" ")[0])
        assert Clock(least).allows_uninterrupted(seconds, "scoring")
