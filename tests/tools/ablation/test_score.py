"""Archives to numbers: against what the pieces say one by one."""

import numpy as np
import pandas as pd
import pytest

from kernel_lib.artifacts import maps
from kernel_lib.artifacts.maps import Maps, Prediction
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.postprocess import metrics
from tools.ablation import score

SIDE, N = 16, 20
SEEN_NOTHING = {"lineage": {"images": ["elsewhere"], "groups": ["someone"]}, "run": "r", "fold": 0}


def mask_of(i: int) -> np.ndarray:
    """Every second image has a square of 6 px, each at another place."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[i // 2 : i // 2 + 6, 2:8] = i % 2
    return mask


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    rows = [(f"i{i}", SIDE, SIDE, f"p{i // 2}", rle.encode(mask_of(i))) for i in range(N)]
    return pd.DataFrame(rows, columns=["image_id", "height", "width", "group", "rle"])


def archive(path, seed: int, labels=None, with_maps=True) -> Maps:
    """Maps of 240 in the true mask and 20 around it, and noise of up to 15 on either."""
    rng = np.random.default_rng(seed)

    def prediction(i: int) -> Prediction:
        levels = 220 * mask_of(i) + 20 + rng.integers(0, 16, (SIDE, SIDE)).astype(np.uint8)
        return Prediction(levels if with_maps else None, labels[i] if labels else None)

    maps.write(path, ((f"i{i}", prediction(i)) for i in range(N)), SEEN_NOTHING)
    return Maps(path)


def test_clear_maps_score_as_they_should(tmp_path, truth):
    columns = score.of_mean([archive(tmp_path / "a.zip", 0)], truth)
    assert columns["half"] == columns["dice"] == [1.0] * N
    area = [int(mask_of(i).sum()) * (1024 // SIDE) ** 2 for i in range(N)]
    assert columns["area_px"] == score.of_truth(truth)["true_area_px"] == area
    assert columns["rle_length"] == [len(rle.encode(mask_of(i))) for i in range(N)]
    assert sum(score.of_truth(truth)["dice"]) == N - sum(a > 0 for a in area)


@pytest.mark.slow
def test_a_label_gates_only_where_it_is_asked_to(tmp_path, truth):
    """Labels that deny every mask: the search finds that they do not help, unless they do."""
    archives = [archive(tmp_path / "a.zip", 0, labels=[i % 2 * 0.5 for i in range(N)])]
    plain = score.of_mean(archives, truth)
    assert plain["label"] == [i % 2 * 0.5 for i in range(N)]
    assert plain["dice"] == score.of_mean(archives, truth, gate="label")["dice"] == [1.0] * N


@pytest.mark.slow
def test_a_gate_of_another_archive_clears_what_maps_cannot(tmp_path, truth):
    """Maps that shine in every image, and a classifier that knows."""
    bright = tmp_path / "bright.zip"
    level = np.full((SIDE, SIDE), 200, np.uint8)
    maps.write(bright, ((f"i{i}", Prediction(level)) for i in range(N)), SEEN_NOTHING)
    knows = archive(tmp_path / "c.zip", 0, [float(mask_of(i).any()) for i in range(N)], False)
    gated = score.of_mean([Maps(bright)], truth, gate="label", labels=knows)
    empty = [i for i in range(N) if not mask_of(i).any()]
    assert all(gated["dice"][i] == 1 for i in empty)
    assert sum(gated["dice"]) > sum(score.of_mean([Maps(bright)], truth, gate="sum")["dice"])


def test_a_classifier_has_a_label_and_no_mask(tmp_path, truth):
    labels = [float(i) / N for i in range(N)]
    assert score.of_mean([archive(tmp_path / "c.zip", 0, labels, False)], truth) == {
        "label": labels
    }


@pytest.mark.slow
def test_a_vote_is_that_of_the_members_masks(tmp_path, truth):
    """Two members see the masks, one sees a corner that is not there: it is outvoted."""
    wrong, corner = tmp_path / "w.zip", np.zeros((SIDE, SIDE), np.uint8)
    corner[:, -4:] = 240
    levels = (np.maximum(220 * mask_of(i), corner) for i in range(N))
    maps.write(wrong, ((f"i{i}", Prediction(x)) for i, x in enumerate(levels)), SEEN_NOTHING)
    members = [archive(tmp_path / "a.zip", 0), Maps(wrong), archive(tmp_path / "b.zip", 1)]
    assert score.of_vote(members, truth)["dice"] == [1.0] * N
    mean = score.of_mean(members[1:2], truth)
    assert min(mean["dice"]) < 1
    for name, column in score.of_vote(members[1:2], truth).items():
        assert column == pytest.approx(mean[name])


def test_the_mean_is_of_maps_and_not_of_scores(tmp_path, truth):
    members = [archive(tmp_path / "a.zip", 0), archive(tmp_path / "b.zip", 1)]
    levels = score.mean_levels(members, truth)
    each = [[member[f"i{i}"].astype(float) for member in members] for i in range(N)]
    assert np.array_equal(levels, [np.rint((a + b) / 2) for a, b in each])
    half = [metrics.dice(mean >= 128, mask_of(i)) for i, mean in enumerate(levels)]
    assert score.of_mean(members, truth)["half"] == half


def test_an_archive_whose_past_holds_an_image_or_its_patient_is_refused(tmp_path, truth):
    for past in ({"images": ["i3"]}, {"groups": ["p3"]}, {"known": False}):
        path = tmp_path / "seen.zip"
        maps.write(path, [], SEEN_NOTHING | {"lineage": past})
        with pytest.raises(InputError):
            score.refuse_seen([Maps(path)], truth)
