"""The Kaggle session that a stage runs in: how long it may take, and what of it is left."""

from __future__ import annotations

from pathlib import Path

from kernel_lib.kaggle import paths, quota

RESERVE_HOURS = 0.5  # for saving, predicting the last batch, and Kaggle's own collecting


def max_hours(given: float | None) -> float | None:
    """MAX_HOURS as given; without it, on Kaggle, what its session has left, else no limit.

    A session that is cut off keeps what was written, but a stop in time also predicts and reports.
    """
    if given is not None or not paths.on_kaggle():
        return given
    return quota.session_hours() - RESERVE_HOURS - _spent_hours()


def say(work: Path) -> None:
    """Print hours and disk left, and a warning where outputs near Kaggle's limit."""
    if not paths.on_kaggle():
        return
    print(quota.session_line(work, 3600 * _spent_hours(), quota.session_hours()))
    for line in quota.warnings(quota.usage(work)):
        print(f"warning: {line}")


def _spent_hours() -> float:
    spent = (quota.session_seconds() or 0.0) / 3600
    # A first process older than any session is no session's: this is a rehearsal.
    return spent if spent < quota.session_hours() - RESERVE_HOURS else 0.0
