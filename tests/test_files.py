from __future__ import annotations

import json
import os
import stat

import pytest

from kernel_lib import files


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_file_is_there_when_it_is_complete_and_not_before(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    with files.whole(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_breaks_inside_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def broken() -> None:
        with files.whole(path, "w") as file:
            file.write("new")
            raise error

    with pytest.raises(error):
        broken()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_text_is_utf8_with_plain_line_ends(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "α ≤ β\n")
    assert path.read_bytes() == "α ≤ β\n".encode()


def test_a_file_is_for_whoever_may_read_the_folder(tmp_path):
    path = tmp_path / "file.txt"
    before = os.umask(0o022)
    try:
        files.write_text(path, "x")
        assert os.umask(0o022) == 0o022, "the process's own mask is as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_json_comes_back_and_has_no_nan(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
