"""Kaggle's limits as numbers; how long a stage may take, and what of a session is left.

Source of each unless said: Kaggle's documentation of notebooks (kaggle.com/docs/notebooks,
technical specifications) and its users' reports, as of autumn 2026; an account's own hours are
what `kaggle quota` prints. The number of output files has no limit: the command line fetched the
first 500 before version 2.2.2 (kaggle-cli, issues 463 and 1045), and pages through all since.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kernel_lib.kaggle import paths

GPU_HOURS_A_WEEK = 30.0  # an hour of two T4 costs one; reset Saturday 00:00 UTC
SESSION_HOURS = 12.0  # "the maximum notebook runtime": competitions submit --help, kaggle-cli 2.2.5
SHORT_SESSION_HOURS = 9.0  # where a code competition says so; reported for some accounts too
GPU_SESSIONS = 2  # at once
OUTPUT_BYTES = 20 * 10**9  # in the working folder
MEMORY_BYTES = 30 * 10**9  # of a session, with 4 cores
WARN_FROM = 0.8  # share of a limit from which it is worth a word
RESERVE_HOURS = 0.5  # for saving, predicting the last batch, and Kaggle's own collecting
_SATURDAY = 5  # as datetime.weekday counts


@dataclass(frozen=True)
class Usage:
    """The size of a folder: bytes and files."""

    bytes: int
    files: int


def usage(folder: Path) -> Usage:
    """Return the size of all below a folder, links not followed; 0 for a folder that is missing."""
    n_bytes = n_files = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                n_bytes += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # removed meanwhile
                continue
            n_files += 1
    return Usage(n_bytes, n_files)


def session_seconds(proc: Path = Path("/proc")) -> float | None:
    """Return seconds since the first process of this machine or container; None where unknown.

    On Kaggle a session is a container of its own: the time before the kernel's first line counts.
    """
    try:
        # The name in brackets may contain blanks; the 22nd field is the start in ticks after boot.
        fields = (proc / "1" / "stat").read_text().rpartition(")")[2].split()
        up = float((proc / "uptime").read_text().split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return None


def session_hours() -> float:
    """Return how long this session may last, which is less in a code competition's rerun."""
    rerun = os.environ.get("KAGGLE_IS_COMPETITION_RERUN")
    return SHORT_SESSION_HOURS if rerun else SESSION_HOURS


def week_ends(now: datetime | None = None) -> datetime:
    """Return when the GPU quota is full again: the first Saturday, 00:00 UTC, after `now`."""
    now = (now or datetime.now(UTC)).astimezone(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=(_SATURDAY - now.weekday() - 1) % 7 + 1)


def sessions_for(hours: float, usable_hours: float) -> int:
    """Return the number of sessions, at least 1, for work that can be interrupted anywhere.

    Raises: ValueError where a session has no usable time.
    """
    if usable_hours <= 0:
        raise ValueError(f"a session with {usable_hours} usable hours holds no work")
    return max(1, math.ceil(hours / usable_hours - 1e-9))


def max_hours(given: float | None) -> float | None:
    """Return MAX_HOURS as given; without it, on Kaggle, what its session has left, else no limit.

    A session that is cut off keeps what was written, but a stop in time also predicts and reports.
    """
    if given is not None or not paths.on_kaggle():
        return given
    return session_hours() - RESERVE_HOURS - _spent_hours()


def say_hours_left(work: Path) -> None:
    """Print hours and disk left, and a warning where outputs near Kaggle's limit."""
    if not paths.on_kaggle():
        return
    used, left = usage(work), session_hours() - _spent_hours()
    output = f"{used.bytes / 1e9:.1f} GB of {OUTPUT_BYTES / 1e9:.1f} GB"
    print(
        f"session: {left:.1f} of {session_hours():g} h left; {output} (files: {used.files}) in "
        f"{work}"
    )
    if used.bytes > WARN_FROM * OUTPUT_BYTES:
        print(
            f"warning: {output} of output: lower KEEP, or train fewer folds in one kernel (-p FOLD)"
        )


def _spent_hours() -> float:
    spent = (session_seconds() or 0.0) / 3600
    # A first process older than any session is no session's: this is a rehearsal.
    return spent if spent < session_hours() - RESERVE_HOURS else 0.0
