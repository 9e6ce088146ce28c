"""Limits, and what is left of them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.kaggle import paths, quota

SATURDAY = datetime(2026, 8, 8, tzinfo=UTC)


def test_usage_counts_what_lies_below_and_follows_no_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 1000)
    folder = tmp_path / "working"
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "last.pt").write_bytes(b"x" * 300)
    (folder / "folds.csv").write_bytes(b"x" * 20)
    (folder / "link").symlink_to(outside)
    assert quota.usage(folder) == quota.Usage(300 + 20 + len(str(outside)), 3)
    assert quota.usage(tmp_path / "nowhere") == quota.Usage(0, 0)


@pytest.mark.parametrize(
    ("now", "ends"),
    [
        (SATURDAY - timedelta(minutes=1), SATURDAY),
        (SATURDAY, SATURDAY + timedelta(7)),
        (SATURDAY + timedelta(1.5), SATURDAY + timedelta(7)),
        # Saturday morning in Tokyo is still Friday by UTC.
        (datetime(2026, 8, 8, 8, tzinfo=timezone(timedelta(hours=9))), SATURDAY),
    ],
)
def test_the_week_ends_on_saturday_by_utc(now, ends):
    assert quota.week_ends(now) == ends


@given(st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)))
def test_the_next_week_end_is_a_saturday_within_seven_days(when):
    ends = quota.week_ends(when)
    assert ends.weekday() == 5
    assert timedelta(0) < ends - when <= timedelta(7)


def test_a_session_is_as_old_as_its_first_process(tmp_path):
    (tmp_path / "1").mkdir()
    started = f"{' '.join('0' * 18)} {50 * os.sysconf('SC_CLK_TCK')}"
    (tmp_path / "1" / "stat").write_text(f"1 (a (name) b) S {started} 0 0\n")
    (tmp_path / "uptime").write_text("170.5 300.0\n")
    assert quota.session_seconds(tmp_path) == pytest.approx(120.5)
    assert quota.session_seconds(tmp_path / "nowhere") is None


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


@pytest.mark.parametrize(("n_bytes", "warned"), [(16 * 10**9, False), (16 * 10**9 + 10**8, True)])
def test_hours_and_disk_left_are_printed_with_a_warning_near_a_limit(
    on_kaggle, tmp_path, capsys, n_bytes, warned
):
    with (tmp_path / "a.bin").open("wb") as file:
        file.truncate(n_bytes)  # sparse
    quota.say_hours_left(tmp_path)
    gb = f"{n_bytes / 1e9:.1f} GB of 20.0 GB"
    line, *warnings = capsys.readouterr().out.splitlines()
    assert line == f"session: 11.5 of 12 h left; {gb} (files: 1) in {tmp_path}"
    assert [warning.partition(" of output")[0] for warning in warnings] == [
        f"warning: {gb}"
    ] * warned
