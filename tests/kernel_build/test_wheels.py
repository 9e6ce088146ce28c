"""Wheels: pinned, fetched once from the registry that pip is set up for, carried as text."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_build import bundle, wheels
from kernel_lib.errors import InputError

SMP = wheels.CARRIED
FILES = {"segmentation_models_pytorch/__init__.py": "NAME = 'carried'\n"}


@pytest.fixture
def registry(tmp_path: Path, make_wheel: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the registry, and holds the pinned version; pip asks no other."""
    folder = tmp_path / "registry"
    make_wheel(folder, SMP, "0.6.0", FILES)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_version_is_the_pinned_one(project_root: Path, tmp_path: Path):
    assert wheels.pinned(project_root, SMP) == "0.6.0"
    with pytest.raises(InputError, match="does not pin segmentation-models-pytorch; write"):
        wheels.pinned(tmp_path, SMP)


def test_a_wheel_is_fetched_once_and_then_taken_from_the_cache(registry: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    (published,) = registry.iterdir()
    content = published.read_bytes()
    first = wheels.fetch(SMP, "0.6.0", cache)
    assert (first.name, first.content) == (published.name, content)
    assert [path.name for path in cache.iterdir()] == [published.name]
    published.unlink()
    assert wheels.fetch(SMP, "0.6.0", cache) == first


def test_a_damaged_wheel_in_the_cache_is_fetched_anew(registry: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    first = wheels.fetch(SMP, "0.6.0", cache)
    (cache / first.name).write_bytes(first.content[: len(first.content) // 2])
    assert wheels.fetch(SMP, "0.6.0", cache) == first


def test_without_registry_and_cache_the_error_says_what_to_do(registry: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"cannot fetch the wheel of .* 0\.7\.0: it is not in"):
        wheels.fetch(SMP, "0.7.0", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_under_another_s_name_is_not_taken(registry: Path, tmp_path: Path):
    (published,) = registry.iterdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / published.name.replace("0.6.0", "0.5.0")).write_bytes(published.read_bytes())
    with pytest.raises(InputError, match="cannot fetch"):
        wheels.fetch(SMP, "0.5.0", cache)


def test_what_a_wheel_needs_is_told_without_extras(registry: Path, tmp_path: Path):
    assert wheels.needs(wheels.fetch(SMP, "0.6.0", tmp_path / "cache")) == ["numpy"]


def test_a_kernel_carries_the_wheel_under_a_banner(project: Path, registry: Path, tmp_path: Path):
    wheel = wheels.fetch(SMP, "0.6.0", tmp_path / "cache")
    cargo = bundle.Cargo((wheel,))
    text = bundle.build(project, "train", "script", cargo=cargo).code_file.read_text()
    digest = hashlib.sha256(wheel.content).hexdigest()
    assert "segmentation_models_pytorch 0.6.0, which Kaggle's image lacks" in text
    assert f"{len(wheel.content)} bytes\n# sha256 {digest}" in text
    namespace: dict = {"kernel_wheels": {}}
    exec(wheels.source(wheel), namespace)
    assert list(namespace["kernel_wheels"]) == [wheel.name]
    carried, packed = namespace["kernel_wheels"][wheel.name]
    assert (carried, base64.b64decode(packed)) == (digest, wheel.content)
    assert max(map(len, wheels.source(wheel).splitlines())) <= 100
    assert bundle.build(project, "train", "script", cargo=cargo).code_file.read_text() == text


def test_too_large_a_wheel_is_named_among_the_largest_parts(project: Path):
    wheel = wheels.Wheel("big-1.0-py3-none-any.whl", bytes(800_000))
    with pytest.raises(InputError, match=r"largest parts: big-1\.0-py3-none-any\.whl 1,0"):
        bundle.build(project, "train", "script", cargo=bundle.Cargo((wheel,)))


HIDDEN = """
import importlib.machinery, sys
class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        installed = spec and spec.origin and "site-packages" in spec.origin
        return None if name == "segmentation_models_pytorch" and installed else spec
sys.meta_path[:] = [
    Hidden if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path
]
"""


@pytest.mark.slow
def test_a_kernel_trains_with_nothing_but_the_wheel_that_it_carries(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """segmentation-models-pytorch is hidden in every process, as in Kaggle's image."""
    from kernel_lib.data import phantom

    wheel = wheels.fetch(SMP, wheels.pinned(project_root, SMP), wheels.cache_folder())
    given = {
        "EXPERIMENT": "demo_UNetResNet10_128_v1", "SIZE": 64, "EPOCHS": 1, "MIN_EPOCHS": 0,
        "N_FOLDS": 2, "FOLD": 0, "WORKERS": 0, "THREADS": 1,
    }  # fmt: skip
    kernel = bundle.build(
        project_root,
        "train",
        "script",
        given=tuple((name, str(value)) for name, value in given.items()),
        out=tmp_path / "build",
        cargo=bundle.Cargo((wheel,)),
    )
    assert kernel.size_bytes < 1_000_000
    for folder in ("hide", "tmp", "working"):
        (tmp_path / folder).mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDDEN)
    data = tmp_path / "input" / "competitions" / "siim-acr-pneumothorax-segmentation"
    phantom.write_competition(data, 12, 2, size=64, positives=0.5, progress=False)
    env = {k: v for k, v in os.environ.items() if k != "RANK"} | {
        "PYTHONPATH": str(tmp_path / "hide"),
        "TMPDIR": str(tmp_path / "tmp"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "KERNEL_LIB_MOUNTS": str(tmp_path / "input"),
    }
    working = tmp_path / "working"

    def run(*command: str) -> subprocess.CompletedProcess:
        python = [sys.executable, *command]
        return subprocess.run(python, cwd=working, env=env, capture_output=True, text=True)

    assert "No module named" in run("-c", "import segmentation_models_pytorch").stderr
    done = run("-P", str(kernel.code_file))
    assert done.returncode == 0, done.stderr[-5000:]
    assert f"{wheel.name}: segmentation_models_pytorch from {tmp_path / 'tmp'}" in done.stdout
    assert list(working.glob("work/runs/*/fold0/last.pt"))
    assert sorted(path.name for path in working.iterdir()) == ["train.ipynb", "work"]
