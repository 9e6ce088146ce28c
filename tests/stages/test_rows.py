"""Every row, end to end at a small size: trained after its parents, searched, submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run, maps
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.plan import plan_training
from kernel_lib.postprocess import submission
from kernel_lib.stages import inference as inference_stage
from kernel_lib.stages import thresholds as thresholds_stage
from kernel_lib.stages import train as train_stage
from tools.phantoms import competition

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("apart", "no_report")]

SMALL = {"size": 64, "encoder": "tu-test_resnet", "epochs": 2, "min_epochs": 1, "n_folds": 2,
         "fold": 0, "batch_size": 4, "threads": 1, "device": "cpu", "weights": "none",
         "accumulate": 1, "parent_weights": "none", "with_parents": True}  # fmt: skip
MASKS = [n for n, row in EXPERIMENTS.items() if row.network != "Classifier" and row.images != "nih"]
SHOWN = [n for n in MASKS if "nih" not in n]


@pytest.fixture(scope="module")
def place(scratch) -> Path:
    competition.write_competition(
        scratch / "data", 24, 3, size=64, seed=1, difficulty=0.1, positives=0.5, workers=1,
        progress=False,
    )  # fmt: skip
    return scratch


def parameters(place: Path, name: str, **changes) -> TrainParameters:
    row = EXPERIMENTS[name]
    given = SMALL | ({"weights": None} if row.weights in EXPERIMENTS else {}) | changes
    return TrainParameters(
        experiment=name, data_dir=str(place / "data"), work_dir=str(place / "work"),
        cache_dir=str(place / "cache"), **given,
    )  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_a_row_is_trained_predicted_searched_and_submitted(place, name):
    result = train_stage.run(parameters(place, name))
    assert result.complete
    folder = fold_run.find([place / "work"], result.run)[0]
    row = EXPERIMENTS[name]
    archive = maps.Maps(folder.oof)
    assert archive[archive.ids[0]].shape == (64, 64)
    assert archive.has_labels == (row.label_weight > 0)
    past = checkpoints.past(folder.last)
    assert set(past.images).isdisjoint(archive.ids)
    decided = plan_training(parameters(place, name), EXPERIMENTS)
    assert past.ancestors == ((decided.parent.run,) if decided.parent else ())
    found = thresholds_stage.run(
        ThresholdsParameters(runs=result.run, work_dir=str(place / "work"), bootstrap=100)
    )
    assert found.past_known
    assert 0 < found.honest.honest.dice <= 1
    assert (found.honest.auc_label is not None) == (row.label_weight > 0 or row.gate is not None)
    submitted = inference_stage.run(
        InferenceParameters(
            ensemble=found.folder.name, data_dir=str(place / "data"), threads=1, device="cpu",
            work_dir=str(place / "work"), cache_dir=str(place / "cache"),
        )
    )  # fmt: skip
    assert len(submission.read(submitted.submission)) == 3


def test_rows_of_every_network_speak_together(place):
    """Those of the test above, of one folds file: as a mean, and as a vote of finished masks."""
    names = [
        "UNetResNet34_512_v1", "deeplabv3plus_resnet_512_v1", "attention_UNetResNet34_512_v1",
        "multitask_UNetResNet34_512_v1", "deep_supervision_UNetResNet34_512_v1",
    ]  # fmt: skip
    trained = [train_stage.run(parameters(place, name)).run for name in names]
    for combine in ("mean", "member_vote", "member_union"):
        found = thresholds_stage.run(
            ThresholdsParameters(
                runs=",".join(trained), ensemble=combine, combine=combine, bootstrap=100,
                work_dir=str(place / "work"),
            )
        )  # fmt: skip
        assert found.past_known
        assert 0 < found.honest.honest.dice <= 1
        submitted = inference_stage.run(
            InferenceParameters(
                ensemble=combine, data_dir=str(place / "data"), threads=1, device="cpu",
                work_dir=str(place / "work"), cache_dir=str(place / "cache"),
            )
        )  # fmt: skip
        assert len(submission.read(submitted.submission)) == 3


def test_a_child_without_its_parent_says_how_to_make_it(place):
    words = (
        r"starts from fold 0 of UNetResNet34_512_v1_size64.*is not finished here.*train it first "
        r"with -p EXPERIMENT UNetResNet34_512_v1 .*-p SEED 9.*-p WITH_PARENTS True"
    )
    with pytest.raises(InputError, match=words):
        train_stage.run(parameters(place, "UNetResNet34_512_v3", seed=9, with_parents=False))


def test_a_chain_is_trained_in_turn_and_goes_on_where_it_stopped(place):
    chain = parameters(place, "UNetResNet34_512_v3", seed=5, max_hours=1e9)
    first = train_stage.run(chain)
    assert first.complete
    names = fold_run.run_names([place / "work"])
    assert {n for n in names if n.endswith("seed5")} == {
        plan_training(chain, EXPERIMENTS).parent.run,
        first.run,
    }
    stamps = {p: p.stat().st_mtime_ns for p in (place / "work" / "runs").rglob("*.pt")}
    assert train_stage.run(chain).complete
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
