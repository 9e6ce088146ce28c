"""Kaggle's limits as numbers, and how much of a session is left: hours and disk.

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

GPU_HOURS_A_WEEK = 30.0  # an hour of two T4 costs one; reset Saturday 00:00 UTC
SESSION_HOURS = 12.0  # "the maximum notebook runtime": competitions submit --help, kaggle-cli 2.2.5
SHORT_SESSION_HOURS = 9.0  # where a code competition says so; reported for some accounts too
GPU_SESSIONS = 2  # at once
OUTPUT_BYTES = 20 * 10**9  # in the working folder
WARN_FROM = 0.8  # share of a limit from which it is worth a word
_SATURDAY = 5  # as datetime.weekday counts


@dataclass(frozen=True)
class Usage:
    """What lies in a working folder: bytes and files."""

    bytes: int
    files: int


def usage(folder: Path) -> Usage:
    """Everything below a folder, links not followed; a file that vanishes meanwhile is not counted.

    A folder that does not exist holds nothing.
    """
    n_bytes = n_files = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                n_bytes += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
            n_files += 1
    return Usage(n_bytes, n_files)


def warnings(used: Usage) -> list[str]:
    """Return a line for the output limit where it is near or passed, with the way out."""
    if used.bytes <= WARN_FROM * OUTPUT_BYTES:
        return []
    return [
        f"{_gb(used.bytes)} of {_gb(OUTPUT_BYTES)} of output: lower KEEP, or train fewer folds in "
        "one kernel (-p FOLD)"
    ]


def session_seconds(proc: Path = Path("/proc")) -> float | None:
    """Seconds since this machine's, or container's, first process began; None where unknown.

    On Kaggle a session is a container of its own, so this counts what passed before the kernel's
    first line too.
    """
    try:
        # The name in brackets may hold blanks; the 22nd field is the start in ticks after boot.
        fields = (proc / "1" / "stat").read_text().rpartition(")")[2].split()
        up = float((proc / "uptime").read_text().split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return None


def session_hours() -> float:
    """How long this session may last: less where a code competition runs it again."""
    again = os.environ.get("KAGGLE_IS_COMPETITION_RERUN")
    return SHORT_SESSION_HOURS if again else SESSION_HOURS


def hours_left(spent_seconds: float, session_hours: float = SESSION_HOURS) -> float:
    """Hours until the session ends, 0 once it should have."""
    return max(0.0, session_hours - spent_seconds / 3600)


def week_ends(now: datetime | None = None) -> datetime:
    """When the GPU quota is next full again: the coming Saturday 00:00 UTC, after `now`."""
    now = (now or datetime.now(UTC)).astimezone(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=(_SATURDAY - now.weekday() - 1) % 7 + 1)


def session_line(working: Path, spent_seconds: float, session_hours: float = SESSION_HOURS) -> str:
    """One line on where a session stands, for a stage to print."""
    used = usage(working)
    return (
        f"session: {hours_left(spent_seconds, session_hours):.1f} of {session_hours:g} h left; "
        f"{_gb(used.bytes)} of {_gb(OUTPUT_BYTES)} (files: {used.files}) in {working}"
    )


def sessions_for(hours: float, usable_hours: float) -> int:
    """How many sessions work that can be cut anywhere takes; at least one.

    Raises ValueError where a session has no usable time.
    """
    if usable_hours <= 0:
        raise ValueError(f"a session with {usable_hours} usable hours holds no work")
    return max(1, math.ceil(hours / usable_hours - 1e-9))


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"
