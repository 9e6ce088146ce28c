"""Reports of ranks on how they ended, without processes."""

from __future__ import annotations

import pytest

from kernel_lib.errors import InputError
from kernel_lib.parallel import ranks


def ended(monkeypatch, result, rank: int, error: BaseException | None) -> None:
    """End one rank of a stage with that error."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(ranks, "_end_with_starter", lambda: None)

    def run(parameters):
        if error is not None:
            raise error

    if error is None:
        ranks.of(run, result)({})
    else:
        with pytest.raises(type(error)):
            ranks.of(run, result)({})


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (SystemExit(143), SystemExit(143)),
        (KeyboardInterrupt(), KeyboardInterrupt()),
        (InputError("no room"), InputError("no room")),
        (RuntimeError("broken"), None),
    ],
)
def test_the_first_failure_is_raised_and_not_those_that_follow(
    monkeypatch, tmp_path, first, expected
):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    result = tmp_path / "result.json"
    assert ranks.first_end(result, 3) is None
    ended(monkeypatch, result, 2, None)
    ended(monkeypatch, result, 1, first)
    ended(monkeypatch, result, 0, SystemExit(143))  # asked to by the launcher
    cause = ranks.first_end(result, 3)
    assert (type(cause), str(cause)) == (type(expected), str(expected))


def test_a_report_cut_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "result.json.rank1").write_text('{"at": 1, "sta')
    assert ranks.first_end(tmp_path / "result.json", 2) is None


def test_the_launcher_s_sigterm_is_not_the_cause_where_a_rank_was_killed(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    result = tmp_path / "result.json"
    ended(monkeypatch, result, 0, SystemExit(143))
    assert ranks.first_end(result, 2) is None, "rank 1 was killed, and then rank 0 asked to end"
    ended(monkeypatch, result, 1, None)
    assert ranks.first_end(result, 2).code == 143, "rank 1 had ended well"


def test_a_refusal_is_raised_though_another_rank_was_then_killed(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    result = tmp_path / "result.json"
    ended(monkeypatch, result, 0, InputError("no room"))
    assert str(ranks.first_end(result, 2)) == "no room"
