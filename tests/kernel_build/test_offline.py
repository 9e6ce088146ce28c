"""The data set for kernels without internet: what is in it, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kernel_build import offline
from kernel_lib.errors import InputError
from kernel_lib.kaggle import packages
from kernel_lib.models import weights as model_weights

WHEEL = "thing-1.0-py3-none-any.whl"


@pytest.fixture
def write(tmp_path: Path, make_wheel: Callable) -> Callable:
    """`offline.write` into tmp_path/set, with a cache that holds one wheel for Kaggle."""
    cache = tmp_path / "cache"
    make_wheel(cache / "kaggle", "thing", "1.0", {"thing.py": "X = 1\n"})

    def run(slug: str = "some-things", **contents: object) -> list[str]:
        folder = tmp_path / "set"
        given = offline.Contents(**contents)
        return offline.write(folder, given, owner="me", slug=slug, cache=cache)

    return run


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file named as torchvision does: by the first eight digits of its hash."""
    plain = tmp_path / "plain.pth"
    torch.save({"conv1.weight": torch.zeros(2, 2)}, plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    return plain.rename(tmp_path / f"resnet34-{digest[:8]}.pth")


def test_the_folder_holds_files_manifest_and_metadata(
    write: Callable, weights: Path, tmp_path: Path
):
    of_weights, of_wheel = write(weights=[weights], wheels=["thing==1.0"])
    size = weights.stat().st_size
    assert of_weights == f"{weights.name}: 1 tensors, {size:,} bytes"
    assert of_wheel.startswith(f"{WHEEL}: ")
    assert of_wheel.endswith("; needs numpy")
    folder = tmp_path / "set"
    meta = json.loads((folder / "dataset-metadata.json").read_text())
    assert meta == {"id": "me/some-things", "title": "Some things", "licenses": [{"name": "other"}]}
    manifest = offline.manifest(folder)
    assert manifest["dataset"] == "me/some-things"
    assert manifest["files"][weights.name] == {
        "bytes": size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    names = {path.name for path in folder.iterdir()}
    assert names == {*manifest["files"], "dataset-metadata.json", packages.MANIFEST}


def test_the_same_command_again_replaces_the_folder(write: Callable, weights: Path, tmp_path: Path):
    write(weights=[weights], wheels=["thing==1.0"])
    write(wheels=["thing==1.0"])
    assert list(offline.manifest(tmp_path / "set")["files"]) == [WHEEL]
    assert not (tmp_path / "set" / weights.name).exists()
    assert not list(tmp_path.glob(".set-*"))
    (tmp_path / "set" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match=r"holds thesis\.txt"):
        write(wheels=["thing==1.0"])
    assert (tmp_path / "set" / "thesis.txt").is_file()


def test_damaged_weights_and_two_files_of_one_name_are_refused(write, weights, tmp_path: Path):
    with pytest.raises(InputError, match="two files are named resnet34-"):
        write(weights=[weights, weights])
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        write(weights=[weights])
    other = tmp_path / "resnet18.pth"
    other.write_text("no weights")
    with pytest.raises(InputError, match="is not a readable weights file"):
        write(weights=[other])
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({}, "would be empty; give --weights, --fetch or --wheel"),
        ({"slug": "short", "wheels": ["thing==1.0"]}, "slug of 6 to 50"),
        ({"wheels": ["thing"]}, "--wheel thing is not NAME==VERSION"),
        ({"wheels": ["--index-url==x"]}, "is not NAME==VERSION"),
        ({"weights": [Path("gone.pth")]}, r"gone\.pth is not a file of weights"),
        ({"fetch": ["resnet35"]}, "no encoder 'resnet35'"),
    ],
)
def test_what_cannot_be_is_refused(write: Callable, tmp_path: Path, contents: dict, words: str):
    with pytest.raises(InputError, match=words):
        write(**contents)
    assert not (tmp_path / "set").exists()


def test_fetched_weights_are_torchvision_s_with_their_hash_checked(
    write: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A download that stands in: torch's own is asked for torchvision's address and hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    asked = []

    def download(url: str, target: str, hash_prefix: str, **_: object) -> None:
        from segmentation_models_pytorch.encoders import get_encoder

        asked.append((url, hash_prefix))
        torch.save(get_encoder("resnet18", weights=None).state_dict(), target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(InputError, match="its name says f37072fd"):
        write(fetch=["resnet18"])
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert asked == [(url, "f37072fd")]
    with monkeypatch.context() as unchecked:
        unchecked.setattr(model_weights, "check_hash", lambda path: None)
        write(fetch=["resnet18"])
    assert list(offline.manifest(tmp_path / "set")["files"]) == ["resnet18-f37072fd.pth"]


def test_without_internet_a_fetch_says_how_else(write: Callable, tmp_path: Path, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(InputError, match=r"--fetch resnet18: .*no route.*; or give the file with"):
        write(fetch=["resnet18"])


def test_the_kernel_uses_what_was_written(
    write: Callable, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(weights=[weights])
    manifest = offline.manifest(tmp_path / "set")
    mounts = tmp_path / "input" / "datasets" / "me"
    mounts.mkdir(parents=True)
    (mounts / "some-things").symlink_to(tmp_path / "set")
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path / "input"))
    (line,) = packages.use_wheels({}, manifest)
    assert line == f"{weights.name}: complete, in {mounts / 'some-things'}"
