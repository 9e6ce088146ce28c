"""All that is to run on a GPU, on a CPU: what fails is contained and named, and nothing is new."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.benchmarks import gpu

FAILING = """
from tools.benchmarks import gpu
done = {done!r}.split(",")
if "first" not in done:
    gpu.emit({{"name": "first"}})
    gpu.emit({{"name": "first", "what": "a", "here": "1"}})
if "second" not in done:
    gpu.emit({{"name": "second"}})
    {how}
gpu.emit({{"name": "third"}})
gpu.emit({{"name": "third", "what": "c", "here": "3"}})
"""


@pytest.fixture
def given(tmp_path) -> argparse.Namespace:
    values = {"limit_s": 60.0, "data": None, "weights_dir": None, "device": "cpu"}
    return argparse.Namespace(out=tmp_path, **values)


def run_failing(monkeypatch, given: argparse.Namespace, how: str, limit_s: float) -> dict:
    def command(name, limit_s, given, scratch, done):
        return [sys.executable, "-c", FAILING.format(done=done, how=how)]

    monkeypatch.setattr(gpu, "command", command)
    return gpu.run("speed", limit_s, given, given.out)


def test_a_part_that_crashes_goes_on_after_the_measurement_that_crashed_it(monkeypatch, given):
    part = run_failing(monkeypatch, given, "import os; os.abort()", 60)
    assert [row.get("here", row.get("failed")) for row in part["rows"]] == ["1", "did not end", "3"]
    assert not part["ok"]
    assert "second" in part["reason"]


def test_a_part_that_hangs_is_killed_and_what_it_had_stays(monkeypatch, given):
    part = run_failing(monkeypatch, given, "import signal; signal.pause()", 3)
    assert [row["name"] for row in part["rows"]] == ["first", "second"]
    assert part["reason"] == "stopped at its limit of 3 s"


def test_a_part_that_cannot_start_is_tried_once_and_says_why(monkeypatch, given):
    monkeypatch.setattr(gpu, "command", lambda *_: [sys.executable, "-c", "raise OSError('no')"])
    part = gpu.run("machine", 60, given, given.out)
    assert (part["ok"], part["rows"], part["reason"]) == (False, [], "ended with 1")
    assert part["last_lines"][-1] == "OSError: no"
    gpu.write(given.out, {"machine": part})
    assert "OSError: no" in (given.out / "gpu.md").read_text()
    assert json.loads((given.out / "gpu.json").read_text())["parts"]["machine"] == part


def test_a_last_line_that_was_cut_is_left_out(tmp_path):
    log = tmp_path / "speed.log"
    log.write_text(f'step 1/2\n{gpu.MEASURED}{{"name": "a"}}\n{gpu.MEASURED}{{"name": "a", "he')
    assert gpu.measured(log) == [{"name": "a", "failed": "did not end"}]


def test_outcomes_of_tests_are_counted_also_of_a_run_that_was_killed(tmp_path):
    log = tmp_path / "tests.log"
    names = "tests/training/test_gpu.py::test_{}"
    log.write_text(
        f"{names.format('a[1-float 16]')} PASSED [ 5%]\n{names.format('b')} FAILED [ 9%]\n"
        f"{names.format('c')} PASSED [ 9%]\n{names.format('d')} "
    )
    rows = {row["name"]: row["tests"] for row in gpu.tested(log)}
    assert rows == {
        "tests passed": ["test_gpu.py::test_a[1-float 16]", "test_gpu.py::test_c"],
        "tests failed": ["test_gpu.py::test_b"],
    }


WITHOUT = """
import sys
for name in ("matplotlib", "papermill", "jupytext", "nbformat", "IPython", "ipywidgets", "xdist"):
    sys.modules[name] = None  # an import of it fails
import tools.benchmarks.gpu_parts, kernel_lib.__main__
import tests.training.test_gpu, tests.tools.ablation.test_gpu
"""


@pytest.mark.slow
def test_a_gpu_machine_needs_neither_matplotlib_nor_jupyter(project_root):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=project_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def place(tmp_path: Path, **changes):
    from tools.benchmarks import gpu_parts

    values = {"scratch": tmp_path, "limit_s": 60.0, "data": None, "weights_dir": None}
    return gpu_parts.Place(argparse.Namespace(**values | {"device": "cpu"} | changes))


@pytest.mark.slow
def test_weights_in_float16_are_found_and_trained_in_float32(tmp_path):
    from kernel_lib.experiments import EXPERIMENTS
    from kernel_lib.models import networks, weights
    from tools.benchmarks import gpu_parts

    there = place(tmp_path, weights_dir=tmp_path)
    there.given.device = "cuda"  # as only the choice of what is trained reads it from here on
    there.data = tmp_path
    assert gpu_parts.parameters(there).experiment == "UNetResNet34_512_v1"
    model = networks.build(EXPERIMENTS["lite0_256"])
    half = {
        k: v.half() if v.is_floating_point() else v for k, v in model.encoder.state_dict().items()
    }
    torch.save(half, tmp_path / f"{gpu_parts.LITE0}.pth")
    chosen = gpu_parts.parameters(there)
    assert (chosen.experiment, chosen.size) == ("lite0_256", 512)
    other = networks.build(EXPERIMENTS["lite0_256"])
    weights.load_imagenet(other.encoder, EXPERIMENTS["lite0_256"].encoder, [tmp_path])
    for name, value in other.encoder.state_dict().items():
        assert value.dtype != torch.float16
        assert torch.equal(value, half[name].to(value.dtype))


@pytest.mark.slow
def test_a_compiled_loop_is_measured(tmp_path, monkeypatch):
    """Traced, and run as it is: what a CPU leaves out of the run below."""
    from kernel_lib.training import step
    from tools.benchmarks import gpu_parts

    monkeypatch.setattr(step, "COMPILER", "aot_eager")
    there = place(tmp_path)
    rows = list(gpu_parts.compiled(there, there.scale.unet))
    torch.compiler.reset()
    assert [row["images_per_second"].keys() for row in rows] == [
        {"ours", "eager"},
        {"ours", "bare"},
    ]


@pytest.mark.slow
def test_a_full_memory_ends_the_search_for_the_largest_batch(tmp_path, monkeypatch):
    from tools.benchmarks import gpu_parts

    there = place(tmp_path)
    there.scale = there.scale._replace(most_images=256)
    for most in (1, 2, 3, 28, 64, 255, 256, 500):
        tried = []
        monkeypatch.setattr(
            gpu_parts, "_fits", lambda place, row, n, t=tried, m=most: t.append(n) or n <= m
        )
        (row,) = gpu_parts.largest_batch(there, there.scale.unet)
        assert row["images"] <= min(most, 256) < row["images"] * 9 / 8 + 2
        assert len(set(tried)) == len(tried) <= 12


@pytest.mark.slow
def test_the_command_runs_every_part_on_a_cpu(project_root, tmp_path):
    start = [sys.executable, "-m", "tools.benchmarks.gpu", "--device", "cpu", "--limit-s", "1800"]
    done = subprocess.run(
        [*start, "--out", str(tmp_path)], cwd=project_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert list(found) == list(gpu.PARTS)
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    for name, part in found.items():
        assert part["ok"] or part["reason"], name
        assert f"## {name}: " in text
        for row in part["rows"]:
            assert row.get("what", row["name"]) in text
    for name in ("machine", "speed", "training"):
        assert found[name]["ok"], found[name]
    assert len(found["training"]["logs"]) == 2
    assert any("report" in row for row in found["training"]["rows"])
