"""A case: bytes or values, what the library is asked to do with them, and who knows better."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import click

from kernel_lib.errors import InputError
from tools.fuzz.corpus import Corpus

LIMIT_SECONDS = 10
# What the largest radiograph that is read takes, with room; a claim of 65,535 × 65,535 takes more.
LIMIT_BYTES = 1 << 30


class Outcome(Enum):
    REFUSED = "refused"
    RIGHT = "right"
    FAULT = "fault"


@dataclass(frozen=True)
class Case:
    """One input; `wrong` says what is wrong with a result, by an oracle, or None."""

    data: bytes  # what is kept of it if it is a fault
    attempt: Callable[[], Any]
    wrong: Callable[[Any], str | None]


@dataclass(frozen=True)
class Desk:
    """What a target works with: its random generator, real files, a folder of its own."""

    rng: random.Random
    corpus: Corpus
    folder: Path

    def put(self, name: str, data: bytes) -> Path:
        """Write a file of the case; returns its path."""
        path = self.folder / name
        path.write_bytes(data)
        return path


@dataclass(frozen=True)
class Target:
    """A reader that is tried; `share` of all cases are its own."""

    make: Callable[[Desk], Case]
    share: float


class Hang(BaseException):
    """A case took too long; no `except Exception` of a reader may take it for a damaged file."""


def desk_of(name: str, seed: int, index: int, corpus: Corpus, folder: Path) -> Desk:
    """Return the desk of a case: all that is random in it follows from name, seed and index."""
    return Desk(random.Random(f"{seed} {name} {index}"), corpus, folder)


def judge(case: Case) -> tuple[Outcome, str]:
    """Return the outcome of a case, and the fault."""
    before = _peak_bytes()
    try:
        with _limit():
            result = case.attempt()
    except (InputError, click.ClickException) as error:
        fault = _fault_of_refusal(error)
    except Hang:
        fault = f"not done after {LIMIT_SECONDS} s"
    except Exception as error:  # what a fuzzer is for
        fault = f"{type(error).__name__}: {error}"
    else:
        try:
            wrong = case.wrong(result)
        except Exception as error:  # a result that its oracle cannot even look at
            wrong = f"the oracle ends with {type(error).__name__}: {error}"
        return (Outcome.FAULT, f"wrong: {wrong}") if wrong else (Outcome.RIGHT, "")
    if fault is None and _peak_bytes() - before > LIMIT_BYTES:
        fault = f"{(_peak_bytes() - before) >> 20:,} MB were taken"
    return (Outcome.FAULT, fault) if fault else (Outcome.REFUSED, "")


def _fault_of_refusal(error: Exception) -> str | None:
    if not str(error).strip():
        return f"{type(error).__name__} without words"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"memory ran out: {error}"
        cause = cause.__cause__
    return None


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _limit() -> Iterator[None]:
    def over(signum, frame):
        raise Hang

    # Of the processor's time, so that a busy machine makes no fault; a case may also only wait.
    timers = {
        signal.SIGPROF: (signal.ITIMER_PROF, LIMIT_SECONDS),
        signal.SIGALRM: (signal.ITIMER_REAL, 2 * LIMIT_SECONDS),
    }
    before = {number: signal.signal(number, over) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
