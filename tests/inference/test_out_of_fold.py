"""Held-out images, each predicted by members that never saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernel_lib import storage, workers
from kernel_lib.artifacts import filenames, fold_run, maps
from kernel_lib.artifacts.ensemble import Ensemble, Member
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.inference.out_of_fold import OutOfFold, out_of_fold
from kernel_lib.postprocess import votes
from kernel_lib.postprocess.exhaustive import KEEP_NONE
from kernel_lib.postprocess.histograms import Stacked, gate_by_sum, stack
from kernel_lib.postprocess.triplet import Triplet
from tests.inference.small_runs import gather, level_map, make_run, table
from tests.stages.place import rewrite


def test_held_out_images_are_scored_by_the_weighted_mean_at_their_own_size(tmp_path):
    images = table()
    make_run(tmp_path, "a", images), make_run(tmp_path, "b", images)
    ensemble = Ensemble(
        name="x",
        folds_digest="d",
        members=(Member(run="a", folds=(0, 1)), Member(run="b", folds=(0, 1), weight=3.0)),
    )
    held = out_of_fold(ensemble, [tmp_path], images)
    assert held.past_known
    assert held.table["image_id"].tolist() == ["i0", "i2", "i4", "i1", "i3", "i5"]
    for row, image in enumerate(held.table.itertuples()):
        mixed = maps.mean([level_map(image.image_id, r) for r in "ab"], [1.0, 3.0])
        expected = maps.statistics(mixed, image.rle, (24, 20))
        assert np.array_equal(held.stats.hist_all[row], expected.hist_all)
        assert np.array_equal(held.stats.hist_true[row], expected.hist_true)


def test_the_views_disagreement_is_the_weighted_mean_of_members_that_all_know_it(tmp_path):
    images = table()
    known = {("a", 0): lambda i: int(i[1]) / 10, ("a", 1): lambda i: int(i[1]) / 10,
             ("b", 0): lambda i: 0.5}  # fmt: skip
    make_run(tmp_path, "a", images), make_run(tmp_path, "b", images)
    for (run, fold), of in known.items():
        rewrite(fold_run.fold_folder(tmp_path, run, fold).oof, disagreement=of)
    members = [Member(run="a", folds=(0, 1)), Member(run="b", folds=(0, 1), weight=3.0)]

    def found(*some: Member) -> list[float]:
        ensemble = Ensemble(name="x", folds_digest="d", members=some)
        return out_of_fold(ensemble, [tmp_path], images).view_disagreements().tolist()

    assert found(members[0]) == pytest.approx([0.0, 0.2, 0.4, 0.1, 0.3, 0.5])
    expected = [(i / 10 + 3 * 0.5) / 4 for i in (0, 2, 4)]
    assert found(*members) == pytest.approx([*expected, *[np.nan] * 3], nan_ok=True)


def test_images_that_training_left_out_by_name_are_not_scored(tmp_path):
    make_run(tmp_path, "a", table().iloc[:5]), make_run(tmp_path, "b", table().iloc[:5])
    storage.write_json(tmp_path / filenames.LEFT_OUT, ["i5: it is cut short", "i4: another was"])
    held = out_of_fold(gather([tmp_path], ["a", "b"]), [tmp_path], table())
    assert sorted(held.table["image_id"]) == [f"i{i}" for i in range(5)]


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"], ["a"]])
@pytest.mark.parametrize("lines", [[], ["i5: it is cut short"], ["i55: it is cut short"]])
def test_a_member_that_lacks_an_image_is_refused_in_any_order(tmp_path, order, lines):
    """Also where it is the only one, unless the image was left out of all training by name."""
    make_run(tmp_path, "a", table().iloc[:5]), make_run(tmp_path, "b", table())
    if order == ["a"]:
        lines = ["i55: it is cut short"]
    storage.write_json(tmp_path / filenames.LEFT_OUT, lines)
    ensemble = gather([tmp_path], order)
    with pytest.raises(InputError, match=r"runs/[ab]/fold1/oof.zip holds no map of image i5"):
        out_of_fold(ensemble, [tmp_path], table())


# What searches ask for: each image by itself, against one pass over them for many weightings.

SHAPES = ((32, 32), (64, 32), (24, 20), (32, 32), (64, 64), (16, 16), (8, 16), (32, 32))
SIDES = {"a": 16, "b": 8, "c": 16}  # of their maps
WEIGHTINGS = [(1, 0, 0), (0, 1, 0), (1, 2, 1), (2, 0, 2), (0.7, 0.0, 1.1), (1, 2, 1)]
RULE_SETS = [
    (Triplet(0.5, 0, 0.5), Triplet(0.7, 2000, 0.3), Triplet(0.4, 40_000, 0.2)),
    (Triplet(0.5, 0, 0.5), Triplet(0.1, 0, 0.1), Triplet(0.9, 0, 0.6)),
    (Triplet(0.9, KEEP_NONE, 0.9),) * 3,
    (Triplet(0.2, 0, 0.2),) * 3,
]


def images_of_all_shapes() -> pd.DataFrame:
    """Images of different sizes in two folds, about half of them with a mask."""
    rows = []
    for i, shape in enumerate(SHAPES):
        mask = np.zeros(shape, np.uint8)
        if i % 2:
            mask[2 : shape[0] // 2, shape[1] // 3 :] = 1
        rows.append((f"i{i}", i // 4, "", *shape, int(mask.sum()), rle.encode(mask)))
    return pd.DataFrame(rows, columns=table().columns)


def sparse_map(image_id: str, run: str) -> np.ndarray:
    """Return a map that is 0 but for a block, of low levels in some images; none in image i3."""
    random = np.random.default_rng([ord(c) for c in image_id + run])
    side = SIDES[run]
    levels = np.zeros((side, side), np.uint8)
    if image_id != "i3":
        top, left = random.integers(0, side // 2, 2)
        block = levels[top : top + side // 2, left : left + side // 2]
        block[:] = random.integers(0, 30 if image_id in ("i2", "i4") else 256, block.shape)
    return levels


def label_of(image_id: str, run: str) -> float:
    return (37 * int(image_id[1]) + 11 * ord(run)) % 101 / 100


def held_out(
    root: Path,
    labelled: str = "",
    lacking: str = "",
    gate: str = "none",
    gates: str = "",
    combine: str = "mean",
) -> OutOfFold:
    """Return three runs' predictions, with labels of those named, in fold 0 alone of `lacking`."""
    images = images_of_all_shapes()
    for run in (*SIDES, *gates):
        make_run(root, run, images)
        for fold in (0, 1):
            has_label = run in labelled and not (run in lacking and fold)
            rewrite(
                fold_run.fold_folder(root, run, fold).oof,
                partial(sparse_map, run=run) if run in SIDES else lambda image_id: None,
                partial(label_of, run=run) if has_label else None,
            )
    ensemble = Ensemble(
        name="x",
        folds_digest="d",
        members=tuple(Member(run=run, folds=(0, 1)) for run in SIDES),
        gate=gate,
        gate_members=tuple(
            Member(run=run, folds=(0, 1), weight=1.0 + at) for at, run in enumerate(gates)
        ),
        combine=combine,
    )
    return out_of_fold(ensemble, [root], images)


def one_by_one(held: OutOfFold, weights: Sequence[float]) -> Stacked:
    """Return the statistics of a weighting by the functions that define them, image by image."""
    stats = []
    for image in held.table.itertuples():
        runs = [(run, weight) for run, weight in zip(SIDES, weights, strict=True) if weight]
        mean = maps.mean([sparse_map(image.image_id, run) for run, _ in runs], [w for _, w in runs])
        label = held.ensemble_maps[image.fold].label(image.image_id, weights)
        stats.append(maps.statistics(mean, image.rle, (image.height, image.width), label))
    return stack(stats)


def assert_same(found: Stacked, expected: Stacked) -> None:
    for name in ("hist_all", "hist_true", "n_px", "has_truth", "label"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


LABELS = [
    {},
    {"labelled": "abc"},
    {"labelled": "abc", "gate": "label"},
    {"labelled": "ac"},  # b has none
    {"labelled": "abc", "lacking": "b"},  # b has none in fold 1
    {"labelled": "ade", "gate": "label", "gates": "de"},
    {"labelled": "abc", "gate": "sum"},
]


@pytest.mark.parametrize("of", LABELS)
def test_statistics_of_many_weightings_are_those_of_each_image_by_itself(tmp_path, of):
    held = held_out(tmp_path, **of)
    first = held.statistics(WEIGHTINGS[2])
    many = held.statistics_of(WEIGHTINGS)
    assert len(many) == len(WEIGHTINGS)
    for weights, found in zip(WEIGHTINGS, many, strict=True):
        assert_same(found, one_by_one(held, weights))
    assert many[2] is many[5] is first, "each is computed once"
    assert held.statistics_of([]) == []
    for weights, found in zip(WEIGHTINGS, held.gated_of(WEIGHTINGS), strict=True):
        expected = one_by_one(held, weights)
        assert_same(found, gate_by_sum(expected) if held.ensemble.gate == "sum" else expected)
        assert_same(held.gated(weights), found)


@pytest.mark.parametrize("of", [{}, LABELS[2], LABELS[6]])
def test_candidates_are_the_same_decoded_and_from_the_store(tmp_path, monkeypatch, of):
    monkeypatch.setattr("kernel_lib.inference.out_of_fold.AT_ONCE", 2)
    held, plain = held_out(tmp_path, **of), held_out(tmp_path, **of)
    exact = plain.gated_of(WEIGHTINGS)
    with held.packed():
        for candidates in (held.candidates(WEIGHTINGS), held.candidates(WEIGHTINGS)):
            for found, wanted in zip(candidates, exact, strict=True):
                assert_same(found, wanted)


def test_one_bar_counts_the_images_of_all_passes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kernel_lib.inference.out_of_fold.AT_ONCE", 2)
    held = held_out(tmp_path)
    passes = -(-len(WEIGHTINGS) // 2)
    list(held.candidates(WEIGHTINGS, "draw 1"))
    shown = capsys.readouterr().err
    assert f"/{passes * len(SHAPES)} " in shown
    assert "maps of" not in shown
    list(held.candidates(WEIGHTINGS))
    assert capsys.readouterr().err == ""
    list(held.statistics_of(WEIGHTINGS))
    assert f"maps of 3 members: 100%|██████████| {len(SHAPES)}/{len(SHAPES)} " in (
        capsys.readouterr().err
    )


def test_maps_are_decoded_once_for_all_candidates_unless_the_store_is_full(tmp_path, monkeypatch):
    held, decoded = held_out(tmp_path), []
    read = maps.Maps.__getitem__

    def counted(archive: maps.Maps, image_id: str) -> np.ndarray:
        decoded.append(image_id)
        return read(archive, image_id)

    monkeypatch.setattr(maps.Maps, "__getitem__", counted)
    with held.packed():
        expected = list(held.candidates(WEIGHTINGS))
        assert sorted(decoded) == sorted([*held.table["image_id"]] * 3)
        list(held.candidates(WEIGHTINGS)), held.statistics_of(WEIGHTINGS)
        assert len(decoded) == 3 * len(SHAPES)
    monkeypatch.setattr("kernel_lib.inference.weightings.STORE_BYTES", 0)
    full = held_out(tmp_path)
    decoded.clear()
    with full.packed():
        for _ in range(2):
            for found, wanted in zip(full.candidates(WEIGHTINGS), expected, strict=True):
                assert_same(found, wanted)
    assert len(decoded) == 2 * 3 * len(SHAPES)


def test_worker_processes_find_the_same_and_share_what_they_have_packed(tmp_path, monkeypatch):
    held = held_out(tmp_path, combine="member_vote")
    exact, votes_of_threads = held.statistics_of(WEIGHTINGS), held.vote_counts(RULE_SETS)
    candidates = list(held.candidates(WEIGHTINGS))
    monkeypatch.setattr(workers, "MIN_FORK_ITEMS", 1)
    monkeypatch.setattr(workers, "_CHUNK", 1)
    forked = held_out(tmp_path, combine="member_vote")
    np.testing.assert_array_equal(forked.vote_counts(RULE_SETS), votes_of_threads)
    with forked.packed():
        for found, wanted in zip(forked.candidates(WEIGHTINGS), candidates, strict=True):
            assert_same(found, wanted)
        monkeypatch.setattr(maps.Maps, "__getitem__", None)  # nothing is decoded again
        for found, wanted in zip(forked.gated_of(WEIGHTINGS), exact, strict=True):
            assert_same(found, wanted)


@pytest.mark.parametrize("gates", ["", "de"])
def test_a_label_that_a_gate_lacks_is_named_before_any_map_is_read(tmp_path, monkeypatch, gates):
    of = {"labelled": "abcde", "lacking": "be", "gate": "label", "gates": gates}
    if gates:  # an archive without maps or labels predicts nothing at all: give e its maps
        monkeypatch.setitem(SIDES, "e", 16)
    held = held_out(tmp_path, **of)
    monkeypatch.setattr(maps.Maps, "__getitem__", None)
    with pytest.raises(InputError) as of_all:
        held.statistics((1,) * len(SIDES))
    with pytest.raises(InputError) as of_one:
        held.ensemble_maps[1].label("i4", (1,) * len(SIDES))
    assert str(of_all.value) == str(of_one.value)
    assert f"runs/{'e' if gates else 'b'}/fold1/oof.zip holds no label" in str(of_all.value)


@pytest.mark.parametrize("combine", ["member_vote", "member_union"])
@pytest.mark.parametrize("of", [{}, LABELS[2], LABELS[5], LABELS[6]])
def test_votes_are_counted_as_on_the_masks_drawn(tmp_path, combine, of):
    held = held_out(tmp_path, **of, combine=combine)
    rule_sets = RULE_SETS
    if held.ensemble.gate != "none":
        rule_sets = [
            tuple(replace(rule, label=label) for rule, label in zip(rules, labels, strict=True))
            for rules, labels in zip(
                RULE_SETS, [(0.4, None, 0.6), (0.5,) * 3, (None,) * 3, (0.2, 0.9, 0.3)], strict=True
            )
        ]
    counts = held.vote_counts(rule_sets)
    assert counts.shape == (len(rule_sets), len(SHAPES), 3, 2)
    assert counts[..., 0].any(), "else nothing is compared"
    draw = {"member_vote": votes.at_least, "member_union": votes.union_of_agreeing}[combine]
    for at, rules in enumerate(rule_sets):
        for image in held.table.itertuples():
            shape = image.height, image.width
            masks = held.ensemble_maps[image.fold].member_mask_runs(image.image_id, shape, rules)
            truth = rle.decode(image.rle, shape)
            for k in (1, 2, 3):
                mask = rle.mask_of(draw(masks, k), shape)
                expected = [int((mask & truth).sum()), int(mask.sum())]
                assert counts[at, image.Index, k - 1].tolist() == expected
