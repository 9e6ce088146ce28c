"""Ensembles are found, or asked for."""

from __future__ import annotations

import pytest

from kernel_lib import storage
from kernel_lib.artifacts import ensemble as ensembles
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.errors import InputError
from kernel_lib.postprocess.strategies import Choice
from tests.inference.small_runs import (
    RULE,
    searched,
)


def test_the_rule_and_the_ensemble_are_found_or_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"no runs .* run the train stage, then the thresholds st"):
        ensembles.find([tmp_path], None)
    for run in "bc":
        storage.write_json(tmp_path / "runs" / run / "fold0" / "config.json", {})
    for name in (None, "b"):
        with pytest.raises(InputError, match=r"run the thresholds stage first, .*RUNS .*of b, c$"):
            ensembles.find([tmp_path], name)
    for name in "ab":
        folder = tmp_path / "ensembles" / name
        storage.write_json(folder / "thresholds.json", searched())
        Ensemble(name=name, folds_digest="d", members=(Member(run=name, folds=(0,)),)).save(folder)
    with pytest.raises(InputError, match=r"ENSEMBLE: a, b"):
        ensembles.find([tmp_path], None)
    with pytest.raises(InputError, match=r"ENSEMBLE c has no thresholds .* a, b: .* -p RUNS c$"):
        ensembles.find([tmp_path], "c")
    with pytest.raises(InputError, match=r"ENSEMBLE d has no thresholds .* a, b: name one$"):
        ensembles.find([tmp_path], "d")
    found = ensembles.find([tmp_path], "b")
    assert found.name == "b"
    assert Decision.load(found).choice == Choice(RULE)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"name": "x", "members": []}'])
def test_damaged_members_are_named_with_the_stage(tmp_path, content):
    with pytest.raises(InputError, match=r"is no ensemble's folder: .*the thresholds stage"):
        Ensemble.load(tmp_path)
    (tmp_path / "members.json").write_text(content)
    with pytest.raises(
        InputError, match=r"(?s)members.json is damaged .*: run the thresholds stage"
    ):
        Ensemble.load(tmp_path)
