"""How much of a session is left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Counts from its making to `max_hours`; without a limit there is always time."""

    def __init__(self, max_hours: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.max_hours = max_hours
        self._now = now
        self._start = now()

    def spent(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def left(self) -> float:
        """Seconds until the limit, infinite without one."""
        return float("inf") if self.max_hours is None else self.max_hours * 3600 - self.spent()

    def allows(self, seconds: float) -> bool:
        """Whether work of about that length can end well before the limit.

        Twice the estimate and a hundredth of the limit must be left: steps vary, and what was
        computed has still to be written.
        """
        if self.max_hours is None:
            return True
        return self.left() > 2 * seconds + 0.01 * self.max_hours * 3600
