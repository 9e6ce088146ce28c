"""What is left of the quota, by every answer of a `kaggle` command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_build import account
from kernel_lib.errors import InputError

HEADER = "resource,used,remaining,total,refreshAt\n"  # as 2.2.1 to 2.2.5 print it with --csv
ROW = "GPU,3.20h,26.80h,30.00h,2026-11-28T00:00:00+00:00\n"
TPU = "TPU,0.00h,20.00h,20.00h,2026-11-28T00:00:00+00:00\n"
WARNING = (
    "Warning: Looks like you're using an outdated `kaggle` version (installed: 2.2.1), please "
    "consider upgrading to the latest version (2.2.5)\n"
)
SATURDAY = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.mark.parametrize(
    ("answer", "left", "ends"),
    [
        (HEADER + ROW + TPU, 26.8, SATURDAY),
        (WARNING + HEADER + TPU + ROW, 26.8, SATURDAY),
        (HEADER + ROW.replace("+00:00", ""), 26.8, SATURDAY),  # 2.2.1 and 2.2.2
        (HEADER + "GPU,30.00h,0.00h,30.00h,\n", 0, None),
        ((HEADER + ROW).replace("\n", "\r\n"), 26.8, SATURDAY),  # Python's csv module
    ],
)
def test_the_answer_of_the_command_line_is_read(
    fake_kaggle: Callable, answer: str, left: float, ends: datetime | None
):
    calls = fake_kaggle(answer)
    week = account.week()
    assert (week.left, week.total, week.ends) == (left, 30, ends)
    assert week.line == f"quota: {left:g} of 30 GPU hours left, by kaggle quota"
    assert calls.read_text() == "quota --csv\n"


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ("Authentication required to call the Kaggle API.\n\n  kaggle auth login", 1, "not logged"),
        ("401 - Unauthorized", 1, "kaggle auth login"),
        ("usage: kaggle [-h]\nkaggle: error: argument command: invalid choice: 'quota' (choose "
         "from competitions, c)", 2, "this kaggle has no quota, which 2.2.1 and newer have"),
        ("No quota information available", 0, "answered 'No quota information available'"),
        ("", 0, "answered 'nothing'"),
        ("HTTPSConnectionPool(host='api'): Max retries exceeded", 1, "Max retries exceeded"),
        (HEADER + TPU, 0, "answered 'TPU"),
        (HEADER + "GPU,3.20h,many,30.00h,\n", 0, "answered 'GPU,3.20h,many"),
        (HEADER + "GPU,3.20h,nanh,30.00h,\n", 0, "answered"),
        (HEADER + "GPU,3.20h,-1.00h,30.00h,\n", 0, "answered"),
        (HEADER + "GPU,3.20h\n", 0, "answered"),
        (HEADER + ROW.replace("2026-11-28T00:00:00", "soon"), 0, "answered"),
        (HEADER + ROW, 1, "answered"),
    ],
)  # fmt: skip
def test_any_other_answer_is_a_full_week_and_one_line(
    fake_kaggle: Callable, answer: str, status: int, words: str
):
    fake_kaggle(answer, status)
    week = account.week()
    assert (week.left, week.total, week.ends) == (30, 30, None)
    assert words in week.line
    assert "--quota-left H" in week.line
    assert "\n" not in week.line


def test_without_a_command_that_starts_a_week_is_full(tmp_path: Path, fake_kaggle, monkeypatch):
    fake_kaggle("")
    (tmp_path / "bin" / "kaggle").write_text("#!/no/such/interpreter\n")
    assert "does not start" in account.week().line
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no kaggle command line" in account.week().line


def test_a_command_that_does_not_answer_is_not_waited_for(tmp_path: Path, fake_kaggle, monkeypatch):
    fake_kaggle("")
    waits = f"#!{sys.executable}\nimport signal\nsignal.pause()\n"
    (tmp_path / "bin" / "kaggle").write_text(waits)
    monkeypatch.setattr(account, "_SECONDS", 0.2)
    assert "gave no answer in 0.2 s" in account.week().line


@given(st.floats(0, 1000))
def test_hours_that_are_given_count(left: float):
    week = account.of_hours(left)
    assert week.left == left
    assert week.total == max(30, left)


@pytest.mark.parametrize("left", [-1, float("inf"), float("nan")])
def test_what_is_no_number_of_hours_is_refused(left: float):
    with pytest.raises(InputError, match=r"--quota-left .* give 0 or more"):
        account.of_hours(left)
