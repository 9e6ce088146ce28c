"""Statistics computed where the maps are, gathered, and scored where they are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from kernel_lib import storage
from kernel_lib.__main__ import main
from kernel_lib.artifacts import fold_run, folds_file
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import StatisticsParameters, ThresholdsParameters
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import check_predicted_by
from kernel_lib.stages import export_results, gather, report, thresholds
from kernel_lib.stages import statistics as stage
from kernel_lib.viewer.data import load_held_out
from kernel_lib.viewer.document import render
from tests.stages.place import fold_table, rewrite, write_fold

SIDE, N = 20, 18


def table() -> pd.DataFrame:
    """Images in three folds by turns, every second with a mask; patients of two images."""
    masks = np.zeros((N, SIDE, SIDE), np.uint8)
    for i in range(0, N, 2):
        masks[i, 3 : 6 + i // 2, 2:11] = 1
    return fold_table(list(masks), [i % 3 for i in range(N)], [f"p{i % 9}" for i in range(N)])


def make_run(
    work: Path, run: str, folds: Iterable[int], label=False, masks=True, views=True, **experiment
) -> None:
    """Folds of a finished run; what they predict depends on run, image and archive alone."""
    drawn = table()
    folds_file.save(drawn, work / "folds.csv")

    def predicted(row, archive: str) -> tuple:
        random = np.random.default_rng([ord(c) for c in run + row.image_id + archive])
        truth = rle.decode(row.rle, (SIDE, SIDE))
        levels = (truth * 110 + random.integers(0, 120, truth.shape)).astype(np.uint8)
        probability = round(0.5 * bool(truth.any()) + 0.5 * random.random(), 3)
        apart = round(random.random(), 3) if views and masks else None
        return row.image_id, levels if masks else None, probability if label else None, apart

    for fold in folds:
        held = list(drawn[drawn["fold"] == fold].itertuples())
        kept, last = ([predicted(row, name) for row in held] for name in ("oof", "oof_last"))
        folder = write_fold(work, run, fold, drawn, kept, last, **experiment)
        for path, name in ((folder.oof, "best_epoch001.pt"), (folder.oof_last, "last.pt")):
            by = {name: f"digest of {run}/{fold}/{name}"}
            rewrite(path, levels=None if masks else lambda image_id: None, checkpoints=by)


def search(work: Path, **parameters) -> thresholds.ThresholdsResult:
    return thresholds.run(ThresholdsParameters(work_dir=str(work), bootstrap=100, **parameters))


def count(work: Path, **parameters) -> stage.StatisticsResult:
    return stage.run(StatisticsParameters(work_dir=str(work), **parameters))


def sent(work: Path, to: Path) -> Path:
    """What goes from one machine to another: folds.csv and the statistics, no run."""
    shutil.copytree(work / "ensembles", to / "ensembles")
    shutil.copy(work / "folds.csv", to / "folds.csv")
    return to


def brought(tmp_path: Path, *machines: Path) -> Path:
    """A WORK_DIR with the statistics of some machines and nothing else."""
    sources = [sent(machine, tmp_path / f"from_{machine.name}") for machine in machines]
    gather.run(sources, tmp_path / "here")
    return tmp_path / "here"


def outcome(folder: Path) -> dict:
    """All that the thresholds stage decided and scored, and the table of images."""
    document = json.loads((folder / "thresholds.json").read_text())
    document.pop("from_statistics", None)
    members = json.loads((folder / "members.json").read_text())
    return document | {"members.json": members, "oof.csv": (folder / "oof.csv").read_text()}


@pytest.fixture
def no_report(monkeypatch) -> None:
    monkeypatch.setattr(report, "write", lambda *args, **how: None)


def gated_run(work: Path, folds: Iterable[int]) -> None:
    make_run(work, "net", folds, label=True, label_weight=0.1, gate="sorter")
    make_run(work, "sorter", folds, label=True, masks=False, label_weight=1.0)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("gate", ["auto", "label", "sum", "none"])
@pytest.mark.parametrize("by", ["nothing", "its own label", "a classifier"])
def test_two_machines_score_as_one_with_all_maps(tmp_path, gate, by):
    def make(work: Path, folds: Iterable[int]) -> None:
        if by == "a classifier":
            gated_run(work, folds)
        else:
            own = {} if by == "nothing" else {"label": True, "label_weight": 0.1}
            make_run(work, "net", folds, **own)

    if (by, gate) == ("nothing", "label"):
        pytest.skip("refused with maps too")
    make(tmp_path / "all", (0, 1, 2))
    for name, folds in (("a", (0, 2)), ("b", (1,))):
        make(tmp_path / name, folds)
        assert len(count(tmp_path / name, runs="net").files) == len(folds)
    here = brought(tmp_path, tmp_path / "a", tmp_path / "b")
    assert not (here / "runs").exists()
    from_maps = search(tmp_path / "all", runs="net", gate=gate)
    result = search(here, gate=gate)
    assert outcome(result.folder) == outcome(from_maps.folder)
    assert Decision.load(result.folder).from_statistics
    assert not Decision.load(from_maps.folder).from_statistics
    assert (from_maps.folder / "oof_distances.csv").exists()
    assert not (result.folder / "oof_distances.csv").exists()
    assert set(result.decision.predicted_by) == set(from_maps.decision.predicted_by)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_a_weighted_mean_and_the_folds_vote_need_no_maps(tmp_path, combine):
    recipe = tmp_path / "both.json"
    members = [{"run": "net", "weight": 2.0}, {"run": "other"}]
    storage.write_json(recipe, {"members": members, "combine": combine})
    for run in ("net", "other"):
        make_run(tmp_path / "a", run, (0, 1), views=run == "net")
    count(tmp_path / "a", ensemble=str(recipe))
    here = brought(tmp_path, tmp_path / "a")
    from_maps = search(tmp_path / "a", ensemble=str(recipe))
    assert outcome(search(here, ensemble=str(recipe)).folder) == outcome(from_maps.folder)
    # By its name alone the weights are those of the statistics; RUNS has others.
    assert search(here, ensemble="both").ensemble.weights == (2, 1)
    with pytest.raises(InputError, match=r"net × 2, other × 1, not of net × 1, other × 1"):
        search(here, ensemble="both", runs="net,other")


@pytest.mark.usefixtures("no_report")
def test_selected_epochs_and_an_unknown_past_are_known_without_maps(tmp_path):
    make_run(tmp_path / "a", "net", (0, 1))
    folder = fold_run.fold_folder(tmp_path / "a", "net", 1)
    past = Lineage(known=False, chosen_on=("i01",))
    rewrite(folder.oof, lineage=past.to_json())
    with pytest.raises(InputError, match="ALLOW_UNKNOWN_PAST"):
        count(tmp_path / "a")
    count(tmp_path / "a", allow_unknown_past=True)
    here = brought(tmp_path, tmp_path / "a")
    with pytest.raises(InputError, match="ALLOW_UNKNOWN_PAST"):
        search(here)
    scores = search(here, allow_unknown_past=True).scores
    assert (scores.past_known, scores.kept_selected, scores.last_selected) == (False, True, False)


def test_an_image_that_a_member_saw_is_refused_where_the_maps_are(tmp_path):
    make_run(tmp_path / "a", "net", (0,))
    folder = fold_run.fold_folder(tmp_path / "a", "net", 0)
    rewrite(folder.oof_last, lineage=Lineage(images=("i00",)).to_json())
    with pytest.raises(InputError, match="was trained on image i00"):
        count(tmp_path / "a")
    assert not list((tmp_path / "a/ensembles").rglob("*.npz"))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("asked", "named"),
    [({"choose": "greedy"}, "CHOOSE greedy"), ({"combine": "member_vote"}, "COMBINE member_vote"),
     ({"combine": "member_union"}, "COMBINE member_union")],
)  # fmt: skip
def test_what_needs_maps_is_refused_with_what_does_not_and_runs_with_maps(tmp_path, asked, named):
    for run in ("net", "other"):
        make_run(tmp_path / "a", run, (0, 1))
    count(tmp_path / "a", runs="net,other")
    here = brought(tmp_path, tmp_path / "a")
    with pytest.raises(InputError, match=rf"{named} needs the maps .* COMBINE mean .* gather"):
        search(here, runs="net,other", **asked)
    assert search(tmp_path / "a", runs="net,other", **asked).folder
    recipe = tmp_path / "mine.json"
    members = [{"run": "net"}, {"run": "other"}]
    storage.write_json(recipe, {"members": members} | asked)
    with pytest.raises(InputError, match=named):
        count(tmp_path / "a", ensemble=str(recipe))


@pytest.mark.usefixtures("no_report")
def test_a_label_that_the_statistics_lack_is_refused(tmp_path):
    gated_run(tmp_path / "a", (0, 1))
    count(tmp_path / "a", runs="net", gate="none")
    here = brought(tmp_path, tmp_path / "a")
    with pytest.raises(InputError, match="no label of sorter"):
        search(here)
    assert search(here, gate="sum").ensemble.gate == "sum"


@pytest.mark.usefixtures("no_report")
def test_maps_are_used_where_they_cover_the_statistics(tmp_path, capsys):
    work = tmp_path / "a"
    make_run(work, "net", (0, 1))
    count(work)
    assert not search(work).decision.from_statistics
    make_run(work, "net", (2,))
    assert search(work).ensemble.folds == (0, 1, 2)
    # Of fold 1 the maps are elsewhere: the statistics of 0 and 1 are more than the maps of 0.
    for fold in (1, 2):
        shutil.rmtree(work / f"runs/net/fold{fold}")
    capsys.readouterr()
    assert search(work).ensemble.folds == (0, 1)
    assert "from statistics of its folds [0, 1]" in capsys.readouterr().out
    make_run(work, "net", (2,))
    with pytest.raises(InputError, match=r"folds \[2\] have maps .* folds \[1\] statistics"):
        search(work)
    count(work)  # of the folds that have maps
    assert search(work).ensemble.folds == (0, 1, 2)
    rewrite(fold_run.fold_folder(work, "net", 0).oof, checkpoints={"best_epoch001.pt": "other"})
    with pytest.raises(InputError, match="was trained again after the statistics"):
        search(work)


def test_the_report_opens_without_maps_and_with_the_maps_that_come_later(tmp_path):
    for run in ("net", "other"):
        make_run(tmp_path / "a", run, (0, 1))
    count(tmp_path / "a", runs="net,other")
    here = brought(tmp_path, tmp_path / "a")
    result = search(here)
    assert (result.folder / "report.html").stat().st_size > 10_000
    data = report.load(result.folder, [here])
    assert not data.maps
    titles = [section.title for section in report.sections(data)]
    assert "Scores" in titles
    assert "Member agreement" not in titles
    seen = load_held_out(result.folder, [here])
    assert render(seen).n_embedded == 0
    with pytest.raises(InputError, match="gather"):
        render(seen, ids="i00")
    with pytest.raises(InputError, match="gather"):
        export_results.load(result.folder, None, False)
    shutil.copytree(tmp_path / "a/runs", here / "runs")
    data = report.load(result.folder, [here])
    assert sorted(data.maps) == [0, 1]
    assert "Member agreement" in [section.title for section in report.sections(data)]
    with_maps = load_held_out(result.folder, [here])
    assert render(with_maps, count=2).n_embedded == 2
    pd.testing.assert_frame_equal(seen.table, with_maps.table)
    assert seen.models[0].name == with_maps.models[0].name
    for name in ("hist_all", "hist_true", "n_px", "label"):
        numbers = (getattr(of.stats[0], name) for of in (seen, with_maps))
        np.testing.assert_array_equal(*numbers)
    path = fold_run.fold_folder(here, "other", 1).oof_last
    rewrite(path, checkpoints={"last.pt": "other"})
    with pytest.raises(InputError, match="trained again"):
        check_predicted_by(Decision.load(result.folder), [here])


def test_gather_refuses_what_is_not_of_one_ensemble(tmp_path):
    machines = {name: tmp_path / name for name in "abcde"}
    for name, folds in zip("abcde", ((0, 1), (1, 2), (1,), (2,), (0,)), strict=True):
        make_run(machines[name], "net", folds, **({"lr": 0.5} if name == "d" else {}))
    path = fold_run.fold_folder(machines["c"], "net", 1).oof
    rewrite(path, levels=lambda image_id: np.full((SIDE, SIDE), 7, np.uint8))
    other = table().assign(fold=[2, 1, 0] * 6)
    folds_file.save(other, machines["e"] / "folds.csv")
    folder = fold_run.fold_folder(machines["e"], "net", 0)
    digest = {"folds_digest": folds_file.digest(other)}
    folder.write_config(folder.read_config().model_copy(update=digest))
    for path in (folder.oof, folder.oof_last):
        held = other.loc[other["fold"] == 0, "image_id"].tolist()
        ids = iter(held)
        lineage = Lineage(images=tuple(set(other["image_id"]) - set(held)), chosen_on=())
        rename(path, ids, lineage)
    sources = {}
    for name, machine in machines.items():
        count(machine)
        sources[name] = sent(machine, tmp_path / f"from_{name}")
    with pytest.raises(InputError, match="same fold and differ"):
        gather.run([sources["a"], sources["c"]], tmp_path / "ac")
    with pytest.raises(InputError, match="lr: "):
        gather.run([sources["a"], sources["d"]], tmp_path / "ad")
    with pytest.raises(InputError, match=r"folds\.csv"):
        gather.run([sources["b"], sources["e"]], tmp_path / "be")
    for name in ("ac", "ad", "be"):
        assert not (tmp_path / name / "ensembles").exists()
    # The same fold from two machines, equal; and again, when all is there.
    result = gather.run([sources["a"], sources["b"]], tmp_path / "ab")
    assert result.copied == tuple(f"net/statistics/fold{k}" for k in (0, 1, 2))
    assert "-p ENSEMBLE net" in str(result)
    assert gather.run([sources["a"], sources["b"]], tmp_path / "ab").copied == ()


def rename(path: Path, ids: Iterable[str], lineage: Lineage) -> None:
    """Give an archive's predictions other ids, in order, and another lineage."""
    from kernel_lib.artifacts import maps

    archive = maps.Maps(path)
    pairs = zip(ids, archive.ids, strict=True)
    found = [(new, maps.Prediction(archive[old])) for new, old in pairs]
    maps.write(path, found, archive.meta | {"lineage": lineage.to_json()})


@pytest.mark.usefixtures("no_report")
def test_statistics_of_other_members_or_labels_are_refused(tmp_path):
    work = tmp_path / "a"
    for run in ("net", "other"):
        make_run(work, run, (0, 1))
    count(work, runs="net", ensemble="mine")
    shutil.rmtree(work / "runs/net/fold1")
    with pytest.raises(InputError, match="not of one ensemble"):
        count(work, runs="net,other", ensemble="mine")
    make_run(work, "net", (1,))
    count(work, runs="net,other")
    here = brought(tmp_path, work)
    with pytest.raises(InputError, match="mine, net\\+other"):
        search(here)
    with pytest.raises(InputError, match="are of net × 1, not of other × 1"):
        search(here, runs="other", ensemble="mine")
    assert search(here, runs="net,other").ensemble.folds == (0, 1)
    drawn = table()
    drawn.loc[1, ["rle", "area_px"]] = ["0 3", 3]
    folds_file.save(drawn, here / "folds.csv")
    with pytest.raises(InputError, match="other images or labels"):
        search(here, ensemble="mine")


@pytest.mark.usefixtures("no_report")
def test_a_damaged_file_is_named_before_anything_is_gathered(tmp_path):
    make_run(tmp_path / "a", "net", (0,))
    (path,) = count(tmp_path / "a").files
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    source = sent(tmp_path / "a", tmp_path / "from")
    with pytest.raises(InputError, match=r"fold0\.npz is damaged"):
        gather.run([source], tmp_path / "here")
    assert not (tmp_path / "here" / "folds.csv").exists()
    shutil.rmtree(tmp_path / "a/runs")
    with pytest.raises(InputError, match=r"fold0\.npz is damaged"):
        search(tmp_path / "a", ensemble="net")


def test_the_command_takes_parameters_of_the_maps_alone(tmp_path):
    make_run(tmp_path, "net", (0,))
    given = ["statistics", "-p", "WORK_DIR", str(tmp_path)]
    done = CliRunner().invoke(main, [*given, "-p", "RUNS", "net"])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "ensembles/net/statistics/fold0.npz") in done.output
    refused = CliRunner().invoke(main, [*given, "-p", "BOOTSTRAP", "200"])
    assert refused.exit_code == 1
    assert "BOOTSTRAP" in refused.output.upper()
