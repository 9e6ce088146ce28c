from __future__ import annotations

from kernel_lib.training.clock import Clock


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
