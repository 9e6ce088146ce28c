"""Every experiment of masks at a small size: trained after its parents, searched, submitted."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run, maps
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.config import TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.plan import plan_training
from kernel_lib.postprocess import submission
from kernel_lib.stages import train as train_stage
from tests.stages.place import Place
from tools.phantoms import nih

pytestmark = pytest.mark.usefixtures("no_report")

SMALL = {"min_epochs": 1, "fold": 0, "batch_size": 4, "weights": "none", "accumulate": 1,
         "parent_weights": "none", "with_parents": True}  # fmt: skip
SHOWN = [
    name for name, experiment in EXPERIMENTS.items()
    if experiment.network != "Classifier" and "nih" not in name
]  # fmt: skip


@pytest.fixture(scope="module")
def small(scratch, phantoms) -> Place:
    """Where all of them are trained, each once."""
    return Place(scratch, phantoms)


def parameters(small: Place, name: str, work: str = "work", **changes) -> TrainParameters:
    given = SMALL | ({"weights": None} if EXPERIMENTS[name].weights in EXPERIMENTS else {})
    return TrainParameters(**small.training(work, experiment=name, **(given | changes)))


def train(small: Place, name: str, work: str = "work", **changes) -> str:
    result = train_stage.run(parameters(small, name, work, **changes))
    assert result.complete
    return result.run


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_an_experiment_is_trained_predicted_searched_and_submitted(small, name):
    run, experiment = train(small, name), EXPERIMENTS[name]
    folder = small.fold(0, run=run)
    archive = maps.Maps(folder.oof)
    assert archive[archive.ids[0]].shape == (64, 64)
    assert archive.has_labels == (experiment.label_weight > 0)
    past = checkpoints.lineage(folder.last)
    assert set(past.images).isdisjoint(archive.ids)
    planned = plan_training(parameters(small, name), EXPERIMENTS)
    assert past.ancestors == ((planned.parent.run,) if planned.parent else ())
    found = small.search(runs=run)
    assert found.past_known
    assert 0 < found.honest.honest.dice <= 1
    has_label = experiment.label_weight > 0 or experiment.gate is not None
    assert (found.honest.auc_label is not None) == has_label
    submitted = small.infer(ensemble=found.folder.name)
    assert len(submission.read(submitted.submission)) == 4


def test_a_row_with_layer_decay_and_drop_path_is_trained(small):
    """By the cheapest encoder that has both; other tests of rows take longer."""
    changes = {"encoder": "tu-resnet10t", "epochs": 1, "min_epochs": 0}
    run = train(small, "upernet_convnexts_512_v1", "quick", **changes)
    config = small.fold(0, "quick", run).read_config().experiment
    assert (config.network, config.layer_decay, config.drop_path) == ("UPerNet", 0.9, 0.3)
    state = torch.load(small.fold(0, "quick", run).last, weights_only=True)
    factors = [group["lr_factor"] for group in state["optimizer"]["param_groups"]]
    assert factors == pytest.approx([0.9**k for k in (5, 4, 3, 2, 1, 0)])


@pytest.mark.slow
def test_runs_of_every_network_decide_together(small):
    """Those of the test above, of one folds file: as a mean, and as votes of finished masks."""
    names = [
        "UNetResNet34_512_v1", "deeplabv3plus_resnet_512_v1", "attention_UNetResNet34_512_v1",
        "multitask_UNetResNet34_512_v1", "deep_supervision_UNetResNet34_512_v1",
    ]  # fmt: skip
    trained, chosen = [train(small, name) for name in names], {}
    for combine in ("mean", "vote", "member_vote", "member_union"):
        found = small.search(runs=",".join(trained), ensemble=combine, combine=combine)
        chosen[combine] = found.choice.triplet
        assert Ensemble.load(found.folder).combine == combine
        assert found.past_known
        assert 0 < found.honest.honest.dice <= 1
        submitted = small.infer(ensemble=combine)
        assert len(submission.read(submitted.submission)) == 4
    assert chosen["vote"] == chosen["mean"], "out of fold each image has one map"
    assert small.search(runs=",".join(trained[:2])).folder.name == "+".join(sorted(trained[:2]))
    with pytest.raises(InputError, match="-p RUNS"):
        small.search()
    with pytest.raises(InputError, match="name one with -p ENSEMBLE"):
        small.infer()


@pytest.mark.slow
def test_a_child_without_its_parent_says_how_to_make_it(small):
    words = (
        r"starts from fold 0 of UNetResNet34_512_v1_size64.*is not finished here.*train it first "
        r"with -p EXPERIMENT UNetResNet34_512_v1 .*-p SEED 9.*-p WITH_PARENTS True"
    )
    with pytest.raises(InputError, match=words):
        train(small, "UNetResNet34_512_v3", seed=9, with_parents=False)


@pytest.mark.slow
def test_a_chain_is_trained_in_turn_and_goes_on_where_it_stopped(small):
    chain = {"seed": 5, "max_hours": 1e9}
    run = train(small, "UNetResNet34_512_v3", **chain)
    parent = plan_training(parameters(small, "UNetResNet34_512_v3", **chain), EXPERIMENTS).parent
    names = fold_run.run_names([small.root / "work"])
    assert {name for name in names if name.endswith("seed5")} == {parent.run, run}
    stamps = {p: p.stat().st_mtime_ns for p in (small.root / "work" / "runs").rglob("*.pt")}
    assert train(small, "UNetResNet34_512_v3", **chain) == run
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


@pytest.mark.slow
def test_a_classifier_s_labels_gate_the_masks_of_two_steps(small):
    searched = small.search(runs=train(small, "two_step"), ensemble="gated")
    (judge,) = searched.ensemble.gate_members
    assert judge.run.startswith("two_step_classifier_512_v1")
    assert 0 <= searched.honest.auc_label <= 1
    (gate,) = [
        line for line in small.infer(ensemble="gated").summary_lines if line.startswith("gate: ")
    ]
    assert judge.run in gate
    test = maps.Maps(small.fold(0, run=judge.run).test)
    assert (test.has_maps, test.has_labels, len(test)) == (False, True, 4)
    # A label that no image exceeds empties every mask; one that all exceed changes nothing.
    path, masks = searched.folder / "thresholds.json", {}
    document = json.loads(path.read_text())
    for label in (1.0, 0.0, None):
        rule = {"top": 0.0, "min_area_px": 0, "bottom": 0.0}
        rule |= {} if label is None else {"label": label}
        path.write_text(json.dumps(document | {"rule": rule}))
        masks[label] = submission.read(small.infer(ensemble="gated").submission)["rle"].tolist()
    assert masks[1.0] == ["-1"] * 4
    assert masks[0.0] == masks[None] != masks[1.0]
    folder = small.fold(0, run=judge.run).path
    folder.rename(small.root / "away")
    with pytest.raises(InputError, match="no fold 0 under"):
        small.infer(ensemble="gated")
    (small.root / "away").rename(folder)


# From NIH's labels to a mask model, and what may be scored

NIH = "nih_UNetResNet34_512_v1"


@pytest.fixture(scope="module")
def nih_dir(scratch, phantoms) -> Path:
    nih.write_nih(scratch / "nih", phantoms, 12, n_test=2, size=64)
    return scratch / "nih"


@pytest.mark.slow
def test_a_classifier_a_fold_starts_a_mask_model_that_is_scored_honestly(small, nih_dir):
    given = {"nih_dir": str(nih_dir), "groups": str(nih_dir / "nih_id.csv"), "fold": None}
    run = train(small, NIH, "nih_work", epochs=1, min_epochs=0, **given)
    work = small.root / "nih_work"
    drawn = pd.read_csv(work / "folds.csv", dtype=str, keep_default_na=False)
    (classifier,) = [n for n in fold_run.run_names([work]) if n.startswith("nih_UNetResNet34_v1")]
    for fold in (0, 1):
        held = set(drawn.loc[drawn["fold"] == str(fold), "group"])
        past = checkpoints.lineage(small.fold(fold, "nih_work", classifier).last)
        assert past.known
        assert held.isdisjoint(past.groups)
        assert held.isdisjoint({name.split("_")[0] for name in past.images})
        child = checkpoints.lineage(small.fold(fold, "nih_work", run).last)
        assert set(past.images) < set(child.images)
        assert child.ancestors == (classifier,)
    assert small.search("nih_work", runs=run).past_known


@pytest.mark.slow
def test_without_a_table_of_patients_no_score_is_honest(small, nih_dir):
    run = train(small, NIH, "unknown", epochs=1, min_epochs=0, nih_dir=str(nih_dir))
    with pytest.raises(InputError, match="its score would not be honest; -p ALLOW_UNKNOWN_PAST"):
        small.search("unknown", runs=run)
    found = small.search("unknown", runs=run, allow_unknown_past=True)
    assert not found.past_known
    assert "NOT HONEST" in str(found)
