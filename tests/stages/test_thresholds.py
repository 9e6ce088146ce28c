"""Gates, recipes and every way to combine, from archives to thresholds.json and test masks."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kernel_lib import storage
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.artifacts.oof import load_per_image
from kernel_lib.artifacts.search_record import SearchRecord
from kernel_lib.config import ThresholdsParameters
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import combined_mask
from kernel_lib.inference.ensemble_maps import test_masks as masks_of_test
from kernel_lib.postprocess import metrics, score_definitions, strategies
from kernel_lib.postprocess.surface_distance import surface_distance
from kernel_lib.postprocess.triplet import apply_rule
from kernel_lib.stages import report, report_images, report_scores, scores
from kernel_lib.stages import thresholds as stage
from kernel_lib.viewer.data import load_held_out
from tests.stages.place import fold_table, rewrite, write_fold

SIZE, N = 24, 24
BLOCK = np.zeros((SIZE, SIZE), np.uint8)
BLOCK[3:20, 4:15] = 1  # larger than any true mask
SHAPES = {"t0": (24, 24), "t1": (30, 40), "t2": (48, 36)}
SELECTED = "rule, nested CV, NOT HONEST (epochs selected)"


real_write = report.write


def write_report(folder: Path, roots: list[Path]) -> Path:
    return real_write(folder, report.load(folder, roots))


pytestmark = pytest.mark.usefixtures("no_report")  # which takes seconds


def table() -> pd.DataFrame:
    """Images in two folds by turns, every third with a mask."""
    masks = np.zeros((N, SIZE, SIZE), np.uint8)
    for i in range(0, N, 3):
        masks[i, 4 : 9 + i // 3, 3:12] = 1
    return fold_table(list(masks), [i % 2 for i in range(N)])


def level_map(seed: str, mask: np.ndarray, noise: int) -> np.ndarray:
    random = np.random.default_rng([ord(c) for c in seed])
    return (mask * 120 + random.integers(0, noise, mask.shape)).astype(np.uint8)


def make_run(
    work: Path, run: str, *, noise=90, label=False, masks=True, alarms=False, lineage=None, **row
) -> None:
    """Both folds with what they predict of held-out and of three test images.

    The label is right but for every seventh image; a mask's map is it and noise, and with `alarms`
    every empty image seems to have one.
    """
    drawn = table()
    folds_file.save(drawn, work / "folds.csv")

    def predicted(image_id: str, seed: str, mask: np.ndarray, probability: float) -> tuple:
        levels = level_map(seed, mask, noise) if masks else None
        return image_id, levels, probability if label else None

    def held_out(fold: int, archive: str) -> list[tuple]:
        found = []
        for at, image in enumerate(drawn[drawn["fold"] == fold].itertuples()):
            truth = rle.decode(image.rle, (SIZE, SIZE))
            seems = BLOCK if alarms and not truth.any() else truth
            probability = (0.8 if truth.any() else 0.3) if at % 7 else 0.55
            seed = f"{archive}{image.image_id}{run}"
            found.append(predicted(image.image_id, seed, seems, probability))
        return found

    for fold in (0, 1):
        test = [
            predicted(i, f"{i}{run}{fold}", BLOCK, probability)
            for i, probability in zip(SHAPES, (0.1, 0.9, 0.6), strict=True)
        ]
        write_fold(
            work, run, fold, drawn, held_out(fold, "oof"), held_out(fold, "oof_last"), test,
            lineage, **row,
        )  # fmt: skip


def choose_rule(work: Path, **parameters):
    return stage.run(ThresholdsParameters(work_dir=str(work), bootstrap=100, **parameters))


def document(result) -> dict:
    return json.loads((result.folder / "thresholds.json").read_text())


def masks(work: Path, folder: Path) -> dict[str, np.ndarray]:
    """Of the test images, as the inference stage makes them."""
    choice = Decision.load(folder).choice
    images = pd.DataFrame(
        [(i, *shape) for i, shape in SHAPES.items()], columns=["image_id", "height", "width"]
    )
    return dict(masks_of_test(Ensemble.load(folder), [work], images, choice))


def archives(work: Path, run: str) -> list[maps.Maps]:
    return [maps.Maps(fold_run.fold_folder(work, run, fold).test) for fold in (0, 1)]


def test_without_labels_nothing_is_gated_and_nothing_says_so(tmp_path):
    make_run(tmp_path, "plain")
    result = choose_rule(tmp_path)
    kept = document(result)
    assert list(kept) == [
        "rule", "search", "past_known", "epochs_selected", "honest", "last", "ensemble",
        "predicted_by", "calibration",
    ]  # fmt: skip
    assert list(kept["rule"]) == ["top", "min_area_px", "bottom"]
    written = json.loads((result.folder / "members.json").read_text())
    assert list(written) == ["name", "members", "combine", "folds_digest"]
    with np.load(result.folder / "oof_statistics.npz") as arrays:
        assert set(arrays) == {"image_id", "hist_all", "hist_true", "n_px"}
    assert "gate: none" in str(result)


@pytest.mark.parametrize(
    ("chosen_on", "first", "selected"),
    [
        ((), ["rule, nested CV (honest)"], False),
        (("elsewhere",), ["rule, nested CV (honest)"], False),
        (("i03",), ["last checkpoint, nested CV (honest)", SELECTED], True),
        (None, ["last checkpoint, nested CV (honest)", SELECTED], True),
    ],
)
def test_the_first_score_is_the_one_that_no_label_selected(tmp_path, chosen_on, first, selected):
    make_run(tmp_path, "plain")
    for path in tmp_path.glob("runs/plain/fold*/oof.zip"):
        rewrite(path, lineage=maps.Maps(path).meta["lineage"] | {"chosen_on": chosen_on})
    result = choose_rule(tmp_path)
    assert document(result)["epochs_selected"] == {"honest": selected, "last": False}
    listed = scores.table(result.scores)
    assert listed["rule"].tolist()[: len(first)] == first
    assert listed["dice"][0] == (result.last if selected else result.honest).honest.dice
    assert len(listed) == len(first) + 3


def test_a_row_s_classifier_gates_by_its_label(tmp_path):
    make_run(tmp_path, "steps", gate="judge", alarms=True)
    make_run(tmp_path, "judge", label=True, masks=False, network="Classifier", label_weight=1.0)
    result = choose_rule(tmp_path, runs="steps")
    assert document(result)["gate"] == {"by": "label", "runs": ["judge"]}
    rule = result.choice.triplet
    assert rule.label == 76.5 / 255  # above the empty images' 0.3, level 76
    assert result.honest.auc_label > 0.9
    text = str(result)
    assert "gate: the classification probability of judge" in text
    assert f"label {rule.label:.4f}, top" in text
    assert f"{result.honest.auc_label:.4f} by the classification probability, " in text
    assert f"{result.honest.auc_sum:.4f} by the sum" in text
    found = masks(tmp_path, result.folder)
    assert not found["t0"].any(), "its label, 0.1, is below the threshold"
    mean = maps.mean([archive["t1"] for archive in archives(tmp_path, "steps")])
    expected = apply_rule(maps.at_shape(mean, SHAPES["t1"]), rule, round(255 * 0.9))
    assert np.array_equal(found["t1"], expected)
    assert expected.any()
    page = write_report(result.folder, [tmp_path]).read_text(encoding="utf-8")
    assert "the classification probability of judge" in page
    (again,) = report._search_again(report.load(result.folder, [tmp_path])).values()
    assert again == result.search
    assert "gate: the classification probability of judge" in scores.summary(result.folder)


def test_a_missing_classifier_is_named_may_be_left_out_and_must_not_have_seen_an_image(tmp_path):
    make_run(tmp_path, "steps", gate="judge")
    with pytest.raises(InputError, match=r"gated by the run judge, .* -p WITH_PARENTS True"):
        choose_rule(tmp_path)
    result = choose_rule(tmp_path, gate="none")
    assert result.honest.auc_label is None
    assert result.choice.triplet.label is None
    make_run(tmp_path, "judge", label=True, masks=False, lineage=Lineage(images=("i05",)))
    with pytest.raises(InputError, match="judge/fold1 was trained on image i05"):
        choose_rule(tmp_path, runs="steps")


def test_runs_that_draw_no_masks_of_these_images_are_no_members(tmp_path):
    make_run(tmp_path, "judge", label=True, masks=False, network="Classifier", label_weight=1.0)
    with pytest.raises(InputError, match="judge is a classifier"):
        choose_rule(tmp_path)
    make_run(tmp_path, "elsewhere", images="nih")
    with pytest.raises(InputError, match="elsewhere was trained on NIH images"):
        choose_rule(tmp_path, runs="elsewhere")


def test_own_heads_gate_where_the_dice_was_gated_and_only_report_elsewhere(tmp_path):
    heads = {"label": True, "label_weight": 0.05, "alarms": True}
    make_run(tmp_path, "gated", monitor="dice_gated", **heads)
    make_run(tmp_path, "heads", monitor="dice", **heads)
    assert choose_rule(tmp_path, runs="gated").choice.triplet.label is not None
    free = choose_rule(tmp_path, runs="heads")
    assert free.choice.triplet.label is None
    assert free.honest.auc_label > 0.9
    assert "gate" not in document(free)
    assert choose_rule(tmp_path, runs="heads", gate="label").choice.triplet.label is not None
    make_run(tmp_path, "headless")
    with pytest.raises(InputError, match="GATE label, but headless has no label head"):
        choose_rule(tmp_path, runs="heads,headless", gate="label")


def test_archives_without_the_label_that_is_to_gate_are_named(tmp_path):
    make_run(tmp_path, "gated", label_weight=0.05, monitor="dice_gated")
    with pytest.raises(InputError, match=r"oof\.zip holds no label of image i00, .* -p GATE none"):
        choose_rule(tmp_path)


def test_members_of_which_one_has_no_label_are_not_gated_unasked(tmp_path, capsys):
    make_run(tmp_path, "gated", label=True, label_weight=0.05, monitor="dice_gated")
    make_run(tmp_path, "headless")
    assert choose_rule(tmp_path, runs="gated,headless").ensemble.gate == "none"
    assert "note: gated was scored with its label as a gate, but headless has none" in (
        capsys.readouterr().out
    )


def test_labels_are_averaged_with_the_members_weights(tmp_path):
    make_run(tmp_path, "a", label=True, label_weight=0.05)
    make_run(tmp_path, "b", label=True, label_weight=0.05)
    recipe = {"members": [{"run": "a", "weight": 3.0}, {"run": "b"}], "gate": "label"}
    storage.write_json(tmp_path / "mine.json", recipe)
    for fold in (0, 1):
        rewrite(fold_run.fold_folder(tmp_path, "b", fold).oof, label=lambda image_id: 0.0)
    result = choose_rule(tmp_path, ensemble=str(tmp_path / "mine.json"))
    assert result.folder.name == "mine"
    own = maps.Maps(fold_run.fold_folder(tmp_path, "a", 0).oof)
    for image in result.honest.per_image[result.honest.per_image["fold"] == 0].itertuples():
        assert image.label == round(255 * own.label(image.image_id) * 0.75) / 255


def test_the_map_s_own_sum_gates(tmp_path):
    make_run(tmp_path, "plain")
    result = choose_rule(tmp_path, gate="sum")
    kept = document(result)
    assert kept["gate"] == {"by": "sum", "runs": ["plain"]}
    assert kept["search"]["label_swept"]
    assert "the sum of the probability map" in str(result)


@pytest.mark.parametrize(("how", "at_least"), [("member_vote", None), ("member_union", 2)])
def test_a_vote_of_members_takes_each_member_s_own_rule(tmp_path, how, at_least):
    names = ["a", "b", "c"]
    for place, run in enumerate(names):
        make_run(tmp_path, run, noise=90 + 40 * place)
    result = choose_rule(tmp_path, runs="a,b,c", ensemble="three", combine=how, at_least=at_least)
    kept = document(result)
    assert "rule" not in kept
    assert list(kept["rules"]) == names
    k = kept["at_least"]
    assert k == at_least or at_least is None
    one = choose_rule(tmp_path, runs="b")
    assert kept["rules"]["b"] == one.choice.triplet.to_json(), "as if it stood alone"
    again = report._search_again(report.load(result.folder, [tmp_path]))
    assert again == result.searches
    text = str(result)
    assert all(f"rule of {run}: top" in text for run in names)
    assert f"{how}: at least {k} of 3 agree" in text
    assert set(result.by_part().columns) >= {"at least", *names}
    if at_least:
        page = write_report(result.folder, [tmp_path]).read_text(encoding="utf-8")
        assert "at least 2 of 3 agree" in page


def test_greedy_leaves_noise_out_and_its_ensemble_goes_on(tmp_path):
    make_run(tmp_path, "good"), make_run(tmp_path, "better", noise=60)
    make_run(tmp_path, "noise", noise=256 - 120)
    blind = np.zeros((SIZE, SIZE), np.uint8)
    for path in tmp_path.glob("runs/noise/fold*/oof*.zip"):
        rewrite(path, lambda image_id: level_map(image_id, blind, 255))
    result = choose_rule(tmp_path, runs="noise,better,good", ensemble="picked", choose="greedy")
    kept = document(result)["selection"]
    assert [one["run"] for one in kept["candidates"]] == ["noise", "better", "good"]
    assert kept["weights"][0] == 0
    members = Ensemble.load(result.folder).members
    taken = zip(("noise", "better", "good"), kept["weights"], strict=True)
    assert [(m.run, m.weight) for m in members] == [(run, w) for run, w in taken if w]
    assert len(masks(tmp_path, result.folder)) == 3
    assert "weights" in result.by_part()
    assert "chosen with it, greedily" in result.honest.method
    page = write_report(result.folder, [tmp_path]).read_text(encoding="utf-8")
    assert "Rule chosen for each fold" in page


def test_a_shipped_recipe_is_taken_by_its_name_and_says_what_is_missing(tmp_path):
    make_run(tmp_path, "UNetResNet34_1024_v1_seed3456")
    with pytest.raises(
        InputError,
        match=r"1 of 2 members .*deeplabv3plus_resnet_1024_v2_seed5678: train it with "
        r"-p EXPERIMENT deeplabv3plus_resnet_1024_v2 -p SEED 5678$",
    ):
        choose_rule(tmp_path, ensemble="notes_best")
    make_run(tmp_path, "deeplabv3plus_resnet_1024_v2_seed5678")
    result = choose_rule(tmp_path, ensemble="notes_best")
    assert result.folder.name == "notes_best"
    assert [m.run.split("_")[0] for m in result.ensemble.members] == [
        "deeplabv3plus",
        "UNetResNet34",
    ]
    named = choose_rule(tmp_path, ensemble="notes_best", runs="UNetResNet34_1024_v1_seed3456")
    assert len(named.ensemble.members) == 1, "RUNS names the members, ENSEMBLE only the folder"


def test_a_recipe_s_file_and_runs_exclude_each_other(tmp_path):
    make_run(tmp_path, "a")
    storage.write_json(tmp_path / "mine.json", {"members": [{"run": "a"}]})
    with pytest.raises(InputError, match="names the members, so leave RUNS out"):
        choose_rule(tmp_path, ensemble=str(tmp_path / "mine.json"), runs="a")
    storage.write_json(tmp_path / "my own.json", {"members": [{"run": "a"}]})
    with pytest.raises(InputError, match="letters, digits"):
        choose_rule(tmp_path, ensemble=str(tmp_path / "my own.json"))
    with pytest.raises(InputError, match=r"absent.json cannot be read"):
        choose_rule(tmp_path, ensemble=str(tmp_path / "absent.json"))


def test_documents_of_before_load_as_they_did(tmp_path):
    make_run(tmp_path, "plain")
    result = choose_rule(tmp_path)
    kept = document(result)
    del kept["search"]["label_swept"]
    storage.write_json(result.folder / "thresholds.json", kept)
    assert Decision.load(result.folder).choice.triplet == result.choice.triplet
    assert write_report(result.folder, [tmp_path]).exists()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def content(change) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def columns(change) -> Callable[[Path], None]:
    return lambda path: change(pd.read_csv(path)).to_csv(path, index=False)


def arrays(change) -> Callable[[Path], None]:
    def changed(path: Path) -> None:
        with np.load(path) as kept:
            given = dict(kept)
        np.savez(path, **change(given))

    return changed


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(N))


def without_searches(path: Path) -> None:
    document = json.loads(path.read_text())
    del document["searches"]
    storage.write_json(path, document)


ANY = [
    Path.unlink,
    a_folder,
    content(lambda data: b""),
    content(lambda data: data[: len(data) // 2]),
]
DAMAGES = {
    "members.json": ANY,
    "thresholds.json": [*ANY, without_searches],
    "oof.csv": [
        *ANY,
        content(lambda data: data[:-1]),
        content(lambda data: b"".join(data.splitlines(keepends=True)[:-1])),
        columns(lambda frame: frame.rename(columns={"dice": "score"})),
        columns(lambda frame: frame.assign(image_id="x" + frame["image_id"])),
        columns(lambda frame: frame.assign(fold=1 - frame["fold"])),
        columns(lambda frame: frame.assign(dice="high")),
    ],
    "oof_statistics.npz": [
        *ANY,
        one_array,
        arrays(lambda kept: {"hist_all": np.zeros((N, 256), np.int32)}),
        arrays(lambda kept: {name: values[1:] for name, values in kept.items()}),
        arrays(lambda kept: kept | {"n_px": np.array([N] * N, dtype=object)}),
    ],
    "oof_distances.csv": [
        *ANY[1:],
        content(lambda data: data[:-1]),
        content(lambda data: b"".join(data.splitlines(keepends=True)[:-1])),
        columns(lambda frame: frame.rename(columns={"hd95_px": "hd"})),
        columns(lambda frame: frame.assign(image_id="x" + frame["image_id"])),
        columns(lambda frame: frame.assign(assd_px=-1)),
        columns(lambda frame: frame.assign(assd_px="far")),
    ],
}


def test_what_the_report_reads_of_an_ensemble_is_whole_or_named_with_the_stage(tmp_path):
    make_run(tmp_path, "a"), make_run(tmp_path, "b")
    folder = choose_rule(tmp_path, runs="a,b", ensemble="e", combine="member_vote").folder
    assert report.load(folder, [tmp_path]).summary_lines[0].startswith("rule of a: top")
    for name, damages in DAMAGES.items():
        for damage in damages:
            spoilt = tmp_path / "spoilt"
            shutil.copytree(folder, spoilt)
            damage(spoilt / name)
            with pytest.raises(
                InputError, match=rf"(?s)/{name} is (missing|damaged \(.*).*thresholds stage"
            ):
                report.load(spoilt, [tmp_path])
            shutil.rmtree(spoilt)


@pytest.mark.parametrize("how", [{}, {"combine": "member_vote"}, {"choose": "greedy"}])
def test_scores_in_every_definition_are_those_of_the_honest_masks(tmp_path, how):
    """Counted from the masks drawn again, each with the choice for its fold."""
    make_run(tmp_path, "a", alarms=True), make_run(tmp_path, "b", noise=200)
    result = choose_rule(tmp_path, runs="a,b", ensemble="e", **how)
    data = report.load(result.folder, [tmp_path])
    choices = {rule.fold: rule.choice for rule in result.honest.rules}
    candidates, drawn = data.decision.candidates, table().set_index("image_id")
    found = report_scores.images_of(data).set_index("image_id")
    assert len(found) == N
    for row in result.honest.per_image.itertuples():
        choice, truth = choices[row.part], rle.decode(drawn.loc[row.image_id, "rle"], (SIZE, SIZE))
        mask = combined_mask(
            data.candidate_maps[row.fold], row.image_id, truth.shape, choice,
            choice.weights or candidates.weights,
        )  # fmt: skip
        counted = [(mask & truth).sum(), mask.sum(), truth.sum(), truth.size]
        assert found.loc[row.image_id, score_definitions.COUNTS].tolist() == counted
        distances = found.loc[row.image_id, score_definitions.DISTANCES].tolist()
        assert distances == pytest.approx(list(surface_distance(mask, truth)), nan_ok=True)
    assert found["hd95_px"].notna().any()
    shown = report_scores.sections(data, None)[0].body[1].set_index("score")
    honest = result.honest
    expected = [honest.honest.dice, *honest.interval]
    of_all = shown.loc["dice, per image", ["value", "95 % from", "to"]].tolist()
    assert of_all == pytest.approx(expected, abs=1e-4)
    of_positives = shown.loc["dice, positives", "value"]
    assert of_positives == pytest.approx(honest.honest.dice_nonempty, abs=1e-4)
    assert shown.loc["AUC", "value"] == pytest.approx(honest.auc_sum, abs=1e-4)


def test_an_ensemble_of_an_earlier_version_is_reported_without_distances(tmp_path):
    make_run(tmp_path, "plain", label=True)
    folder = choose_rule(tmp_path).folder
    page = write_report(folder, [tmp_path]).read_text(encoding="utf-8")
    assert ">HD95, px<" in page
    assert "classification probability" in page
    (folder / "oof_distances.csv").unlink()
    assert report.load(folder, [tmp_path]).distances is None
    page = write_report(folder, [tmp_path]).read_text(encoding="utf-8")
    assert ">HD95, px<" not in page
    assert ">dice, per image<" in page
    # The earliest have neither patients nor what the AUC is of.
    path = folder / "oof.csv"
    columns(lambda frame: frame.drop(columns=["group", "sum_prob", "label"]))(path)
    text, shown = report_scores.sections(report.load(folder, [tmp_path]), None)[0].body
    assert "AUC" not in text
    assert "dice, per image" in set(shown["score"])
    assert "AUC" not in set(shown["score"])


def test_subgroups_are_of_the_metadata_beside_the_images(tmp_path):
    make_run(tmp_path, "plain")
    data = report.load(choose_rule(tmp_path).folder, [tmp_path])
    source = SimpleNamespace(root=tmp_path, train=pd.DataFrame({"image_id": [], "path": []}))

    def subgroups() -> tuple[pd.DataFrame, list[str]]:
        shown, *rest = report_scores.sections(data, source)[1].body
        return shown, rest[0] if rest else []

    assert set(subgroups()[0]["by"]) == {"mask size, px of 1024²"}
    views = pd.DataFrame({"ImageId": table()["image_id"], "view": ["PA"] * 20 + ["AP"] * 4})
    views.to_csv(tmp_path / "metadata.csv", index=False)
    shown, warnings = subgroups()
    of_view = shown[shown["by"] == "view"]
    assert of_view[["subgroup", "images"]].to_numpy().tolist() == [["AP", 4], ["PA", 20]]
    assert any(warning.startswith("view: ") for warning in warnings)
    views.assign(ImageId="x").to_csv(tmp_path / "metadata.csv", index=False)
    assert "metadata.csv row 3: image x is there twice" in subgroups()[1][0]
    views.assign(ImageId="x" + views["ImageId"]).to_csv(tmp_path / "metadata.csv", index=False)
    assert "names none of the 24 images" in subgroups()[1][0], "the stage goes on"


def test_an_image_may_be_called_na(tmp_path):
    make_run(tmp_path, "plain")
    folder = choose_rule(tmp_path).folder
    path = folder / "oof.csv"
    path.write_text(path.read_text().replace("i00", "NA"))
    decision, drawn = Decision.load(folder), table().replace("i00", "NA")
    assert load_per_image(folder, decision, drawn)["image_id"].tolist()[0] == "NA"


def test_a_damaged_log_is_named_with_the_stage(tmp_path):
    make_run(tmp_path, "plain")
    folder = choose_rule(tmp_path).folder
    fold_run.fold_folder(tmp_path, "plain", 1).log.write_text('{"epoch": 1, ')
    with pytest.raises(InputError, match=r"fold1/log.jsonl is damaged .*: run the train stage"):
        report.load(folder, [tmp_path])


def test_rules_of_another_ensemble_are_no_rules_of_this_one(tmp_path):
    make_run(tmp_path, "a"), make_run(tmp_path, "b")
    mean = choose_rule(tmp_path, runs="a,b", ensemble="mean").folder
    vote = choose_rule(tmp_path, runs="a,b", ensemble="vote", combine="member_vote").folder
    shutil.copy(mean / "thresholds.json", vote)
    with pytest.raises(InputError, match=r"vote/members\.json is not the ensemble"):
        report.load(vote, [tmp_path])


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 99.0}, {"weight": 1e308}, {"weight": float("inf")}, {"folds": [0]},
        "drop", "double", {"combine": "vote"}, {"gate": "sum"},
    ],
)  # fmt: skip
def test_an_ensemble_that_was_edited_after_the_search_has_no_score(tmp_path, change):
    make_run(tmp_path, "a"), make_run(tmp_path, "b")
    folder = choose_rule(tmp_path, runs="a,b", ensemble="mean").folder
    document = json.loads((folder / "members.json").read_text())
    first, second = document["members"]
    if change == "drop":
        document["members"] = [first]
    elif change == "double":
        document["members"] = [first, first, second]
    elif "combine" in change or "gate" in change:
        document |= change
    else:
        document["members"][0] |= change
    (folder / "members.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"(?s)members\.json .*run the thresholds stage"):
        report.load(folder, [tmp_path])


@pytest.mark.parametrize("name", ["oof", "oof_last"])
def test_a_fold_that_was_trained_again_after_the_search_has_no_score(tmp_path, name):
    make_run(tmp_path, "a")
    folder = choose_rule(tmp_path).folder
    path = getattr(fold_run.fold_folder(tmp_path, "a", 1), name)
    rewrite(path, checkpoints={"best_epoch001.pt": "another"})
    for read in (
        lambda: report.load(folder, [tmp_path]),
        lambda: load_held_out(folder, [tmp_path]),
    ):
        with pytest.raises(InputError, match=r"runs/a/fold1 was trained again .*thresholds stage"):
            read()


@pytest.mark.parametrize("content", [b"", b'["x: no la', b"{}", b"[1]", b"\xff"])
def test_a_damaged_list_of_images_left_out_is_named_before_the_search(tmp_path, content):
    make_run(tmp_path, "plain")
    listed = tmp_path / "left_out.json"
    listed.write_bytes(content)
    with pytest.raises(InputError, match=r"left_out.json is damaged"):
        choose_rule(tmp_path)
    assert not (tmp_path / "ensembles").exists()
    listed.unlink()
    choose_rule(tmp_path)


@pytest.mark.parametrize("combine", ["mean", "member_vote"])
def test_the_report_tells_how_far_members_agree(tmp_path, combine):
    for run, noise in (("a", 40), ("b", 90), ("c", 120)):
        make_run(tmp_path, run, noise=noise)
    result = choose_rule(tmp_path, runs="a,b,c", combine=combine)
    found = report_images.member_agreement(result.data)
    assert (found.names, found.n_images, len(found.dice)) == (("a", "b", "c"), N, N)
    rules = result.choice.rules or (result.choice.triplet,) * 3
    truth = table().set_index("image_id")["rle"]
    expected = {}
    for fold in (0, 1):
        kept = {run: maps.Maps(fold_run.fold_folder(tmp_path, run, fold).oof) for run in "abc"}
        for image in kept["a"].ids:
            drawings = [kept[run][image] for run in "abc"]
            shown = [apply_rule(*pair) for pair in zip(drawings, rules, strict=True)]
            true = rle.decode(truth[image], (SIZE, SIZE))
            expected[image] = [[metrics.dice(x, y) for y in shown] for x in (*shown, true)]
    assert found.dice.tolist() == [expected[image] for image in table()["image_id"]]
    assert found.positive.tolist() == [text != "-1" for text in truth]
    page = write_report(result.folder, [tmp_path]).read_text(encoding="utf-8")
    assert found.matrices().sentence in html.unescape(page)
    assert found.votes().sentence in html.unescape(page)


def test_of_many_images_some_are_compared_and_of_one_member_none(tmp_path):
    make_run(tmp_path, "a")
    make_run(tmp_path, "b")
    result = choose_rule(tmp_path, runs="a,b")
    few = report_images.member_agreement(result.data, most=5)
    every = report_images.member_agreement(result.data)
    assert "5 images sampled evenly from 24" in few.votes().sentence
    assert few.dice.tolist() == every.dice[[0, 6, 12, 17, 23]].tolist()
    alone = choose_rule(tmp_path, runs="a")
    assert report_images.member_agreement(alone.data).matrices() is None
    page = write_report(alone.folder, [tmp_path]).read_text(encoding="utf-8")
    assert "agreement" not in page


@pytest.mark.parametrize("how", [{"choose": "greedy"}, {"combine": "member_vote"}])
@pytest.mark.parametrize("n_entries", [1, 4, 9])
def test_a_stopped_search_goes_on_where_it_was(tmp_path, monkeypatch, how, n_entries):
    make_run(tmp_path, "a"), make_run(tmp_path, "b", noise=60), make_run(tmp_path, "c", noise=200)
    runs = {"runs": "a,b,c", **how}
    whole = choose_rule(tmp_path, ensemble="whole", **runs)
    searched = []

    def counted(real):
        def search(stats, *options, **how):
            searched.append(len(stats))
            return real(stats, *options, **how)

        return search

    class Stopping(SearchRecord):
        def __setitem__(self, name, value):
            if len(searched) >= n_entries:
                raise KeyboardInterrupt
            super().__setitem__(name, value)

    for name in ("search", "best_score"):
        monkeypatch.setattr(strategies, name, counted(getattr(strategies, name)))
    with monkeypatch.context() as patched:
        patched.setattr(stage, "SearchRecord", Stopping)
        with pytest.raises(KeyboardInterrupt):
            choose_rule(tmp_path, ensemble="stopped", **runs)
    folder = whole.folder.with_name("stopped")
    kept = (folder / "search_kept.jsonl").read_text().splitlines()[1:]
    assert not (folder / "thresholds.json").exists()
    searched.clear()
    choose_rule(tmp_path, ensemble="again", **runs)
    n_whole = len(searched)
    searched.clear()
    stopped = choose_rule(tmp_path, ensemble="stopped", **runs)
    assert len(searched) == n_whole - len(kept)
    expected = document(whole)
    for named in ("ensemble", "selection"):
        if named in expected:
            expected[named] |= {"name": "stopped"} if "name" in expected[named] else {}
    assert document(stopped) == expected
    assert (folder / "oof.csv").read_bytes() == (whole.folder / "oof.csv").read_bytes()
    assert not list(folder.glob("search*"))
