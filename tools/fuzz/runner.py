"""Runs a target in a process of its own, so that a crash or a hang is a fault like others."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from tools.fuzz.case import LIMIT_SECONDS, Outcome, Target, desk_of, judge
from tools.fuzz.corpus import Corpus

# Beyond what the process has when it starts: so that a fault takes itself down, not the machine.
ROOM_BYTES = 6 << 30
POLL_SECONDS = 1.0
MAX_KEPT = 25  # faults of a target that are written; more would be the same few


@dataclass
class Tally:
    """What a target's cases came to."""

    name: str
    cases: int = 0
    refused: int = 0
    right: int = 0
    faults: list[str] = field(default_factory=list)  # "index: what"
    seconds: float = 0.0


def run(name: str, target: Target, indices: range, seed: int, corpus: Corpus, kept: Path) -> Tally:
    """Try the target's cases of these indices; faulting inputs are written to the folder."""
    tally = Tally(name)
    start = time.monotonic()
    left = indices
    fork = multiprocessing.get_context("fork")
    while len(left):
        counts = fork.RawArray("q", [left.start, 0, 0])  # index at work, refused, right
        faults = fork.SimpleQueue()
        child = fork.Process(
            target=_work, args=(name, target, left, seed, corpus, kept, counts, faults)
        )
        child.start()
        hung = _watch(child, counts)
        while not faults.empty():
            tally.faults.append(faults.get())
        at, refused, right = counts
        tally.refused, tally.right = tally.refused + refused, tally.right + right
        if child.exitcode == 0:
            break
        what = "hung in foreign code" if hung else f"the process died ({child.exitcode})"
        tally.faults.append(f"{at}: {what}")
        _keep(kept, name, target, seed, at, corpus, what)
        left = range(at + 1, left.stop)
    tally.cases = len(indices)
    tally.seconds = time.monotonic() - start
    return tally


def _watch(child, counts) -> bool:
    """Wait for the child's end; True where it stood at one case and was killed."""
    at, since = counts[0], time.monotonic()
    while child.exitcode is None:
        child.join(POLL_SECONDS)
        if counts[0] != at:
            at, since = counts[0], time.monotonic()
        elif time.monotonic() - since > 3 * LIMIT_SECONDS:
            child.kill()
            child.join()
            return True
    return False


def _work(name, target, indices, seed, corpus, kept, counts, faults) -> None:
    be_quiet()
    limit_memory()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for index in indices:
            counts[0] = index
            case = target.make(desk_of(name, seed, index, corpus, Path(folder)))
            outcome, what = judge(case)
            if outcome is Outcome.REFUSED:
                counts[1] += 1
            elif outcome is Outcome.RIGHT:
                counts[2] += 1
            else:
                faults.put(f"{index}: {what}"[:500])
                write_fault(kept, name, seed, index, what, case.data)


def write_fault(kept: Path, name: str, seed: int, index: int, what: str, data: bytes) -> None:
    """Keep a faulting input and, beside it, what is wrong and the command that repeats it."""
    kept.mkdir(parents=True, exist_ok=True)
    stem = kept / f"{name}-{seed}-{index}"
    if len(list(kept.glob(f"{name}-*.txt"))) >= MAX_KEPT:
        return
    stem.with_suffix(".bin").write_bytes(data)
    again = f"python -m tools.fuzz --target {name} --seed {seed} --case {index}"
    stem.with_suffix(".txt").write_text(f"{what}\n{again}\n", encoding="utf-8", errors="replace")


def _keep(kept: Path, name: str, target: Target, seed: int, index: int, corpus, what: str) -> None:
    """Make a case again that took its process with it, to write it down."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        case = target.make(desk_of(name, seed, index, corpus, Path(folder)))
        write_fault(kept, name, seed, index, what, case.data)


def be_quiet() -> None:
    """Hide warnings of Python and C: readers warn of most damaged files."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def limit_memory() -> None:
    """Let allocations beyond a few gigabytes fail, instead of the machine."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM_BYTES, hard))
