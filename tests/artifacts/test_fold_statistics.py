"""A fold's statistics come back exactly as saved; damage and what does not fit are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_lib.artifacts import fold_statistics
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.artifacts.fold_run import FoldConfig
from kernel_lib.artifacts.fold_statistics import FoldStatistics, Origin
from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.postprocess.histograms import Stacked, stack, statistics

IDS = ("NA", "007", "é")


def origin(fold: int = 0, weight: float = 2.0, lr: float = 0.1, gates=("sorter",)) -> Origin:
    members = (Member(run="net", folds=(fold,), weight=weight),)
    ensemble = Ensemble(
        name="e", members=members, gate="label", folds_digest="d",
        gate_members=tuple(Member(run=run, folds=(fold,)) for run in gates),
    )  # fmt: skip
    configs = tuple(
        FoldConfig(run=m.run, fold=fold, seed=1, n_folds=3, folds_digest="d",
                   experiment=Experiment(name=m.run, lr=lr))
        for m in ensemble.all_members
    )  # fmt: skip
    return Origin(
        fold=fold, ensemble=ensemble, configs=configs, past_known=True,
        predicted_by={"kept": {f"net/fold{fold}/oof.zip": {"a.pt": "0f"}}, "last": {}},
        selected={"kept": True, "last": False},
    )  # fmt: skip


def seen(seed: int, labels=(3, None, 250)) -> Stacked:
    random = np.random.default_rng(seed)
    prob = random.integers(0, 256, (len(IDS), 8, 9), dtype=np.uint8)
    return stack([statistics(p, p > 200, k) for p, k in zip(prob, labels, strict=True)])


def example(of: Origin | None = None, seed: int = 0) -> FoldStatistics:
    stats = {"kept": seen(seed), "last": seen(seed + 1, (None,) * 3)}
    gate = {"kept": np.array([1, 2, 3]), "last": np.array([4, 5, -1])}
    views = np.array([0.5, np.nan, 1])
    return FoldStatistics.of(of or origin(), IDS, stats, gate, views)


def test_everything_comes_back(tmp_path):
    saved = example()
    path = saved.save(tmp_path)
    assert path == tmp_path / "statistics/fold0.npz"
    back = FoldStatistics.load(path)
    assert back.same_as(saved)
    assert (back.origin, back.image_ids) == (saved.origin, IDS)
    for kind, stats in (("kept", seen(0)), ("last", seen(1, (None,) * 3))):
        for gate in ("none", "sum"):
            mine = back.stacked(kind, gate)
            for name in ("hist_all", "hist_true", "n_px", "has_truth", "label"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(stats, name))
                assert getattr(mine, name).dtype == getattr(stats, name).dtype
    assert back.stacked("last", "label").label.tolist() == [4, 5, -1]


@pytest.mark.parametrize(
    "other",
    [example(seed=1), example(origin(lr=0.2)), replace(example(), image_ids=("a", "b", "c"))],
)
def test_what_differs_is_not_the_same(other):
    assert example().same_as(example())
    assert not example().same_as(other)


@pytest.mark.parametrize(
    ("other", "named"),
    [(origin(1), ""), (origin(1, weight=1.0), "members"), (origin(1, lr=0.2), "lr"),
     (origin(1, gates=()), "gating classifiers")],
)  # fmt: skip
def test_folds_of_one_ensemble_have_its_members_weights_gate_and_configurations(
    tmp_path, other, named
):
    assert named in (differs := origin().difference(other))
    assert bool(differs) == bool(named)
    for of in (origin(), other):
        example(of).save(tmp_path / "ensembles/e")
    if named:
        with pytest.raises(InputError, match=named):
            fold_statistics.find([tmp_path], "e")
    else:
        assert list(fold_statistics.find([tmp_path], "e")) == [0, 1]


def test_the_first_root_comes_first_and_other_files_are_not_read(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    example(seed=1).save(one / "ensembles/e")
    for of in (origin(), origin(1)):
        example(of).save(two / "ensembles/e")
    (two / "ensembles/e/statistics/fold1 (copy).npz").touch()
    found = fold_statistics.find([one, two], "e")
    assert found[0].same_as(example(seed=1))
    assert found[1].same_as(example(origin(1)))
    assert fold_statistics.names([one, two]) == ["e"]
    assert fold_statistics.find([one, two], "f") == {}


def _changed(**arrays) -> FoldStatistics:
    good = example()
    return replace(good, arrays=dict(good.arrays) | arrays)


@pytest.mark.parametrize(
    "wrong",
    [
        _changed(n_px=np.array([72, 72, 71])),
        _changed(hist_all_kept=np.zeros((3, 255), np.int32)),
        _changed(hist_all_kept=np.zeros((3, 256), np.float64)),
        _changed(hist_true_last=example().arrays["hist_all_last"] + 1),
        _changed(label_last=np.array([0, 256, 1], np.int16)),
        _changed(view_disagreement=np.array([0, 1.5, 1])),
        _changed(view_disagreement=np.zeros(2)),
        replace(example(), image_ids=("a", "a", "b")),
        replace(example(), image_ids=("a", "b")),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, wrong):
    path = wrong.save(tmp_path)
    with pytest.raises(InputError, match=r"fold0\.npz is damaged .* gather it again"):
        FoldStatistics.load(path)


def test_a_missing_file_and_one_under_the_number_of_another_fold_are_named(tmp_path):
    path = example().save(tmp_path)
    moved = path.rename(path.with_stem("fold1"))
    with pytest.raises(InputError, match="it is of fold 0"):
        FoldStatistics.load(moved)
    with pytest.raises(InputError, match="missing"):
        FoldStatistics.load(path)


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> tuple[Path, bytes]:
    path = example().save(tmp_path_factory.mktemp("statistics"))
    return path, path.read_bytes()


@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_read_as_it_was(content, at, byte, cut):
    path, good = content
    at = int(at * len(good))
    path.write_bytes(good[:at] if cut else good[:at] + bytes([byte]) + good[at + 1 :])
    refusal = str(path)
    try:
        assert FoldStatistics.load(path).same_as(example())
    except InputError as error:
        refusal = str(error)
    assert str(path) in refusal
