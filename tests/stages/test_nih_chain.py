"""From NIH's labels to a mask model, through the notebook's own stage, and what may be scored."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run
from kernel_lib.config import ThresholdsParameters, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.stages import thresholds as thresholds_stage
from kernel_lib.stages import train as train_stage
from tools.phantoms import competition, nih

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("apart", "no_report")]

ROW = "nih_UNetResNet34_512_v1"


@pytest.fixture(scope="module")
def place(scratch) -> Path:
    competition.write_competition(
        scratch / "data", 16, 4, size=64, seed=1, difficulty=0.1, positives=0.5, workers=1,
        progress=False,
    )  # fmt: skip
    nih.write_nih(scratch / "nih", scratch / "data", 12, n_test=2, size=64)
    return scratch


def train(place: Path, work: str, **changes):
    given = {"experiment": ROW, "with_parents": True, "parent_weights": "none", "size": 64,
             "encoder": "resnet18", "epochs": 1, "min_epochs": 0, "n_folds": 2, "batch_size": 4,
             "accumulate": 1}  # fmt: skip
    return train_stage.run(
        TrainParameters(
            data_dir=str(place / "data"), work_dir=str(place / work), device="cpu", threads=1,
            cache_dir=str(place / "cache"), nih_dir=str(place / "nih"), **(given | changes),
        )
    )  # fmt: skip


def search(place: Path, work: str, run: str, **changes):
    return thresholds_stage.run(
        ThresholdsParameters(runs=run, work_dir=str(place / work), bootstrap=100, **changes)
    )


def test_a_classifier_a_fold_starts_a_mask_model_that_is_scored_honestly(place):
    result = train(place, "work", groups=str(place / "nih" / "nih_id.csv"))
    assert result.complete
    drawn = pd.read_csv(place / "work" / "folds.csv", dtype=str, keep_default_na=False)
    classifier = [
        n for n in fold_run.run_names([place / "work"]) if n.startswith("nih_UNetResNet34_v1")
    ]
    for fold, folder in fold_run.find([place / "work"], classifier[0]).items():
        held = set(drawn.loc[drawn["fold"] == str(fold), "group"])
        past = checkpoints.past(folder.last)
        assert past.known
        assert held.isdisjoint(past.groups)
        assert held.isdisjoint({name.split("_")[0] for name in past.images})
        child = fold_run.find([place / "work"], result.run)[fold]
        assert set(past.images) < set(checkpoints.past(child.last).images)
        assert checkpoints.past(child.last).ancestors == (classifier[0],)
    assert search(place, "work", result.run).past_known


def test_without_a_table_of_patients_no_score_is_honest(place):
    result = train(place, "unknown", fold=0)
    assert result.complete
    with pytest.raises(InputError, match="its score would not be honest; -p ALLOW_UNKNOWN_PAST"):
        search(place, "unknown", result.run)
    found = search(place, "unknown", result.run, allow_unknown_past=True)
    assert not found.past_known
    assert "NOT HONEST" in str(found)
