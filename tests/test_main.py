"""Tests of the command line: what it prints, and what it does not import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest

from kernel_lib import command_line, config
from kernel_lib.__main__ import main

HEAVY = ("torch", "torchvision", "albumentations", "segmentation_models_pytorch", "timm")
VOTE = ("--at-least", "1", "-o", "out.csv")


def run(root: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, **options)


def cli(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command line with every import of a heavy package an error."""
    code = (
        "import sys, runpy\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        f"sys.argv = ['kernel_lib', *{list(arguments)!r}]\n"
        "runpy.run_module('kernel_lib', run_name='__main__', alter_sys=True)\n"
    )
    return run(root, "-c", code)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Return a folder with a sample, labels as published, a right and a wrong submission."""
    (tmp_path / "sample.csv").write_text("ImageId,EncodedPixels\na,-1\nb,-1\nc,-1\n")
    (tmp_path / "labels.csv").write_text("ImageId, EncodedPixels\na, 0 10\na, 20 10\nb, -1\n")
    (tmp_path / "right.csv").write_text("ImageId,EncodedPixels\na,0 20\nb,-1\nc,-1\n")
    (tmp_path / "wrong.csv").write_text("ImageId,EncodedPixels\na,0 20 5\nb,-1\nb,-1\n")
    return tmp_path


def test_help_names_every_command(project_root):
    done = run(project_root, "-m", "kernel_lib", "--help")
    assert done.returncode == 0, done.stderr
    commands = (
        "train thresholds inference predict release score vote validate phantoms gather statistics"
    )
    for command in commands.split():
        assert f"\n  {command}" in done.stdout
    assert "predict-test" not in done.stdout


def test_score_prints_the_mean_dice_with_many_digits_and_without_torch(project_root, tables):
    done = cli(project_root, "score", str(tables / "right.csv"), str(tables / "labels.csv"))
    assert done.returncode == 0, done.stderr
    # a: 10 of 20 and 20 are shared: 0.5; b: empty against empty: 1
    assert done.stdout.splitlines()[0] == "mean dice 0.75000000 over 2 images"
    assert "positives 0.50000000 over 1 images" in done.stdout
    assert "1 images without a label" in done.stdout
    done = cli(project_root, "score", *[str(tables / "labels.csv")] * 2)
    assert "mean dice 1.00000000 over 2 images" in done.stdout


def test_validate_and_score_warn_of_masks_drawn_at_another_size(project_root, tables):
    small, sample = tables / "small.csv", str(tables / "sample.csv")
    small.write_text("ImageId,EncodedPixels\na,2080 30 34 30 34 30 34 30\nb,-1\nc,-1\n")
    for arguments in (("validate", "--sample", sample), ("score", sample)):
        done = cli(project_root, arguments[0], str(small), *arguments[1:], "--shape", "256", "256")
        (warning,) = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
        assert "small.csv" in warning
        assert "64 px" in warning


def test_validate_accepts_the_right_and_names_what_is_wrong(project_root, tables):
    sample = ("--sample", str(tables / "sample.csv"))
    done = cli(project_root, "validate", str(tables / "right.csv"), *sample)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith("right.csv is valid")
    done = cli(project_root, "validate", str(tables / "wrong.csv"), *sample)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any("row 2" in line and "odd" in line for line in lines)
    assert any("row 4" in line and "b" in line for line in lines)
    assert any("image c" in line and "missing" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "row"),
    [(("--at-least", "2"), "a,4 2"), (("--at-least", "2", "--union"), "a,0 9")],
    ids=["pixels", "union"],
)
def test_vote_writes_what_agrees_in_the_first_files_order(project_root, tmp_path, options, row):
    files = {
        "A.csv": ["c,5 5", "a,0 6", "b,-1"],
        "B.csv": ["a,4 5", "b,20 4", "c,5 5"],
        "C.csv": ["b,-1", "c,-1", "a,12 1"],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(["ImageId,EncodedPixels", *lines]) + "\n")
    inputs, out = [str(tmp_path / name) for name in files], tmp_path / "out.csv"
    done = cli(project_root, "vote", *inputs, *options, "-o", str(out), "--shape", "5", "5")
    assert done.returncode == 0, done.stderr
    assert out.read_text().splitlines() == ["ImageId,EncodedPixels", "c,5 5", row, "b,-1"]
    assert done.stdout.splitlines() == [
        f"{inputs[0]} has a mask in 2 images",
        f"{inputs[1]} has a mask in 3 images",
        f"{inputs[2]} has a mask in 1 images",
        f"{out}: 3 images, 2 kept a mask",
    ]
    assert "3/3" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "absent.csv", "labels.csv"), "does not exist"),
        (("score", "labels.csv", "text.csv"), "text.csv"),
        (("validate", "right.csv", "--sample", "text.csv"), "text.csv"),
        (("validate", "right.csv"), "--sample"),
        (("train", "text.csv"), "text.csv is not"),
        (("train", "list.json"), "list.json"),
        (("train", "train.ipynb"), "train.ipynb is a notebook"),
        (("train", "typo.json"), "unknown parameter SIZES; the nearest is SIZE"),
        (("train", "dash.json"), "MAX-HOURS"),
        (("train", "-p", "SIZES", "64"), "unknown parameter SIZES; the nearest is SIZE"),
        (("train", "-p", "SIZE", "big"), "SIZE = 'big': "),
        (("train", "-p", "SIZE"), "requires 2 arguments"),
        (("train", "small.json", "-p", "SIZE", "500"), "SIZE = 500: "),
        (("train", "-p", "EXPERIMENT", "absent.json"), "absent.json does not exist"),
        (("train", "-p", "EXPERIMENT", "own.json"), "unknown field encodr; the nearest is encoder"),
        (("train", "-p", "NAME", "007"), "-r NAME"),
        (("train", "-r", "NAME", "007", "-r", "SIZE", "500"), "SIZE = '500': "),
        (("thresholds", "-p", "RUN", "x"), "unknown parameter RUN; the nearest is RUNS"),
        (("inference", "-p", "ENSEMBLES", "x"), "the nearest is ENSEMBLE"),
        (("summary", "."), "is no ensemble's folder: give WORK_DIR"),
        (("vote", "right.csv", "other.csv", *VOTE), "other.csv lacks image c"),
        (("vote", "right.csv", "--at-least", "2", "-o", "out.csv"), "a number from 1 to 1"),
        (("vote", "right.csv", "--at-least", "1", "-o", "right.csv"), "give another output file"),
        (("vote", "right.csv", "-o", "out.csv"), "--at-least"),
        (("gather", ".", "--into", "new.work"), "holds no runs, itself or up to two levels down"),
        (("gather", "."), "--into"),
        (("predict", ".", "-o", "new.out", "--ensemble", "."), "is no ensemble"),
        (("predict", ".", "-o", "new.out", "--ensemble", ".", "--model", "x"), "give one of them"),
        (("predict", "."), "--out"),
        (("predict", "", "-o", "new.out"), "it is empty"),
        (("predict", ".", "-o", ""), "it is empty"),
        (("gather", ".", "--into", ""), "it is empty"),
        (("phantoms", ""), "it is empty"),
        (("train", "-p", "DATA_DIR", ""), "DATA_DIR = '': "),
        (("score", "right.csv"), "LABELS"),
        (("score", "right.csv", "labels.csv", "--split", "test"), "--split test"),
        (("score", "right.csv", ".", "--split", "test"), "no images"),
        (("scor",), "nearest: score"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_is_one_line_without_a_traceback(tables, arguments, words):
    (tables / "text.csv").write_text("nothing of the kind\n")
    (tables / "list.json").write_text("[]")
    (tables / "train.ipynb").write_text('{"cells": [], "metadata": {}}')
    (tables / "typo.json").write_text('{"sizes": 1024}')
    (tables / "dash.json").write_text('{"max-hours": 1}')
    (tables / "small.json").write_text('{"size": 64}')
    (tables / "own.json").write_text('{"name": "mine", "encodr": "resnet18"}')
    (tables / "other.csv").write_text("ImageId,EncodedPixels\na,0 20\nb,-1\n")
    before = {path: path.read_bytes() for path in tables.iterdir()}
    given = [str(tables / a) if "." in a else a for a in arguments]
    # In this process: another exception than those that click prints fails the test.
    done = click.testing.CliRunner().invoke(main, given, catch_exceptions=False)
    assert done.exit_code not in (0, None)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in tables.iterdir()} == before


@pytest.mark.parametrize(
    "modules",
    [
        "kernel_lib.__main__",
        "kernel_lib.data.rle, kernel_lib.data.masks, kernel_lib.data.table, kernel_lib.data.folds",
        "kernel_lib.postprocess.metrics, kernel_lib.postprocess.search, "
        "kernel_lib.postprocess.nested_cv, kernel_lib.postprocess.submission, "
        "kernel_lib.postprocess.votes",
        "kernel_lib.config, kernel_lib.experiments, kernel_lib.artifacts.fold_run",
        "kernel_lib.kaggle.paths",
        "kernel_lib.artifacts.maps, kernel_lib.artifacts.ensemble, kernel_lib.stages.thresholds",
        "kernel_lib.reporting.figures, kernel_lib.reporting.report, tools.phantoms.competition",
    ],
)
def test_what_needs_no_network_starts_without_torch(project_root, modules):
    done = run(project_root, "-c", f"import sys, {modules}\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert set(HEAVY).isdisjoint(done.stdout.split())


@pytest.mark.parametrize("stage", ["train", "thresholds", "inference"])
def test_a_stage_s_help_lists_its_parameters(project_root, stage):
    done = cli(project_root, stage, "--help")
    assert done.returncode == 0, done.stderr
    kind = getattr(config, f"{stage.capitalize()}Parameters")
    for name, description in kind.described():
        assert re.search(rf"^  {name} +{re.escape(description[:20])}", done.stdout, re.MULTILINE)


def test_a_parameter_wins_over_the_file_and_the_last_of_a_name_counts(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"SIZE": 64, "epochs": 3}')
    given = [("SIZE", "96"), ("SIZE", "128"), ("FOLD", "0"), ("with_parents", "True")]
    parameters = command_line.read_parameters(path, "TrainParameters", given)
    assert parameters == config.TrainParameters(size=128, epochs=3, fold=0, with_parents=True)
    assert command_line.read_parameters(None, "TrainParameters") == config.TrainParameters()


def test_importing_the_package_imports_nothing_of_it(project_root):
    done = run(project_root, "-c", "import sys, kernel_lib\nprint(*sys.modules)")
    assert "kernel_lib" in done.stdout.split()
    assert "kernel_lib." not in done.stdout


def test_phantoms_are_drawn_into_a_folder(project_root, tmp_path):
    target = tmp_path / "data"
    done = cli(project_root, "phantoms", str(target), "--train", "3", "--test", "2", "--size", "64")
    assert done.returncode == 0, done.stderr
    assert len(list(target.rglob("*.dcm"))) == 5
    assert {p.name for p in target.glob("*.csv")} >= {"train-rle.csv", "sample_submission.csv"}
    assert done.stdout.startswith(f"{target}: 3 training and 2 test images of 64 px, train-rle.csv")
    assert done.stdout.endswith("phantom-test-truth.csv\n")
    again = cli(project_root, "phantoms", str(target))
    assert again.returncode == 1
    assert "give an empty folder" in again.stderr


def test_the_command_line_works_from_anywhere(project_root, tables):
    done = run(
        tables, "-m", "kernel_lib", "score", "right.csv", "labels.csv",
        env=os.environ | {"PYTHONPATH": str(project_root)},
    )  # fmt: skip
    assert "mean dice 0.75000000" in done.stdout, done.stderr


def test_the_experiments_are_listed_as_in_the_docs(project_root):
    done = cli(project_root, "experiments")
    assert done.returncode == 0, done.stderr
    assert "`two_step_classifier_512_v1` | " in done.stdout
    documented = project_root / "docs" / "experiments.md"
    assert done.stdout in documented.read_text(encoding="utf-8")
