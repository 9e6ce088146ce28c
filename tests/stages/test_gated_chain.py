"""Two steps on phantoms: a classifier's labels gate a mask model's masks, from training to rows."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from kernel_lib.artifacts import fold_run, maps
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.postprocess import submission
from kernel_lib.stages import inference, thresholds, train
from tools.phantoms import competition

pytestmark = pytest.mark.slow


def test_two_steps_go_the_whole_way(tmp_path, monkeypatch, no_report):
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path / "mounts"))
    before = torch.get_num_threads()
    competition.write_competition(
        tmp_path / "data", 16, 4, size=64, seed=1, difficulty=0.1, positives=0.5, workers=1,
        progress=False,
    )  # fmt: skip
    place = {"data_dir": str(tmp_path / "data"), "work_dir": str(tmp_path / "work")}
    device = {"cache_dir": str(tmp_path / "cache"), "threads": 1, "device": "cpu"}
    small = {"size": 64, "encoder": "resnet18", "weights": "none", "epochs": 2, "n_folds": 2}
    small["parent_weights"] = "none"  # the classifier learns from scratch, too
    trained = train.run(
        TrainParameters(experiment="two_step", with_parents=True, **small, **place, **device)
    )
    searched = thresholds.run(ThresholdsParameters(runs=trained.run, bootstrap=100, **place))
    (judge,) = searched.ensemble.gate_members
    assert judge.run.startswith("two_step_classifier_512_v1")
    assert 0 <= searched.honest.auc_label <= 1
    result = inference.run(InferenceParameters(**place, **device))
    (gate,) = [line for line in result.summary_lines if line.startswith("gate: ")]
    assert judge.run in gate
    for folder in fold_run.find([tmp_path / "work"], judge.run).values():
        test = maps.Maps(folder.test)
        assert (test.has_maps, test.has_labels, len(test)) == (False, True, 4)
    # A label that no image exceeds empties every mask; one that all exceed changes nothing.
    path, found = searched.folder / "thresholds.json", {}
    kept = json.loads(path.read_text())
    for label in (1.0, 0.0, None):
        rule = {"top": 0.0, "min_area_px": 0, "bottom": 0.0}
        rule |= {} if label is None else {"label": label}
        path.write_text(json.dumps(kept | {"rule": rule}))
        result = inference.run(InferenceParameters(**place, **device))
        found[label] = submission.read(result.submission)["rle"].tolist()
    assert found[1.0] == ["-1"] * 4
    assert found[0.0] == found[None] != found[1.0]
    for fold, folder in fold_run.find([tmp_path / "work"], judge.run).items():
        if fold == 1:
            shutil.rmtree(folder.path)
    with pytest.raises(InputError, match="no fold 1 under"):
        inference.run(InferenceParameters(**place, **device))
    torch.set_num_threads(before)
