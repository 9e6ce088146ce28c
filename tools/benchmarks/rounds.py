"""Works timed turn and turn about, and the line that says what came of it."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

ROUNDS = 5
FIGURE = re.compile(r"^(.+?): (.+?), (.+): (.+?) \(bar: (.+)\)$")  # what, ours, against, ratio


class Timed:
    """Seconds of each work by name, a round after the other."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self._seconds = seconds

    def __contains__(self, name: str) -> bool:
        return name in self._seconds

    def rounds(self, name: str) -> np.ndarray:
        """Return seconds (R,) of each round."""
        return np.array(self._seconds[name])

    def seconds(self, name: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self._seconds[name])

    def times_faster(self, ours: str, other: str) -> float:
        """Return the median of the rounds' ratios of the other's time to this one's."""
        pairs = zip(self._seconds[ours], self._seconds[other], strict=True)
        return statistics.median(theirs / our for our, theirs in pairs)


def timed(works: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> Timed:
    """Run all works in every round, so that a noisy machine slows them alike.

    A first round warms up and does not count: imports, thread pools, the disk's cache.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for at in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if at:
                seconds[name].append(time.perf_counter() - began)
    return Timed(seconds)


def figure(what: str, ours: str, against: str, ratio: str, bar: str = "none") -> None:
    """Print a figure in the form that `python -m tools.benchmarks` gathers into its table.

    No comma in `ours`, no colon in `what`.
    """
    line = f"{what}: {ours}, {against}: {ratio} (bar: {bar})"
    if not FIGURE.match(line):
        raise ValueError(f"no figure: {line!r}")
    print(line, flush=True)
