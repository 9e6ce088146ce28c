"""Which runs and folds make an ensemble."""

from __future__ import annotations

import pytest

from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.errors import InputError
from tests.configs import write_config
from tests.inference.small_runs import (
    gather,
    make_run,
    table,
)


def test_one_run_is_an_ensemble_of_one(tmp_path):
    make_run(tmp_path, "a", table())
    ensemble = gather([tmp_path], ["a"])
    assert ensemble == Ensemble(
        name="a", members=(Member(run="a", folds=(0, 1)),), folds_digest="d"
    )
    ensemble.save(tmp_path / "e")
    assert Ensemble.load(tmp_path / "e") == ensemble


def test_only_folds_that_all_members_have_speak(tmp_path):
    make_run(tmp_path, "a", table(), folds=(0, 1))
    make_run(tmp_path, "b", table(), folds=(1,))
    make_run(tmp_path, "c", table(), folds=(0,))
    ensemble = gather([tmp_path], ["a", "b"])
    assert (ensemble.name, ensemble.folds) == ("a+b", (1,))
    with pytest.raises(InputError, match="the runs b, c have no fold in common"):
        gather([tmp_path], ["b", "c"])


def test_a_run_without_predictions_is_named_with_the_stage(tmp_path):
    write_config(fold_run.fold_folder(tmp_path, "a", 0))
    with pytest.raises(InputError, match="run a has no held-out predictions yet: finish its tr"):
        gather([tmp_path], ["a"])


def test_runs_of_different_folds_files_do_not_mix(tmp_path):
    make_run(tmp_path, "a", table(), digest="one")
    make_run(tmp_path, "b", table(), digest="two")
    with pytest.raises(InputError, match="a/fold0 and b/fold0 were trained on different folds"):
        gather([tmp_path], ["a", "b"])
