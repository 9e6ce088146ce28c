"""Recipes: the shipped ones, every fault named with its fix, and the runs that they gather."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from kernel_lib import storage
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference import recipes
from tests.configs import write_config
from tests.inference.small_runs import gather, make_run, table

ROW = "UNetResNet34_512_v1"
TWO = [{"run": "a"}, {"run": "b"}]


def read(tmp_path: Path, **values) -> recipes.Recipe:
    storage.write_json(tmp_path / "mine.json", values)
    return recipes.read(tmp_path / "mine.json")


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_shipped_recipe_names_rows_and_says_what_it_is(name):
    recipe = recipes.read(recipes.SHIPPED / f"{name}.json")
    assert recipe.says
    assert bool(recipe.leaderboard) == name.startswith("notes_"), "a figure of its notes"
    for member in recipe.members:
        row = EXPERIMENTS[member.experiment]
        assert member.name == f"{row.name}_seed{member.seed}"
        assert (row.network, row.images) != ("Classifier", "nih")


def test_the_notes_two_are_shipped():
    assert recipes.shipped() == ("modern_best", "notes_512_five_seeds", "notes_best")
    five, best = (recipes.read(recipes.SHIPPED / f"{name}.json") for name in recipes.shipped()[1:])
    assert {m.experiment for m in five.members} == {ROW}
    assert [m.seed for m in five.members] == [1234, 2345, 3456, 4567, 5678]
    assert [m.name for m in best.members] == [
        "deeplabv3plus_resnet_1024_v2_seed5678",
        "UNetResNet34_1024_v1_seed3456",
    ]
    assert (five.combine, best.combine) == ("mean", "mean")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"members": []}, "members: "),
        ({"weights": [1, 2]}, "weights: Extra"),
        ({"members": [{"run": "a", "seed": 1}]}, "members.0: a member is"),
        ({"members": [{"experiment": ROW}]}, "members.0: a member is"),
        ({"members": [{}]}, "members.0: a member is"),
        ({"members": [{"experiment": "UNetResNet34_512_v11", "seed": 1}]}, f"nearest: {ROW}"),
        ({"members": [{"run": "a"}, {"run": "a"}]}, "a is named twice: name it once"),
        (
            {"members": [{"run": f"{ROW}_seed1"}, {"experiment": ROW, "seed": 1}]},
            f"{ROW}_seed1 is named twice",
        ),
        ({"members": [{"run": "a", "weight": 0.0}]}, "members.0.weight: "),
        ({"members": [{"run": "a", "weight": -1}]}, "members.0.weight: "),
        ({"combine": "median"}, "combine: "),
        ({"at_least": 1}, "at_least 1, with combine mean: it counts members"),
        ({"combine": "vote", "at_least": 1}, "at_least 1, with combine vote"),
        ({"combine": "member_vote", "at_least": 3}, "at_least 3 of 2 members: gi"),
        ({"combine": "member_union", "at_least": 0}, "at_least 0 of 2 members"),
        ({"members": TWO[:1], "combine": "member_vote"}, "combine member_vote of 1 members"),
        (
            {"members": [{"run": "a", "weight": 2.0}, {"run": "b"}], "combine": "member_vote"},
            "of 2 members with weights",
        ),
        ({"choose": "greedy", "combine": "vote"}, "greedy does not fit combine vote"),
        (
            {"members": [{"run": "a", "weight": 2.0}, {"run": "b"}], "choose": "greedy"},
            "greedy does not fit combine mean with weights",
        ),
        ({"gate": "classifier"}, "gate: "),
    ],
)
def test_a_fault_is_named_with_the_file(tmp_path, values, words):
    with pytest.raises(InputError, match=rf"mine\.json: .*{re.escape(words)}"):
        read(tmp_path, **{"members": TWO} | values)
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(InputError, match=r"mine\.json: .*JSON"):
        recipes.read(tmp_path / "mine.json")


def test_what_is_given_goes_before_the_recipe_s_own(tmp_path):
    recipe = read(tmp_path, members=TWO, combine="member_vote", at_least=2)
    assert recipe.differing(combine=None, at_least=None) == recipe
    assert recipe.differing(at_least=1).at_least == 1
    assert recipe.differing(combine="mean") == recipes.of_runs(["a", "b"]), "k was the vote's"
    with pytest.raises(InputError, match="at_least 3 of 2 members"):
        recipe.differing(at_least=3)


def test_missing_members_are_all_named_with_what_trains_them(tmp_path):
    values = {
        "members": [
            {"experiment": ROW, "seed": 7},
            {"experiment": "deeplabv3plus_resnet_1024_v1", "seed": 7},
            {"run": "there"},
            {"run": "mine"},
        ]
    }
    storage.write_json(tmp_path / "runs" / "there" / "fold0" / "config.json", {})
    with pytest.raises(InputError) as raised:
        recipes.require(read(tmp_path, **values), [tmp_path])
    for words in (
        "3 of 4 members",
        f"{ROW}_seed7: train it with -p EXPERIMENT {ROW} -p SEED 7;",
        "-p EXPERIMENT deeplabv3plus_resnet_1024_v1 -p SEED 7 -p WITH_PARENTS True",
        "mine: train it, or correct the name",
    ):
        assert words in str(raised.value)
    recipes.require(recipes.of_runs(["there"]), [tmp_path])


def test_a_kernel_can_carry_the_shipped_files():
    for path in recipes.SHIPPED.glob("*"):
        assert path.suffix == ".json"
        assert path.read_bytes().endswith(b"}\n")
        assert json.loads(path.read_text(encoding="utf-8"))


def test_one_run_is_an_ensemble_of_one(tmp_path):
    make_run(tmp_path, "a", table())
    ensemble = gather([tmp_path], ["a"])
    assert ensemble == Ensemble(
        name="a", members=(Member(run="a", folds=(0, 1)),), folds_digest="d"
    )
    ensemble.save(tmp_path / "e")
    assert Ensemble.load(tmp_path / "e") == ensemble


def test_only_folds_that_all_members_have_are_used(tmp_path):
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
