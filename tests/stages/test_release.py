"""A fold's checkpoint as a released model, with the rule and score that are its own."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run
from kernel_lib.errors import InputError
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.released import Released
from kernel_lib.stages import release

pytestmark = pytest.mark.usefixtures("apart")


def make(work, out, fold="fold1", last=False, ensemble="tiny"):
    folder = work / "runs" / "tiny" / fold
    return release.run(
        folder, work / "ensembles" / ensemble, "small", out, last=last, licence="MIT"
    )


@pytest.mark.parametrize("last", [False, True])
def test_the_file_holds_the_checkpoint_its_rule_score_and_lineage(untrained, tmp_path, last):
    work = shutil.copytree(untrained, tmp_path / "work")
    folder = fold_run.fold_folder(work, "tiny", 1)
    state, past = checkpoints.load(folder.best(1))
    if last:
        state["ema"] = {"model": {k: v * 2 for k, v in state["model"].items()}}
        checkpoints.save(folder.last, state, past.joined(past, "some/where/parent.pt"))
    _, size = make(work, tmp_path / "small.safetensors", last=last)
    found = Released.load(tmp_path / "small.safetensors")
    assert size == (tmp_path / "small.safetensors").stat().st_size
    expected = (state["ema"] if last else state)["model"]["head.logit.weight"].half().float()
    assert torch.equal(found.model.head.logit.weight, expected)
    document = json.loads((work / "ensembles" / "tiny" / "thresholds.json").read_text())
    chosen = Triplet.from_json(document["last"]["chosen"])  # which is scored, as the other's is
    assert found.rule == (chosen if last else Triplet(0.6, 2000, 0.5))
    assert (found.gate, found.tta, found.experiment.name) == ("none", "hflip", "tiny")
    assert found.lineage.images == past.images
    assert found.lineage.ancestors == (("parent.pt",) if last else ())
    assert found.score["honest"] == document["last" if last else "honest"]["honest"]
    assert found.score["honest_score_holds"]


def test_the_score_of_a_mean_of_checkpoints_is_not_that_of_one(untrained, tmp_path):
    work = shutil.copytree(untrained, tmp_path / "work")
    folder = fold_run.fold_folder(work, "tiny", 1)
    shutil.copy(folder.best(1), folder.best(2))
    line = json.loads(folder.log.read_text())
    folder.log.write_text(folder.log.read_text() + json.dumps(line | {"epoch": 2}) + "\n")
    for last in (False, True):
        make(work, tmp_path / "small.safetensors", last=last)
        found = Released.load(tmp_path / "small.safetensors")
        assert found.score["honest_score_holds"] == last


def test_a_rule_of_other_networks_is_refused(untrained, tmp_path):
    work = shutil.copytree(untrained, tmp_path / "work")
    path = work / "ensembles" / "tiny" / "members.json"
    document = json.loads(path.read_text())
    searched = work / "ensembles" / "tiny" / "thresholds.json"
    of_an_earlier_version = json.loads(searched.read_text())
    del of_an_earlier_version["ensemble"]
    searched.write_text(json.dumps(of_an_earlier_version))
    another = [*document["members"], {"run": "other", "folds": [0, 1], "weight": 1.0}]
    for changes, pattern in (
        ({"members": another}, r"decides for tiny, other .*-p RUNS tiny"),
        ({"folds_digest": "another"}, "run the thresholds stage"),
        ({"members": [document["members"][0] | {"folds": [0]}]}, "run the thresholds stage"),
    ):
        path.write_text(json.dumps(document | changes))
        with pytest.raises(InputError, match=pattern):
            make(work, tmp_path / "small.safetensors")
    with pytest.raises(InputError, match="is no fold of a run"):
        make(work, tmp_path / "small.safetensors", fold="")
    with pytest.raises(InputError, match=r"is a \.safetensors file"):
        make(work, tmp_path / "small.pt")
    assert not list(tmp_path.glob("small*"))
