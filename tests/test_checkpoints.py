from __future__ import annotations

import pickle

import pytest
import torch

from kernel_lib import checkpoints
from kernel_lib.artifacts.lineage import UNKNOWN, Lineage
from kernel_lib.engine import random_states
from kernel_lib.errors import InputError

PAST = Lineage(images=("a", "b"), groups=("p",), ancestors=("first",))


def test_what_is_saved_comes_back_with_its_past(tmp_path):
    path = tmp_path / "last.pt"
    state = {"model": {"w": torch.arange(3.0)}, "random": random_states(), "text": "x", "n": 3}
    checkpoints.save(path, state, PAST)
    loaded, past = checkpoints.load(path)
    assert past == PAST
    assert set(loaded) == set(state)
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert loaded["random"]["python"] == state["random"]["python"]
    assert checkpoints.lineage(path) == PAST


def test_a_write_that_breaks_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"n": 1}, PAST)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        checkpoints.save(path, {"n": lambda: 2}, PAST)
    assert checkpoints.load(path)[0] == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_damaged_missing_or_foreign_file_is_named(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(InputError, match=r"last.pt is missing: the train stage makes it"):
        checkpoints.load(path)
    checkpoints.save(path, {"model": {"w": torch.zeros(500)}}, PAST)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"last.pt cannot be read .*: delete it"):
        checkpoints.load(path)
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="no checkpoint of this package"):
        checkpoints.load(path)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_no_code_in_a_file_is_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    with path.open("wb") as file:
        pickle.dump({"lineage": Evil()}, file)
    with pytest.raises(InputError):
        checkpoints.load(path)
    assert "code ran" not in capsys.readouterr().out


def test_the_past_of_a_foreign_file_is_unknown(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "found.pth")
    assert checkpoints.lineage(tmp_path / "found.pth") == UNKNOWN
    (tmp_path / "found.safetensors").touch()
    assert checkpoints.lineage(tmp_path / "found.safetensors") == UNKNOWN
