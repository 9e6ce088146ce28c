"""Who speaks for which image: members, folds, weights, votes, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernel_lib import storage
from kernel_lib.artifacts import ensemble as ensembles
from kernel_lib.artifacts import fold_run, left_out, maps
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.inference import combine, members, recipes
from kernel_lib.inference.out_of_fold import out_of_fold
from kernel_lib.postprocess import nested_cv
from kernel_lib.postprocess.histograms import statistics
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet, apply_rule

SIZE = 16
RULE = Triplet(0.5, 0, 0.5)


def table(n: int = 6, n_folds: int = 2) -> pd.DataFrame:
    """Images i0 …, the fold by turns, a square of mask on every third; not square themselves."""
    rows = []
    for i in range(n):
        mask = np.zeros((24, 20), np.uint8)
        if i % 3 == 0:
            mask[4:14, 3:12] = 1
        rows.append((f"i{i}", i % n_folds, "", 24, 20, int(mask.sum()), rle.encode(mask)))
    return pd.DataFrame(
        rows, columns=["image_id", "fold", "group", "height", "width", "area_px", "rle"]
    )


def searched() -> dict:
    """A thresholds.json of six images."""
    drawn = table()
    stats = [
        statistics(np.full((row.height, row.width), 9, np.uint8), mask)
        for row in drawn.itertuples()
        for mask in [rle.decode(row.rle, (row.height, row.width))]
    ]
    found = nested_cv.score_rule(stats, drawn["image_id"].tolist(), drawn["fold"].tolist(), None)
    scores = {name: found.to_json() for name in ("honest", "last")}
    return {"rule": RULE.to_json(), "search": {"single": False}, "past_known": True} | scores


def level_map(image_id: str, run: str) -> np.ndarray:
    seed = [ord(c) for c in image_id + run]
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def make_run(root: Path, run: str, drawn: pd.DataFrame, folds=(0, 1), digest="d", **lineage):
    for fold in folds:
        folder = fold_run.fold_folder(root, run, fold)
        storage.write_json(folder.config, {"run": run, "folds_digest": digest})
        held = drawn["fold"] == fold
        past = Lineage(**({"images": tuple(drawn.loc[~held, "image_id"])} | lineage))
        meta = {"run": run, "fold": fold, "lineage": past.model_dump(mode="json")}
        held_out = [(i, maps.Prediction(level_map(i, run))) for i in drawn.loc[held, "image_id"]]
        for path in (folder.oof, folder.oof_last):
            maps.write(path, held_out, meta)


def make_test(root: Path, run: str, fold: int, shown: dict[str, np.ndarray]) -> None:
    meta = {"run": run, "fold": fold, "lineage": Lineage().model_dump(mode="json")}
    predictions = [(i, maps.Prediction(level_map)) for i, level_map in shown.items()]
    maps.write(fold_run.fold_folder(root, run, fold).test, predictions, meta)


def gather(roots: list[Path], names: list[str]) -> Ensemble:
    return members.gather(roots, recipes.of_runs(names))


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
    storage.write_json(fold_run.fold_folder(tmp_path, "a", 0).config, {"folds_digest": "d"})
    with pytest.raises(InputError, match="run a has no held-out predictions yet: finish its tr"):
        gather([tmp_path], ["a"])


def test_runs_of_different_folds_files_do_not_mix(tmp_path):
    make_run(tmp_path, "a", table(), digest="one")
    make_run(tmp_path, "b", table(), digest="two")
    with pytest.raises(InputError, match="a/fold0 and b/fold0 were trained on different folds"):
        gather([tmp_path], ["a", "b"])


def test_held_out_images_are_scored_by_the_weighted_mean_at_their_own_size(tmp_path):
    drawn = table()
    make_run(tmp_path, "a", drawn), make_run(tmp_path, "b", drawn)
    ensemble = Ensemble(
        name="x",
        folds_digest="d",
        members=(Member(run="a", folds=(0, 1)), Member(run="b", folds=(0, 1), weight=3.0)),
    )
    found = out_of_fold(ensemble, [tmp_path], drawn)
    assert found.honest
    assert found.table["image_id"].tolist() == ["i0", "i2", "i4", "i1", "i3", "i5"]
    for row, image in enumerate(found.table.itertuples()):
        mixed = maps.mean([level_map(image.image_id, r) for r in "ab"], [1.0, 3.0])
        expected = maps.statistics(mixed, image.rle, (24, 20))
        assert np.array_equal(found.stats.hist_all[row], expected.hist_all)
        assert np.array_equal(found.stats.hist_true[row], expected.hist_true)


def test_images_that_training_left_out_by_name_are_not_scored(tmp_path):
    make_run(tmp_path, "a", table().iloc[:5]), make_run(tmp_path, "b", table().iloc[:5])
    storage.write_json(tmp_path / left_out.FILE, ["i5: it is cut short", "i4: another was"])
    found = out_of_fold(gather([tmp_path], ["a", "b"]), [tmp_path], table())
    assert sorted(found.table["image_id"]) == [f"i{i}" for i in range(5)]


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"], ["a"]])
@pytest.mark.parametrize("lines", [[], ["i5: it is cut short"], ["i55: it is cut short"]])
def test_a_member_that_lacks_an_image_is_refused_in_any_order(tmp_path, order, lines):
    """Also where it is the only one, unless the image was left out of all training by name."""
    make_run(tmp_path, "a", table().iloc[:5]), make_run(tmp_path, "b", table())
    if order == ["a"]:
        lines = ["i55: it is cut short"]
    storage.write_json(tmp_path / left_out.FILE, lines)
    ensemble = gather([tmp_path], order)
    with pytest.raises(InputError, match=r"runs/[ab]/fold1/oof.zip holds no map of image i5"):
        out_of_fold(ensemble, [tmp_path], table())


def masks_of(ensemble: Ensemble, root: Path, images: pd.DataFrame, rule=RULE) -> dict:
    return dict(combine.test_masks(ensemble, [root], images, Choice(rule)))


def flat(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE), value, np.uint8)


def three_folds(root: Path, values=(250, 100, 10), **how) -> tuple[Ensemble, pd.DataFrame]:
    for fold, value in enumerate(values):
        make_test(root, "a", fold, {"t0": flat(value), "t1": flat(0)})
    ensemble = Ensemble(
        name="a", folds_digest="d", members=(Member(run="a", folds=(0, 1, 2)),), **how
    )
    return ensemble, pd.DataFrame({"image_id": ["t0", "t1"], "height": 40, "width": [30, 50]})


def test_the_mean_of_all_folds_meets_the_rule_once(tmp_path):
    ensemble, images = three_folds(tmp_path, (250, 130, 10))
    found = masks_of(ensemble, tmp_path, images)  # (250 + 130 + 10) / 3 = 130 > 127.5
    assert [m.shape for m in found.values()] == [(40, 30), (40, 50)]
    assert [int(m.mean() == 1) for m in found.values()] == [1, 0]


@pytest.mark.parametrize(
    ("values", "expected"), [((250, 250, 10), 1), ((250, 100, 10), 0), ((128, 128, 0), 1)]
)
def test_a_vote_needs_more_than_half_of_the_folds(tmp_path, values, expected):
    ensemble, images = three_folds(tmp_path, values, combine="vote")
    found = masks_of(ensemble, tmp_path, images)
    assert (found["t0"] == expected).all()
    assert (found["t1"] == 0).all()


def test_half_of_the_folds_is_not_more_than_half(tmp_path):
    for fold, value in enumerate((255, 0)):
        make_test(tmp_path, "a", fold, {"t0": flat(value)})
    ensemble = Ensemble(
        name="a", folds_digest="d", members=(Member(run="a", folds=(0, 1)),), combine="vote"
    )
    images = pd.DataFrame({"image_id": ["t0"], "height": 20, "width": 20})
    assert not masks_of(ensemble, tmp_path, images)["t0"].any()


def test_weights_count_on_test_images_as_on_held_out_ones(tmp_path):
    for run, value in (("a", 240), ("b", 60)):
        for fold in (0, 1):
            make_test(tmp_path, run, fold, {"t0": flat(value)})
    images = pd.DataFrame({"image_id": ["t0"], "height": 20, "width": 20})
    for weight, expected in ((1.0, 1), (3.0, 0)):  # 150, and 105
        pair = (Member(run="a", folds=(0, 1)), Member(run="b", folds=(0, 1), weight=weight))
        for how in ("mean", "vote"):
            ensemble = Ensemble(name="x", folds_digest="d", members=pair, combine=how)
            assert (masks_of(ensemble, tmp_path, images)["t0"] == expected).all()


def test_many_images_come_in_order(tmp_path):
    names = [f"t{i}" for i in range(50)]
    make_test(tmp_path, "a", 0, {name: level_map(name, "a") for name in names})
    ensemble = Ensemble(name="a", folds_digest="d", members=(Member(run="a", folds=(0,)),))
    images = pd.DataFrame({"image_id": names, "height": SIZE, "width": SIZE})
    found = masks_of(ensemble, tmp_path, images)
    assert list(found) == names
    for name, mask in found.items():
        assert np.array_equal(mask, apply_rule(level_map(name, "a"), RULE))


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
    with pytest.raises(InputError, match=r"several ensembles are there; name .* ENSEMBLE: a, b"):
        ensembles.find([tmp_path], None)
    with pytest.raises(InputError, match=r"ENSEMBLE c has no thresholds .* a, b: .* -p RUNS c$"):
        ensembles.find([tmp_path], "c")
    with pytest.raises(InputError, match=r"ENSEMBLE d has no thresholds .* a, b: name one$"):
        ensembles.find([tmp_path], "d")
    found = ensembles.find([tmp_path], "b")
    assert found.name == "b"
    assert Decision.load(found).choice == Choice(RULE)


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


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"name": "x", "members": []}'])
def test_damaged_members_are_named_with_the_stage(tmp_path, content):
    with pytest.raises(InputError, match=r"is no ensemble's folder: .*the thresholds stage"):
        Ensemble.load(tmp_path)
    (tmp_path / "members.json").write_text(content)
    with pytest.raises(
        InputError, match=r"(?s)members.json is damaged .*: run the thresholds stage"
    ):
        Ensemble.load(tmp_path)
