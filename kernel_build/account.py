"""What is left of an account's GPU quota, read from the Kaggle command line."""

from __future__ import annotations

import csv
import math
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime

from kernel_lib.errors import InputError
from kernel_lib.kaggle import quota

_SECONDS = 60
_HEADER = re.compile(r"^resource,used,remaining,total,refreshAt\s*$", re.MULTILINE)
_NOT_LOGGED_IN = re.compile(
    r"authentication required|\b401\b|unauthorized|kaggle\.json", re.IGNORECASE
)


@dataclass(frozen=True)
class Week:
    """GPU hours: what is left of this week, the total of a later one, and a line for the user."""

    left: float = quota.GPU_HOURS_A_WEEK
    total: float = quota.GPU_HOURS_A_WEEK
    ends: datetime | None = None  # UTC; None: on Saturday
    line: str = ""


FULL_WEEK = Week()


def of_hours(left: float) -> Week:
    """Return the week with `left` hours left. Raises: InputError below 0 and if not finite."""
    if not 0 <= left < math.inf:
        raise InputError(f"--quota-left {left:g} is not a number of hours; give 0 or more")
    total = max(left, quota.GPU_HOURS_A_WEEK)
    return Week(left, total, line=f"quota: {left:g} of {total:g} GPU hours left, as given")


def week() -> Week:
    """Return the week of the account that `kaggle` is logged in with; a full week if unknown.

    It is read from `kaggle quota --csv`, in its format since 2.2.1, the first version with it.
    """
    command = shutil.which("kaggle")
    if command is None:
        return _assumed("there is no kaggle command line")
    try:
        done = subprocess.run(
            [command, "quota", "--csv"], capture_output=True, text=True, timeout=_SECONDS,
            check=False, stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _assumed(f"kaggle quota gave no answer in {_SECONDS} s")
    except OSError as error:
        return _assumed(f"{command} does not start ({error.strerror})")
    answer = f"{done.stdout}\n{done.stderr}".strip()
    if done.returncode == 0 and (found := _read(done.stdout)):
        return found
    return _assumed(_reason(answer))


def _read(answer: str) -> Week | None:
    """Return the week in the row of the GPU, which a warning may precede; None if there is none."""
    header = _HEADER.search(answer)
    if header is None:
        return None
    for row in csv.DictReader(answer[header.start() :].splitlines()):
        if row["resource"] != "GPU":
            continue
        try:
            left, total = (float(row[key].removesuffix("h")) for key in ("remaining", "total"))
            ends = datetime.fromisoformat(row["refreshAt"]) if row["refreshAt"] else None
        except (AttributeError, TypeError, ValueError):
            return None
        if not 0 <= left <= total < math.inf:
            return None
        # Before 2.2.3 the time has no time zone; it is UTC.
        ends = ends and (ends if ends.tzinfo else ends.replace(tzinfo=UTC)).astimezone(UTC)
        line = f"quota: {left:g} of {total:g} GPU hours left, by kaggle quota"
        return Week(left, total, ends, line)
    return None


def _reason(answer: str) -> str:
    if _NOT_LOGGED_IN.search(answer):
        return "kaggle is not logged in (run kaggle auth login)"
    if "invalid choice" in answer:
        return "this kaggle has no quota, which 2.2.1 and newer have: pip install -U kaggle"
    last = answer.splitlines()[-1][:200] if answer else "nothing"
    return f"kaggle quota answered {last!r}"


def _assumed(reason: str) -> Week:
    total = quota.GPU_HOURS_A_WEEK
    return Week(
        line=f"quota: {total:g} of {total:g} GPU hours assumed to be left, because {reason}; "
        "--quota-left H gives another number"
    )
