"""Limits, and what is left of them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.kaggle import paths, quota


def test_usage_counts_what_lies_below_and_follows_no_link(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 1000)
    folder = tmp_path / "working"
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "last.pt").write_bytes(b"x" * 300)
    (folder / "folds.csv").write_bytes(b"x" * 20)
    (folder / "link").symlink_to(outside)
    assert quota.usage(folder) == quota.Usage(300 + 20 + len(str(outside)), 3)
    assert quota.usage(tmp_path / "nowhere") == quota.Usage(0, 0)


def test_a_warning_where_the_working_folder_is_nearly_full():
    assert quota.warnings(quota.Usage(16 * 10**9, 12_000)) == []
    (line,) = quota.warnings(quota.Usage(16 * 10**9 + 1, 1))
    assert line.startswith("16.0 GB of 20.0 GB")


def test_hours_left_end_at_none():
    assert quota.hours_left(0) == 12
    assert quota.hours_left(3 * 3600, 9) == 6
    assert quota.hours_left(13 * 3600) == 0


@pytest.mark.parametrize(
    ("now", "ends"),
    [
        (datetime(2026, 8, 7, 23, 59, tzinfo=UTC), datetime(2026, 8, 8, tzinfo=UTC)),  # a Friday
        (datetime(2026, 8, 8, 0, 0, tzinfo=UTC), datetime(2026, 8, 15, tzinfo=UTC)),
        (datetime(2026, 8, 9, 12, 0, tzinfo=UTC), datetime(2026, 8, 15, tzinfo=UTC)),
        # Saturday morning in Tokyo is still Friday by UTC.
        (
            datetime(2026, 8, 8, 8, 0, tzinfo=timezone(timedelta(hours=9))),
            datetime(2026, 8, 8, tzinfo=UTC),
        ),
    ],
)
def test_the_week_ends_on_saturday_by_utc(now, ends):
    assert quota.week_ends(now) == ends


@given(st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)))
def test_the_next_week_end_is_a_saturday_within_seven_days(when: datetime):
    ends = quota.week_ends(when.replace(tzinfo=UTC))
    assert ends.weekday() == 5
    assert timedelta(0) < ends - when.replace(tzinfo=UTC) <= timedelta(days=7)


def test_a_session_is_as_old_as_its_first_process(tmp_path: Path):
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "1").mkdir()
    before = " ".join(["0"] * 18)
    (tmp_path / "1" / "stat").write_text(f"1 (a (name) b) S {before} {50 * ticks} 0 0\n")
    (tmp_path / "uptime").write_text("170.5 300.0\n")
    assert quota.session_seconds(tmp_path) == pytest.approx(120.5)
    assert quota.session_seconds(tmp_path / "nowhere") is None


def test_the_line_of_a_session(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 200_000_000)
    assert quota.session_line(tmp_path, 1800, 9) == (
        f"session: 8.5 of 9 h left; 0.2 GB of 20.0 GB (files: 1) in {tmp_path}"
    )


@pytest.mark.parametrize(
    ("hours", "usable", "sessions"), [(0, 10, 1), (10, 10, 1), (10.01, 10, 2), (30, 10, 3)]
)
def test_sessions_are_whole(hours, usable, sessions):
    assert quota.sessions_for(hours, usable) == sessions


def test_a_session_without_time_holds_no_work():
    with pytest.raises(ValueError, match="usable hours"):
        quota.sessions_for(1, 0)


@pytest.fixture
def on_kaggle(monkeypatch):
    monkeypatch.setattr(paths, "on_kaggle", lambda: True)
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    monkeypatch.setattr(quota, "session_seconds", lambda: 1800.0)
    return monkeypatch


def test_elsewhere_there_is_no_limit_and_no_word(tmp_path, capsys):
    assert quota.max_hours(None) is None
    assert quota.max_hours(2.0) == 2.0
    quota.say_hours_left(tmp_path)
    assert capsys.readouterr().out == ""


def test_on_kaggle_what_is_left_of_the_session_is_the_limit(on_kaggle):
    assert quota.max_hours(None) == pytest.approx(12 - 0.5 - 0.5)
    assert quota.max_hours(3.0) == 3.0
    on_kaggle.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    assert quota.max_hours(None) == pytest.approx(9 - 0.5 - 0.5)


@pytest.mark.parametrize("seconds", [None, 13 * 3600.0, 11.5 * 3600.0])
def test_a_first_process_that_no_session_could_have_counts_for_nothing(on_kaggle, seconds):
    on_kaggle.setattr(quota, "session_seconds", lambda: seconds)
    assert quota.max_hours(None) == pytest.approx(11.5)


def test_it_says_what_is_left_and_warns_near_a_limit(on_kaggle, tmp_path, capsys):
    (tmp_path / "a.bin").write_bytes(b"x" * 10)
    quota.say_hours_left(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("session: 11.5 of 12 h left; 0.0 GB of 20.0 GB (files: 1) in ")
    assert "warning" not in said
    with (tmp_path / "b.bin").open("wb") as file:
        file.truncate(17 * 10**9)  # sparse
    quota.say_hours_left(tmp_path)
    assert "warning: 17.0 GB of 20.0 GB of output" in capsys.readouterr().out
