from __future__ import annotations

import pytest

from kernel_lib.artifacts.filenames import LEFT_OUT
from kernel_lib.artifacts.left_out import LeftOut
from kernel_lib.errors import InputError


def test_it_comes_back_as_it_was_saved(tmp_path):
    kept = LeftOut(("a: it is cut short", "b: another reason"))
    kept.save(tmp_path)
    assert LeftOut.load([tmp_path / "nowhere", tmp_path]) == kept
    assert LeftOut.load([tmp_path / "nowhere"]) == LeftOut()


def test_an_id_may_hold_a_colon():
    kept = LeftOut(("1.2: 3: it is cut short", "a: b"))
    assert all(image_id in kept for image_id in ("1.2: 3", "a"))
    assert not any(image_id in kept for image_id in ("1", "a: b", "b", ""))


@pytest.mark.parametrize("text", ["{}", "[1]", "[", ""])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / LEFT_OUT).write_text(text)
    with pytest.raises(InputError, match=LEFT_OUT):
        LeftOut.load([tmp_path])
