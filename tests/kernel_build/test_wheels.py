"""Wheels: pinned, fetched once from the registry that pip is set up for, carried as text."""

from __future__ import annotations

import base64
import hashlib
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernel_build import bundle, wheels
from kernel_lib.errors import InputError
from kernel_lib.kaggle import packages

SMP = wheels.CARRIED
MODULE = "segmentation_models_pytorch/__init__.py"
FILES = {MODULE: "NAME = 'carried'\n"}
ABOUT = "segmentation_models_pytorch-0.6.0.dist-info"
RECORD = f"{ABOUT}/RECORD"


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
    assert wheels.needs(first) == ["numpy"]  # without those of extras


def altered(path: Path, change: Callable[[dict[str, bytes]], object]) -> bytes:
    """A wheel with its members changed, as a zip whole."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)
    return path.read_bytes()


def flipped(content: bytes, at: int, bits: int) -> bytes:
    return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]


@pytest.mark.parametrize("part", [0.5, 0])
def test_a_damaged_wheel_in_the_cache_is_fetched_again(part: float, registry: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    first = wheels.fetch(SMP, "0.6.0", cache)
    (cache / first.name).write_bytes(first.content[: int(part * len(first.content))])
    assert wheels.fetch(SMP, "0.6.0", cache) == first
    assert (cache / first.name).read_bytes() == first.content


def test_a_wheel_with_any_bit_flipped_is_refused_or_holds_the_same_files(
    registry: Path, tmp_path: Path
):
    (published,) = registry.iterdir()
    content = published.read_bytes()
    files = packages.members(published.name, content)
    path = tmp_path / published.name
    refused = 0
    for at in range(len(content)):
        for bit in range(8):
            path.write_bytes(flipped(content, at, 1 << bit))
            try:
                wheel = wheels.read(path, SMP, "0.6.0")
            except InputError:
                refused += 1
            else:  # of a date, say, that nothing reads
                assert packages.members(wheel.name, wheel.content) == files, (at, bit)
    assert refused > 4 * len(content)


FALSE = {
    "other content": (lambda m: m.update({MODULE: b"NAME = 'altered'\n"}), "is not what its"),
    "other size": (lambda m: m.update({RECORD: m[RECORD].replace(b",17\n", b",18\n")}), "is not"),
    "weak hash": (lambda m: m.update({RECORD: m[RECORD].replace(b"sha256=", b"md5=")}), "is not"),
    "no hash": (lambda m: m.update({RECORD: m[RECORD].replace(b"sha256=", b"")}), "is not what"),
    "one more": (lambda m: m.update({"torch.py": b""}), "does not list 'torch.py'"),
    "one less": (lambda m: m.pop(MODULE), f"lists what is not there, '{MODULE}'"),
    "twice": (lambda m: m.update({RECORD: m[RECORD] * 2}), "lists a file twice"),
    "two cells": (lambda m: m.update({RECORD: b"a,b\n"}), "no complete RECORD"),
    "no text": (lambda m: m.update({RECORD: b"\xff,,\n"}), "no complete RECORD"),
    "no list": (lambda m: m.pop(RECORD), "no complete RECORD"),
    "about nothing": (lambda m: m.pop(f"{ABOUT}/METADATA"), "0 METADATA"),
    "about two": (lambda m: m.update({"x-1.dist-info/METADATA": b""}), "2 METADATA"),
    "outside": (lambda m: m.update({"../out.py": b""}), "would leave its folder"),
}


@pytest.mark.parametrize("kind", FALSE)
def test_a_wheel_is_held_against_its_own_record(kind: str, registry: Path):
    (published,) = registry.iterdir()
    change, words = FALSE[kind]
    altered(published, change)
    with pytest.raises(InputError, match=words):
        wheels.read(published, SMP, "0.6.0")


def test_a_wheel_with_a_false_record_is_fetched_again_and_refused_from_the_registry(
    registry: Path, tmp_path: Path
):
    cache = tmp_path / "cache"
    (published,) = registry.iterdir()
    first = wheels.fetch(SMP, "0.6.0", cache)
    false = altered(cache / first.name, FALSE["other content"][0])
    assert wheels.fetch(SMP, "0.6.0", cache) == first
    for path in (published, cache / first.name):
        path.write_bytes(false)
    with pytest.raises(InputError, match=r"cannot fetch .* is not what its RECORD states"):
        wheels.fetch(SMP, "0.6.0", cache)
    assert list(cache.iterdir()) == []


def test_signatures_folders_and_wheels_within_need_no_row(registry: Path):
    (published,) = registry.iterdir()
    inner = "segmentation_models_pytorch/_vendor/x-1.dist-info/METADATA"
    row = inner.encode() + b",sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,\r\n"
    more = {f"{ABOUT}/RECORD.jws": b"{}", "segmentation_models_pytorch/": b"", inner: b""}
    content = altered(published, lambda m: m.update(more | {RECORD: row + m[RECORD]}))
    assert wheels.read(published, SMP, "0.6.0") == wheels.Wheel(published.name, content)


def test_without_registry_and_cache_the_error_says_what_to_do(registry: Path, tmp_path: Path):
    """Also where the cache holds a wheel of another version under this name."""
    (published,) = registry.iterdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / published.name.replace("0.6.0", "0.7.0")).write_bytes(published.read_bytes())
    with pytest.raises(InputError, match=r"cannot fetch the wheel of .* 0\.7\.0: it is not in"):
        wheels.fetch(SMP, "0.7.0", cache)
    assert list(cache.iterdir()) == []


def test_a_kernel_carries_the_wheel_under_a_banner(project: Path, registry: Path, tmp_path: Path):
    wheel = wheels.fetch(SMP, "0.6.0", tmp_path / "cache")
    inputs = bundle.Inputs(wheels=(wheel,))
    text = bundle.build(project, "train", "script", inputs=inputs).code_file.read_text()
    content = wheels.stored(wheel)
    files = packages.members(wheel.name, wheel.content)
    assert packages.members(wheel.name, content) == files
    digest = hashlib.sha256(content).hexdigest()
    assert "segmentation_models_pytorch 0.6.0, which Kaggle's image lacks" in text
    assert f"{len(content)} bytes\n# sha256 {digest}" in text
    namespace: dict = {"kernel_wheels": {}}
    exec(wheels.source(wheel), namespace)
    assert list(namespace["kernel_wheels"]) == [wheel.name]
    carried, packed = namespace["kernel_wheels"][wheel.name]
    assert carried == digest
    assert lzma.decompress(base64.b85decode("".join(packed.split()))) == content
    assert max(map(len, wheels.source(wheel).splitlines())) <= 100
    assert bundle.build(project, "train", "script", inputs=inputs).code_file.read_text() == text


def test_too_large_a_wheel_is_named_among_the_largest_parts(project: Path, make_wheel, tmp_path):
    text = base64.b64encode(np.random.default_rng(0).bytes(800_000)).decode()  # hard to pack
    path = make_wheel(tmp_path, "big", "1.0", {"big.py": text})
    wheel = wheels.Wheel(path.name, path.read_bytes())
    with pytest.raises(InputError, match=r"largest parts: big-1\.0-py3-none-any\.whl 1,0"):
        bundle.build(project, "train", "script", inputs=bundle.Inputs(wheels=(wheel,)))


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
    from tools.phantoms import competition

    wheel = wheels.fetch(SMP, wheels.pinned(project_root, SMP), wheels.cache_folder())
    given = {
        "EXPERIMENT": "demo_UNetResNet10_128_v1", "SIZE": 64, "EPOCHS": 1, "MIN_EPOCHS": 0,
        "N_FOLDS": 2, "FOLD": 0, "WORKERS": 0, "THREADS": 1,
    }  # fmt: skip
    kernel = bundle.build(
        project_root, "train", "script", given=tuple((k, str(v)) for k, v in given.items()),
        out=tmp_path / "build", inputs=bundle.Inputs(wheels=(wheel,)),
    )  # fmt: skip
    assert kernel.size_bytes < 1_000_000
    for folder in ("hide", "tmp", "working"):
        (tmp_path / folder).mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDDEN)
    data = tmp_path / "input" / "competitions" / "siim-acr-pneumothorax-segmentation"
    competition.write_competition(data, 12, 2, size=64, positives=0.5)
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
