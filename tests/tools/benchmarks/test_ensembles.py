"""The runs that ensembles are measured on, and that a case is measured to its figures."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from kernel_lib import workers
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.data import rle
from tools.benchmarks import ensembles, ensembles_case, ensembles_data

N_MAPS, N_IMAGES, N_RUNS = 10, 25, 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return ensembles_data.Source.made(tmp_path_factory.mktemp("root"), N_MAPS, None)


@pytest.fixture(scope="module")
def work(source, tmp_path_factory):
    return ensembles_data.make(tmp_path_factory.mktemp("own"), source, N_IMAGES, N_RUNS)


def archives(work, run):
    return [maps.Maps(fold_run.fold_folder(work, run, k).oof) for k in range(5)]


def test_maps_are_as_sparse_as_a_trained_network_s(source):
    runs = [source.run(run) for run in range(N_RUNS)]
    assert all(0.02 < (levels > 0).mean() < 0.04 for levels in runs)
    assert np.mean(np.maximum.reduce(runs) > 0) < 0.06  # they agree on most of it
    assert not np.array_equal(runs[0], runs[1])
    assert np.array_equal(runs[0], source.run(0))


def test_lesions_are_likelier_than_what_is_around_them(source):
    levels = source.run(0)
    assert 0 < sum(text != rle.EMPTY for text in source.masks) < N_MAPS
    for at, text in enumerate(source.masks):
        inside = rle.decode(text, (1024, 1024))[::2, ::2] > 0
        if inside.any():
            assert levels[at][inside].mean() > 5 * levels[at][~inside].mean()


def test_every_image_is_held_out_once_and_copies_of_one_stay_together(source, work):
    folds = folds_file.load(work / "folds.csv")
    copies = ensembles_data.copies_of(N_IMAGES, N_MAPS)
    assert len(folds) == N_IMAGES
    for at in range(N_MAPS):
        assert len({folds["fold"][i] for i, copy in enumerate(copies) if copy[0] == at}) == 1
    levels = source.run(2)
    for fold, archive in enumerate(archives(work, "run02")):
        inside = np.flatnonzero(folds["fold"] == fold)
        assert archive.ids == folds["image_id"][inside].tolist()
        for i in inside:
            at, flip = copies[i]
            expected = ensembles_data.FLIPS[flip](levels[at])
            assert np.array_equal(archive[archive.ids[inside.tolist().index(i)]], expected)


def test_what_is_there_is_not_made_again(source, work):
    before = fold_run.fold_folder(work, "run00", 0).oof.stat().st_mtime_ns
    ensembles_data.make(work, source, N_IMAGES, N_RUNS)
    assert fold_run.fold_folder(work, "run00", 0).oof.stat().st_mtime_ns == before


def test_archives_of_pngs_hold_the_same(source, work, tmp_path):
    ensembles_data.make(tmp_path, source, N_IMAGES, 1, ensembles_data.write_png)
    for own, png in zip(archives(work, "run00"), archives(tmp_path, "run00"), strict=True):
        assert (own.ids, own.meta) == (sorted(png.ids), png.meta)
        assert all(np.array_equal(own[i], png[i]) for i in own.ids)
        assert [own.label(i) for i in own.ids] == [png.label(i) for i in own.ids]


def test_the_parts_are_functions_that_are_there():
    for target in [each for targets in ensembles_case.PARTS.values() for each in targets]:
        module, _, path = target.partition(":")
        found = importlib.import_module(f"kernel_lib.{module}")
        for name in path.split("."):
            found = getattr(found, name)
        assert callable(found)


def test_a_part_s_time_is_its_own(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(ensembles_case.time, "perf_counter", lambda: next(now))
    parts = ensembles_case.Parts()
    inner = parts._timed(lambda: None, "inner")  # a second each
    outer = parts._timed(lambda: (inner(), inner()), "outer")
    outer()
    assert (parts.main, parts.workers) == ({"inner": 2, "outer": 3}, {})
    thread = threading.Thread(target=inner)
    thread.start()
    thread.join()
    assert parts.workers == {"inner": 1}


def test_what_worker_processes_did_is_counted(tmp_path):
    parts = ensembles_case.Parts(tmp_path)
    work = parts._timed(lambda x: x, "work")
    assert list(workers.each(work, range(workers.MIN_FORK_ITEMS))) == list(
        range(workers.MIN_FORK_ITEMS)
    )
    assert "work" not in parts.main
    parts.gather()
    assert parts.workers["work"] > 0


def test_a_case_runs_to_its_figures(source, work, capsys):
    row = ensembles.measured("mean", work, 2)
    assert row["peak"] > 50e6
    assert {"maps", "search", "report", "boundaries"} <= row["main"].keys()
    assert sum(row["main"].values()) <= row["seconds"]
    ensemble = Ensemble.load(work / "ensembles" / "mean-2")
    assert [member.run for member in ensemble.members] == ["run00", "run01"]
    ensembles_data.make_test(work, source, 7, 2)
    masks = ensembles.measured("masks", work, 2, of="mean")["found"]
    assert masks["images"] == 7
    assert ensembles.measured("mean", work, 2)["main"]["maps"] > 0  # all of it once more
    ensembles.barred("mean", 10, ensembles.IMAGES, 60)
    assert "mean of 10 runs, 12,047 images: 60.0 s, the bar 2.0 min: 50% (bar: 100 %)" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
def test_cases_run_and_agree_with_those_of_another_tree(tmp_path):
    command = [sys.executable, "-m", "tools.benchmarks.ensembles", "--root", str(tmp_path)]
    command += ["--maps", "10", "--images", "25", "--against-images", "25", "--runs", "2"]
    command += ["--only", "greedy,vote", "--against", str(ensembles.HERE)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr + done.stdout
    assert len(re.findall(r"of 2 runs, 25 images: .* faster \(bar: none\)", done.stdout)) == 2
    assert "report and viewer of the vote of 2 runs" in done.stdout
    assert (
        len(re.findall(r"^test masks of the \w+ of 2 runs, 25 images: ", done.stdout, re.MULTILINE))
        == 2
    )
