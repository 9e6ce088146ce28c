"""Tests of the command line that builds kernels, in a copy of the project with small notebooks."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import click.testing
import pytest

from kernel_lib.stages.table import STAGES

NOTEBOOK = """\
# %% tags=["parameters"]
SIZE: int = 512

# %%
print(SIZE)
"""
WHEEL = "segmentation_models_pytorch-0.6.0-py3-none-any.whl"


@pytest.fixture
def clone(tmp_path: Path, project_root: Path) -> Path:
    root = tmp_path / "clone"
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("kernel_lib", "kernel_build"):
        shutil.copytree(project_root / folder, root / folder, ignore=ignore)
    for file in ("build_kernel.py", "kernel-metadata.json", "requirements.txt"):
        shutil.copy(project_root / file, root)
    (root / "notebooks").mkdir()
    for stage in STAGES:
        (root / "notebooks" / f"{stage}.py").write_text(NOTEBOOK)
    # A base as committed, also where somebody has built with an owner before.
    base = json.loads((root / "kernel-metadata.json").read_text())
    base["id"] = "OWNER_TO_FILL/pneumothorax-train"
    (root / "kernel-metadata.json").write_text(json.dumps(base))
    cache = root / ".cache" / "pneumothorax" / "wheels"
    cache.mkdir(parents=True)
    with zipfile.ZipFile(cache / WHEEL, "w") as wheel:
        about = "Name: segmentation-models-pytorch\nVersion: 0.6.0\n"
        wheel.writestr("segmentation_models_pytorch-0.6.0.dist-info/METADATA", about)
    return root


def variables_of(clone: Path, variables: dict[str, str]) -> dict[str, str | None]:
    """Return the environment of a build: without this machine's Kaggle account and caches."""
    hidden = dict.fromkeys(name for name in os.environ if name.startswith(("KAGGLE_", "XDG_")))
    return hidden | {"HOME": str(clone)} | variables


def build(clone: Path, *arguments: str, cwd: Path | None = None, **variables: str):
    """Run the clone's command line in this process: starting torch for each takes seconds."""
    spec = importlib.util.spec_from_file_location("build_kernel", clone / "build_kernel.py")
    command_line = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command_line)
    with contextlib.chdir(cwd or clone):
        done = click.testing.CliRunner().invoke(
            command_line.main, arguments, env=variables_of(clone, variables), catch_exceptions=False
        )
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def folders(clone: Path) -> list[str]:
    return sorted(path.name for path in (clone / "build").iterdir())


def meta_of(clone: Path, slug: str) -> dict:
    return json.loads((clone / "build" / slug / "kernel-metadata.json").read_text())


def code_of(clone: Path, slug: str) -> str:
    return (clone / "build" / slug / f"{slug}.py").read_text()


def test_without_a_stage_every_kernel_is_built_and_the_root_can_be_pushed(clone: Path):
    command = [sys.executable, str(clone / "build_kernel.py"), "--owner", "somebody", "--root"]
    variables = variables_of(clone, {})
    env = {name: value for name, value in (os.environ | variables).items() if value is not None}
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stages = ("inference", "thresholds", "train")
    assert folders(clone) == sorted(
        f"pneumothorax-{stage}{end}" for stage in stages for end in ("", "-script")
    )
    root = json.loads((clone / "kernel-metadata.json").read_text())
    assert root["id"] == "somebody/pneumothorax-train"
    assert (clone / root["code_file"]).is_file()
    assert "owner somebody (--owner) filled into kernel-metadata.json" in done.stdout


def test_a_build_changes_no_tracked_file_unless_asked(clone: Path, project_root: Path):
    ignored = (project_root / ".gitignore").read_text()
    (clone / ".gitignore").write_text(f"{ignored}/.cache/\n")  # a home's, which this clone is too
    git = ["git", "-C", str(clone), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a clone"]):
        subprocess.run([*git, *command], check=True)

    def changed(*arguments: str) -> str:
        assert build(clone, *arguments).returncode == 0
        command = [*git, "status", "--porcelain"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert changed("thresholds", "--owner", "me") == ""
    assert changed("thresholds", "--owner", "me", "--root") == " M kernel-metadata.json\n"
    done = build(clone, "thresholds", "--root", "--owner", "OWNER_TO_FILL")
    assert done.returncode == 0  # the owner that the root has now


def test_a_stage_without_a_kind_is_a_notebook(clone: Path, tmp_path: Path):
    done = build(clone, "thresholds", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert folders(clone) == ["pneumothorax-thresholds"]
    assert "owner unknown: OWNER_TO_FILL stays" in done.stdout
    done = build(clone, "train", "--kind", "script", "-p", "SIZE", "1024", KAGGLE_USERNAME="me")
    train = "unetresnet34-1024-v1-s3456-script"  # the experiment of that size
    assert folders(clone) == ["pneumothorax-thresholds", train]
    assert "'SIZE': 1024" in code_of(clone, train)
    assert f"kaggle kernels push -p build/{train}" in done.stdout
    assert meta_of(clone, train)["id"] == f"me/{train}"


def test_a_training_is_named_by_experiment_seed_and_fold_and_takes_what_is_given(
    clone: Path, project_root: Path
):
    shutil.copy(project_root / "notebooks" / "train.py", clone / "notebooks")
    given = ["-p", "EXPERIMENT", "deeplabv3plus_resnet_1024_v2", "-p", "SEED", "5678"]
    given += ["-p", "FOLD", "0", "--owner", "me"]
    inputs = ["--data", "a/images", "--dataset", "me/weights", "--kernel-source", "me/train-part1"]
    done = build(clone, "train", *given, *inputs)
    assert done.returncode == 0, done.stderr
    slug = "deeplabv3plus-resnet-1024-v2-s5678-f0"
    assert folders(clone) == [slug]
    meta = meta_of(clone, slug)
    assert meta["dataset_sources"] == ["a/images", "me/weights"]
    assert meta["kernel_sources"] == ["me/train-part1"]
    assert meta["competition_sources"] == []
    assert "  from a/images, me/weights, me/train-part1\n" in done.stdout
    done = build(clone, "train", *given, "--slug", "another-name")
    assert "needs ImageNet weights of resnet101: they cannot be downloaded" in done.stdout
    assert folders(clone) == ["another-name", slug]
    done = build(clone, "check")  # not the root: its own kernel is not built
    assert done.returncode == 1
    lacking, fine = done.stdout.splitlines()
    assert lacking.startswith("build/another-name: needs ImageNet weights of resnet101: ")
    assert fine == f"build/{slug}: fine"


def test_training_and_inference_carry_the_wheel_and_thresholds_do_not(clone: Path):
    carrying = f'kernel_wheels["{WHEEL}"]'
    build(clone, "--kind", "script", "--owner", "me")
    for stage, carries in (("train", True), ("thresholds", False), ("inference", True)):
        assert (carrying in code_of(clone, f"pneumothorax-{stage}-script")) is carries
    build(clone, "train", "--kind", "script", "--without-wheel")
    assert carrying not in code_of(clone, "pneumothorax-train-script")


def test_without_registry_and_cache_a_build_says_how_to_go_on(clone: Path):
    (clone / ".cache" / "pneumothorax" / "wheels" / WHEEL).unlink()
    done = build(clone, "train", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert done.returncode == 1
    assert "cannot fetch the wheel of segmentation-models-pytorch 0.6.0" in done.stderr
    assert "connect to a package registry" in done.stderr
    assert "or build --without-wheel" in done.stderr
    assert "Traceback" not in done.stderr
    assert build(clone, "train", "--without-wheel").returncode == 0


def test_an_offline_data_set_is_attached_and_wanted(clone: Path):
    cache = clone / ".cache" / "pneumothorax" / "wheels"
    (cache / "kaggle").mkdir()
    shutil.copy(cache / WHEEL, cache / "kaggle")
    wheel = ("--wheel", "segmentation-models-pytorch==0.6.0")
    done = build(clone, "offline", "set", *wheel)
    assert done.returncode == 1
    assert "give --owner" in done.stderr
    done = build(clone, "offline", "set", *wheel, "--owner", "me")
    assert done.returncode == 0, done.stderr
    assert "kaggle datasets create -p set" in done.stdout
    done = build(clone, "train", "--kind", "script", "--owner", "me", "--offline", "set")
    slug, data_set = "pneumothorax-train-script", "me/pneumothorax-offline"
    assert meta_of(clone, slug)["dataset_sources"] == [data_set]
    assert f'"dataset": "{data_set}"' in code_of(clone, slug)


def test_an_accelerator_is_named_in_the_metadata_of_what_has_a_network(clone: Path):
    done = build(clone, "--kind", "script", "--owner", "me", "--accelerator", "NvidiaH100")
    assert done.returncode == 0, done.stderr
    shapes = [meta_of(clone, slug)["machine_shape"] for slug in folders(clone)]
    assert shapes == ["NvidiaH100", "", "NvidiaH100"]  # inference, thresholds, train
    assert "machine_shape NvidiaH100 is only for participants" in done.stdout
    done = build(clone, "train", "--owner", "me", "--accelerator", "NvidiaTeslaP100")
    assert "--accelerator NvidiaTeslaP100 is retired, and Kaggle gives NvidiaT" in done.stdout
    assert meta_of(clone, "pneumothorax-train")["machine_shape"] == "NvidiaTeslaT4"


def test_a_session_s_hours_limit_training_and_change_no_name(clone: Path, project_root: Path):
    shutil.copy(project_root / "notebooks" / "train.py", clone / "notebooks")
    done = build(clone, "--kind", "script", "--owner", "me", "--session-hours", "9")
    assert done.returncode == 0, done.stderr
    stages = ("inference", "thresholds", "train")
    assert folders(clone) == [f"pneumothorax-{stage}-script" for stage in stages]
    limited = ["'MAX_HOURS': 8.5" in code_of(clone, slug) for slug in folders(clone)]
    assert limited == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--accelerator", "V100"), "accelerator 'V100' is unknown; nearest: Nvidia"),
        (("train", "--accelerator", "TpuV6E8"), "TpuV6E8 is a TPU, and nothing here runs on one"),
        (("thresholds", "--accelerator", "NvidiaL4"), "thresholds needs no GPU: leave --acc"),
        (("inference", "--session-hours", "9"), "--session-hours is for train"),
        (("train", "--session-hours", "0.5"), "--session-hours 0.5 leaves no hours"),
        (("train", "--session-hours", "9", "-p", "MAX_HOURS", "3"), "sets MAX_HOURS: leave it or"),
        (("train", "-p", "SIZES", "1024"), "notebooks/train.py: parameter 'SIZES' is unknown"),
        (("train", "-p", "SIZE", "big"), "SIZE: int"),
        (("trian",), "'trian' is neither a stage"),
        (("chek",), "(build, check, offline, plan, rehearse); nearest: check"),
        (("train", "-p", "SIZE", "500"), "the nearest is 512"),
        (("--root",), "--root writes the owner: give --owner NAME"),
        (("train", "--owner", "not a name"), "a Kaggle user name"),
        (("--slug", "some-name"), "name its STAGE"),
        (("train", "--slug", "abc"), "with a slug of 5 to 50"),
        (("train", "--dataset", "a"), "dataset_sources: 'a' is not OWNER/SLUG"),
        (("train", "--offline", "gone"), "give a folder that `build_kernel.py offline` wrote"),
    ],
)
def test_a_mistake_is_one_clear_error_and_builds_nothing(
    clone: Path, arguments: tuple[str, ...], words: str
):
    done = build(clone, *arguments)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone / "build").exists()


def test_the_command_line_starts_without_torch(project_root: Path):
    code = "import sys, build_kernel; print({'torch', 'pandas', 'cv2'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
