"""The table of accelerators: names, speed, memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernel_build import accelerators, metadata, needs
from kernel_build.accelerators import ACCELERATORS
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS

ROW = EXPERIMENTS["UNetResNet34_512_v1"]
META = {"dataset_sources": ["me/a"], "competition_sources": [], "model_sources": [],
        "kernel_sources": [], "enable_internet": True}  # fmt: skip


def test_the_documented_table_is_the_code_s(project_root: Path):
    text = (project_root / "docs" / "kaggle.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)`[^|]*\| (\d+) \| (\d+) GB \| (\d+), (\d+) \| ([\d.]+) \|$", text, re.M
    )
    assert rows == [
        (a.name, *(f"{n}" for n in (a.gpus, a.memory_gb, a.tflops, a.bandwidth_gb_s)),
         f"{a.speed:.1f}".removesuffix(".0"))
        for a in ACCELERATORS.values()
    ]  # fmt: skip


def test_speeds_are_against_the_default():
    assert ACCELERATORS[accelerators.DEFAULT].speed == 1
    four, one = ACCELERATORS["NvidiaL4"], ACCELERATORS["NvidiaL4X1"]
    assert four.speed == pytest.approx(4 * one.speed)
    # 121 of 65 TFLOPS and 300 of 320 GB/s are √(1.862 · 0.938) = 1.321 T4.
    assert one.speed == pytest.approx(1.321 / 2, rel=1e-3)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_every_one_is_found_and_is_no_fault(name: str):
    assert accelerators.find(name).name == name
    assert accelerators.fault(name) is None
    assert bool(accelerators.note(name)) is (name != accelerators.DEFAULT)


@pytest.mark.parametrize("name", ["NvidiaTeslaP100", " nvidiateslap100"])
def test_a_retired_gpu_is_the_one_that_kaggle_gives(name: str):
    assert accelerators.find(name).name == accelerators.DEFAULT
    assert "is retired, and Kaggle gives NvidiaTeslaT4" in accelerators.replacement(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TpuV5E8", "TpuV5E8 is a TPU, and nothing here runs on one: the training is torch on GPU"),
        ("tpu1vmv38", "is a TPU"),
        ("T4", "accelerator 'T4' is unknown; nearest: NvidiaTeslaT4"),
        ("NvidiaH200", "nearest: NvidiaH100"),
        ("nvidial4", "nearest: NvidiaL4"),
        ("", "accelerator '' is unknown"),
    ],
)
def test_any_other_name_is_refused(name: str, words: str):
    with pytest.raises(InputError, match=words):
        accelerators.find(name)


def test_memory_follows_pixels_and_the_share_of_a_batch():
    assert accelerators.training_mb(ROW, 1) == 3906
    assert accelerators.training_mb(ROW, 2) == 3906 / 2
    assert accelerators.training_mb(ROW.differing(size=1024, batch_size=3), 2) == 3906 * 4 * 2 / 8
    assert accelerators.training_mb(EXPERIMENTS["lite0_256"], 1) is None


def test_shipped_experiments_fit_the_default():
    default = ACCELERATORS[accelerators.DEFAULT]
    for experiment in EXPERIMENTS.values():
        assert (accelerators.training_mb(experiment, default.gpus) or 0) < default.usable_mb


@pytest.mark.parametrize(
    ("shape", "given", "words"),
    [
        ("", {"batch_size": 96}, "needs about 23.4 GB of GPU memory"),
        ("NvidiaTeslaT4", {"batch_size": 96}, "leaves 15.0: -p BATCH_SIZE 48 -p ACCUMULATE 4, or"),
        ("NvidiaTeslaT4", {"batch_size": 56}, None),
        ("NvidiaTeslaT4", {"batch_size": 56, "processes": 1}, "needs about 27.3 GB"),
        ("NvidiaTeslaT4", {"batch_size": 96, "precision": "float32"}, None),
        ("NvidiaL4X1", {"batch_size": 96}, "needs about 46.9 GB"),
        ("NvidiaH100", {"batch_size": 96}, None),
        ("", {"batch_size": 1, "size": 2048, "accumulate": 1}, None),
    ],
)
def test_a_kernel_that_does_not_fit_is_found(shape: str, given: dict, words: str | None):
    values = {"EXPERIMENT": ROW.name, "FOLD": 0} | {k.upper(): v for k, v in given.items()}
    found = list(needs.unmet("train", values, META | {"machine_shape": shape}))
    assert len(found) == (words is not None)
    assert not words or words in found[0]


def test_the_metadata_of_a_stage_without_a_network_name_none(project):
    base = metadata.read_base(project)
    shapes = {
        stage: metadata.of_kernel(base, stage, "script", "me", "x", accelerator="NvidiaH100")
        for stage in ("train", "thresholds", "inference")
    }
    assert [meta["machine_shape"] for meta in shapes.values()] == ["NvidiaH100", "", "NvidiaH100"]
