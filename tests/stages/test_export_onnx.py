"""Runs and released models as ONNX files, and masks from these on a machine without torch."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kernel_lib.__main__ import main
from kernel_lib.artifacts import fold_run
from kernel_lib.data import rle
from kernel_lib.errors import InputError
from kernel_lib.inference import engines, onnx_network
from kernel_lib.inference.onnx_file import OnnxModel
from kernel_lib.kaggle import paths
from kernel_lib.postprocess.triplet import Triplet
from kernel_lib.stages import export_onnx, predict_files, release
from tests.stages.place import ON_CPU

pytest.importorskip("onnx", reason="no onnx here")
pytest.importorskip("onnxruntime", reason="no onnxruntime here")

SIZE = 128  # of the radiographs
# Packages that `predict --onnx` does without; on the path of every process, of loaders too.
BLOCKED = (
    "torch", "torchvision", "timm", "segmentation_models_pytorch", "safetensors", "albumentations",
    "onnx",
)  # fmt: skip


@pytest.fixture(scope="module")
def radiographs(phantoms, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("radiographs")
    for path in (phantoms / "dicom-images-test").rglob("*.dcm"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def files(untrained, tmp_path_factory) -> list[Path]:
    """The ONNX files of the run `tiny`, fold by fold."""
    out = tmp_path_factory.mktemp("files")
    return list(export_onnx.run(str(untrained / "runs" / "tiny"), out))


def table(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_masks(one: Path, other: Path) -> None:
    """Compare all that two predictions wrote.

    Rounding may move a pixel whose probability is a threshold: 8 of 16,384 are let pass.
    """
    there, here = table(one), table(other)
    assert [row["file"] for row in there] == [row["file"] for row in here]
    for a, b in zip(there, here, strict=True):
        masks = [rle.decode(row["rle"], (SIZE, SIZE)) for row in (a, b)]
        assert np.count_nonzero(masks[0] != masks[1]) <= 8
        for name in ("label_probability", "max_probability"):
            assert abs(float(a[name]) - float(b[name])) < 0.004  # a level of 255 at most
        assert abs(float(a["label_probability"]) - float(b["label_probability"])) < 0.0002
    assert any(row["rle"] != "-1" for row in there)
    names = [[p.relative_to(out) for p in sorted(out.rglob("*"))] for out in (one, other)]
    assert names[0] == names[1]


def test_a_run_is_a_file_for_each_fold_with_its_rule_and_score(untrained, files):
    assert [path.name for path in files] == ["tiny_fold0.onnx", "tiny_fold1.onnx"]
    decided = json.loads((untrained / "ensembles" / "tiny" / "thresholds.json").read_text())
    for number, path in enumerate(files):
        found = OnnxModel.load(path)
        fold = fold_run.fold_folder(untrained, "tiny", number)
        assert (found.name, found.fold, found.combine) == ("tiny", number, "mean")
        assert found.rule == Triplet(0.6, 2000, 0.5)
        assert found.experiment == fold.read_config().experiment
        assert found.score["honest"] == decided["honest"]["honest"]
        assert found.score["honest_score_holds"]
        assert set(found.lineage.images) == {f"i{i:02d}" for i in range(12) if i % 2 != number}
        assert len(found.input["mean"]) == 3


def test_without_torch_the_command_line_writes_what_torch_writes(
    untrained, files, radiographs, tmp_path, project_root
):
    predict_files.run(
        [radiographs], tmp_path / "torch", ensemble=untrained / "ensembles" / "tiny",
        engine="torch", **ON_CPU,
    )  # fmt: skip
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
    )
    search = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            sys.executable, "-m", "kernel_lib", "predict", radiographs, "-o", tmp_path / "onnx",
            "--onnx", ",".join(map(str, files)), "--threads", "1", "--batch-size", "3",
        ],
        cwd=project_root, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, search))},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("engine: onnxruntime")
    assert_same_masks(tmp_path / "torch", tmp_path / "onnx")
    refused = subprocess.run(
        [sys.executable, "-c", "import torch"], cwd=project_root, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert refused.returncode  # the blocker blocks


@pytest.mark.parametrize("who", ["ensemble", "model"])
def test_onnxruntime_in_the_place_of_torch_writes_the_same(
    untrained, radiographs, tmp_path, who, capsys, monkeypatch
):
    by = {"ensemble": untrained / "ensembles" / "tiny"}
    if who == "model":
        fold = untrained / "runs" / "tiny" / "fold1"
        small = tmp_path / "small.safetensors"
        release.run(fold, by["ensemble"], "small", small, last=False, licence="MIT")
        by = {"model": str(small)}
    said = []
    for engine in ("torch", "onnxruntime", "auto"):
        predict_files.run([radiographs], tmp_path / engine, engine=engine, **by, **ON_CPU)
        said += [line for line in capsys.readouterr().out.splitlines() if "engine: " in line]
    # So few images are not worth an export.
    assert [line.split()[1] for line in said] == ["torch", "onnxruntime", "torch"]
    assert_same_masks(tmp_path / "torch", tmp_path / "onnxruntime")
    monkeypatch.setattr(engines, "PAYS_FROM_PX", 1)
    predict_files.run([radiographs], tmp_path / "many", **by, **ON_CPU)
    assert "engine: onnxruntime" in capsys.readouterr().out
    assert table(tmp_path / "many") == table(tmp_path / "onnxruntime")


def test_torch_predicts_what_cannot_be_exported(
    untrained, radiographs, tmp_path, capsys, monkeypatch
):
    def refused(models, size):
        raise InputError("the network cannot be exported to ONNX (a reason)")

    monkeypatch.setattr(onnx_network, "to_onnx", refused)
    monkeypatch.setattr(engines, "PAYS_FROM_PX", 1)
    by = {"ensemble": untrained / "ensembles" / "tiny"}
    predict_files.run([radiographs], tmp_path / "out", **by, **ON_CPU)
    assert capsys.readouterr().out.count("engine: torch") == 1
    with pytest.raises(InputError, match=r"ENGINE onnxruntime: .* \(a reason\)"):
        predict_files.run([radiographs], tmp_path / "x", engine="onnxruntime", **by, **ON_CPU)


def test_a_released_model_is_one_file(untrained, radiographs, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "models_dir", lambda: tmp_path)
    with pytest.raises(InputError, match="no released model"):
        export_onnx.run("small", tmp_path / "files")
    fold, ensemble = untrained / "runs" / "tiny" / "fold1", untrained / "ensembles" / "tiny"
    path = tmp_path / "small.safetensors"
    model, _ = release.run(fold, ensemble, "small", path, last=False, licence="MIT")
    written = {n: export_onnx.run(n, tmp_path / str(i)) for i, n in enumerate(("small", str(path)))}
    assert [p.name for files in written.values() for p in files] == ["small.onnx"] * 2
    found = OnnxModel.load(tmp_path / "0" / "small.onnx")
    for name in ("name", "experiment", "rule", "gate", "tta", "lineage", "score", "licence"):
        assert getattr(found, name) == getattr(model, name)
    with pytest.raises(InputError, match=r"--ensemble .* is of a run, and small"):
        export_onnx.run("small", tmp_path / "files", ensemble)
    predict_files.run([radiographs], tmp_path / "a", model="small", engine="torch", **ON_CPU)
    predict_files.run([radiographs], tmp_path / "b", onnx=str(found.path), threads=1)
    assert_same_masks(tmp_path / "a", tmp_path / "b")


def test_a_run_without_a_rule_of_its_own_is_refused(untrained, radiographs, tmp_path):
    work = shutil.copytree(untrained, tmp_path / "work")
    run, ensemble = work / "runs" / "tiny", work / "ensembles" / "tiny"
    out = tmp_path / "files"
    for given, by, pattern in (
        (run / "fold0", None, "fold0 is no run's folder: give WORK_DIR/runs/RUN"),
        (work, None, "is no run's folder"),
        (Path(*tmp_path.parts[:2]), None, "is no run's folder"),  # just below the root
        (run, tmp_path, "is no ensemble's folder"),
    ):
        with pytest.raises(InputError, match=pattern):
            export_onnx.run(str(given), out, by)
    shutil.copytree(run, run.with_name("other"))
    with pytest.raises(InputError, match=r"decides for tiny .*the rule of other alone"):
        export_onnx.run(str(run.with_name("other")), out, ensemble)
    for fold in (0, 1):
        config = run / f"fold{fold}" / "config.json"
        document = json.loads(config.read_text())
        document["experiment"]["tta"] = "multiscale"
        config.write_text(json.dumps(document))
    with pytest.raises(InputError, match="TTA multiscale, and an ONNX file takes images of one"):
        export_onnx.run(str(run), out)
    with pytest.raises(InputError, match=r"TTA multiscale looks at other sizes .*torch predicts"):
        predict_files.run(
            [radiographs], tmp_path / "out", ensemble=ensemble, engine="onnxruntime",
            **ON_CPU,
        )  # fmt: skip
    (ensemble / "thresholds.json").unlink()
    with pytest.raises(InputError, match=r"thresholds\.json is missing"):
        export_onnx.run(str(run), out)
    assert not out.exists()


def test_what_onnxruntime_does_not_do_is_refused(untrained, files, radiographs, tmp_path):
    first = ["--onnx", str(files[0])]
    by_torch = ["--ensemble", str(untrained / "ensembles" / "tiny"), "--engine", "onnxruntime"]
    for options, pattern in (
        ([*first, "--model", "small"], "--model and --onnx exclude each other"),
        ([*first, "--device", "cuda"], "--device cuda does not go with onnxruntime"),
        ([*first, "--precision", "bfloat16"], "--precision bfloat16 does not"),
        ([*first, "--processes", "2"], "--processes 2 does not"),
        ([*first, "--engine", "torch"], "--engine torch does not"),
        (["--onnx", ","], "names no file"),
        (["--onnx", f"{files[0]},{files[0]}"], "give each fold once"),
        (["--onnx", "gone.onnx"], "gone.onnx cannot be read"),
        ([*by_torch, "--precision", "bfloat16"], "ENGINE onnxruntime runs on the CPU in float32"),
        ([*by_torch, "--device", "cuda"], "ENGINE onnxruntime runs on the CPU in float32"),
    ):
        command = ["predict", str(radiographs), "-o", str(tmp_path / "out"), *options]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert pattern in result.output
        assert len(result.output.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_the_engine_is_torch_where_a_package_is_missing(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx and onnxruntime: pip install \.\[onnx\]"):
        predict_files.run(
            [tmp_path], tmp_path / "out", ensemble=untrained / "ensembles" / "tiny",
            engine="onnxruntime",
        )  # fmt: skip


def test_the_command_writes_and_names_the_files(untrained, tmp_path):
    given = ["export-onnx", str(untrained / "runs" / "tiny"), "-o", str(tmp_path / "files")]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    assert [line.split(": ")[0] for line in result.output.splitlines()] == [
        str(path) for path in sorted((tmp_path / "files").iterdir())
    ]
