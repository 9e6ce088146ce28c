from __future__ import annotations

import pytest

from kernel_lib.kaggle import paths, quota
from kernel_lib.stages import session_budget


@pytest.fixture
def on_kaggle(monkeypatch):
    monkeypatch.setattr(paths, "on_kaggle", lambda: True)
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    monkeypatch.setattr(quota, "session_seconds", lambda: 1800.0)
    return monkeypatch


def test_elsewhere_there_is_no_limit_and_no_word(tmp_path, capsys):
    assert session_budget.max_hours(None) is None
    assert session_budget.max_hours(2.0) == 2.0
    session_budget.say(tmp_path)
    assert capsys.readouterr().out == ""


def test_on_kaggle_what_is_left_of_the_session_is_the_limit(on_kaggle):
    assert session_budget.max_hours(None) == pytest.approx(12 - 0.5 - 0.5)
    assert session_budget.max_hours(3.0) == 3.0
    on_kaggle.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    assert session_budget.max_hours(None) == pytest.approx(9 - 0.5 - 0.5)


@pytest.mark.parametrize("seconds", [None, 13 * 3600.0, 11.5 * 3600.0])
def test_a_first_process_that_no_session_could_have_counts_for_nothing(on_kaggle, seconds):
    on_kaggle.setattr(quota, "session_seconds", lambda: seconds)
    assert session_budget.max_hours(None) == pytest.approx(11.5)


def test_it_says_what_is_left_and_warns_near_a_limit(on_kaggle, tmp_path, capsys):
    (tmp_path / "a.bin").write_bytes(b"x" * 10)
    session_budget.say(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("session: 11.5 of 12 h left; 0.0 GB of 20.0 GB (files: 1) in ")
    assert "warning" not in said
    with (tmp_path / "b.bin").open("wb") as file:
        file.truncate(17 * 10**9)  # sparse
    session_budget.say(tmp_path)
    assert "warning: 17.0 GB of 20.0 GB of output" in capsys.readouterr().out
