"""What ranks tell of their end, without processes."""

from __future__ import annotations

import pytest

from kernel_lib.errors import InputError
from kernel_lib.parallel import ranks


def ended(monkeypatch, result, rank: int, error: BaseException | None) -> None:
    """One rank of a stage, which ends so."""
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
def test_what_ended_the_first_is_told_and_not_what_follows(monkeypatch, tmp_path, first, expected):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    result = tmp_path / "result.json"
    assert ranks.first_end(result, 3) is None
    ended(monkeypatch, result, 2, None)
    ended(monkeypatch, result, 1, first)
    ended(monkeypatch, result, 0, SystemExit(143))  # asked to by the launcher
    told = ranks.first_end(result, 3)
    assert (type(told), str(told)) == (type(expected), str(expected))


def test_a_rank_killed_as_it_tells_tells_nothing(tmp_path):
    (tmp_path / "result.json.rank1").write_text('{"at": 1, "sta')
    assert ranks.first_end(tmp_path / "result.json", 2) is None


def test_what_the_launcher_asks_of_others_is_not_what_killed_a_rank(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    result = tmp_path / "result.json"
    ended(monkeypatch, result, 0, SystemExit(143))
    assert ranks.first_end(result, 2) is None, "rank 1 was killed, and then rank 0 asked to end"
    ended(monkeypatch, result, 1, None)
    assert ranks.first_end(result, 2).code == 143, "rank 1 had ended well"


def test_a_refusal_stands_though_another_rank_was_killed_on_its_account(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    result = tmp_path / "result.json"
    ended(monkeypatch, result, 0, InputError("no room"))
    assert str(ranks.first_end(result, 2)) == "no room"
