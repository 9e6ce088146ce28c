"""Decisions are read completely or refused."""

from __future__ import annotations

import pytest

from kernel_lib import storage
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.errors import InputError
from kernel_lib.postprocess.strategies import Choice
from tests.inference.small_runs import (
    RULE,
    searched,
)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"rule": {"top": 2}}', "[]", "null", "\xff"])
def test_a_damaged_rule_is_named_with_the_stage(tmp_path, content):
    (tmp_path / "thresholds.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"thresholds.json is damaged .*: run the thresholds st"):
        Decision.load(tmp_path)


@pytest.mark.parametrize("name", ["rule", "search", "past_known", "honest", "last"])
@pytest.mark.parametrize("instead", ["gone", None, {}, [], 3, "?"])
def test_a_rule_without_its_scores_is_damaged(tmp_path, name, instead):
    document = searched() | {name: instead}
    if instead == "gone":
        del document[name]
    storage.write_json(tmp_path / "thresholds.json", document)
    with pytest.raises(InputError, match=r"thresholds.json is damaged .*: run the thresholds st"):
        Decision.load(tmp_path)


@pytest.mark.parametrize("selected", [None, [], 3, {"honest": False}, {"honest": 1, "last": 0}])
def test_what_is_no_word_on_selection_is_damaged(tmp_path, selected):
    storage.write_json(tmp_path / "thresholds.json", searched() | {"epochs_selected": selected})
    with pytest.raises(InputError, match=r"thresholds.json is damaged .*: run the thresholds st"):
        Decision.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "instead"),
    [("rules", {}), ("members", {}), *(("at_least", k) for k in ({}, 0, 2, 1.5, "1"))],
)
def test_rules_of_members_are_whole_or_damaged(tmp_path, name, instead):
    document = searched() | {"rules": {"a": RULE.to_json()}, "at_least": 1}
    member = Member(run="a", folds=(0,))
    vote = Ensemble(name="e", folds_digest="d", members=(member,), combine="member_vote")
    vote.save(tmp_path)
    storage.write_json(tmp_path / "thresholds.json", document)
    expected = Choice(rules=(RULE,), at_least=1)
    assert Decision.load(tmp_path).choice == expected
    named = "thresholds"
    if name == "members":
        (tmp_path / "members.json").write_text("{")
        named = "members"
    else:
        storage.write_json(tmp_path / "thresholds.json", document | {name: instead})
    with pytest.raises(InputError, match=rf"(?s)/{named}.json is damaged .*: run the thresholds"):
        Decision.load(tmp_path)
