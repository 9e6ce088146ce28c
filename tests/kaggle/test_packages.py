"""Wheels at a kernel's start: checked, unpacked within their folder only, used where they lack."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from kernel_lib.errors import InputError
from kernel_lib.kaggle import packages

NAME = "carried_thing-1.0-py3-none-any.whl"
FILES = {
    "carried_thing/__init__.py": "from carried_thing.inner import WORD\n",
    "carried_thing/inner.py": "WORD = 'from the wheel'\n",
    "carried_thing-1.0.dist-info/METADATA": "Name: carried-thing\nVersion: 1.0\n",
}


def wheel(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # the same bytes at any time
    return buffer.getvalue()


def carried(content: bytes, digest: str | None = None) -> dict[str, tuple[str, str]]:
    digest = digest or hashlib.sha256(content).hexdigest()
    return {NAME: (digest, base64.b85encode(lzma.compress(content)).decode() + "\n")}


def data_set(mounts: Path, files: dict[str, bytes], form: str = "datasets/me/offline") -> dict:
    folder = mounts / form
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    listed = {name: {"sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()}
    manifest = {"dataset": "me/offline", "files": listed}
    (folder / packages.MANIFEST).write_text(json.dumps(manifest))
    return manifest


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scratch folder of this test; the path of the process as it was afterwards."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path / "input"))
    return folder


def test_a_carried_wheel_is_imported_here_and_by_what_this_process_starts(scratch):
    (line,) = packages.use_wheels(carried(wheel(FILES)))
    (folder,) = scratch.iterdir()
    assert line == f"{NAME}: carried_thing from {folder}"
    assert sys.path[-1] == os.environ["PYTHONPATH"] == str(folder)
    code = "import carried_thing as c; print(c.WORD, c.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["from", "the", "wheel", f"{folder}/carried_thing/__init__.py"]
    assert list(packages.use_wheels(carried(wheel(FILES)))) == [
        f"{NAME}: carried_thing is in this image already"
    ]


def test_a_module_that_the_image_has_is_not_replaced(scratch):
    (line,) = packages.use_wheels(carried(wheel({"json/__init__.py": "raise SystemExit\n"})))
    assert line == f"{NAME}: json is in this image already"
    assert list(scratch.iterdir()) == []


def refuse(match: str, wheels: dict, wanted: dict | None = None) -> None:
    with pytest.raises(InputError, match=match):
        list(packages.use_wheels(wheels, wanted))


def test_an_altered_wheel_is_refused(scratch):
    refuse(
        f"{NAME} is damaged: its sha256 is .*; build the kernel", carried(wheel(FILES), "0" * 64)
    )
    (given,) = carried(wheel(FILES)).values()
    for text in (given[1][:-20], "?", base64.b85encode(wheel(FILES)).decode()):
        refuse(f"{NAME} is damaged.*build the kernel again", {NAME: (given[0], text)})
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("member", ["../out.py", "/out.py", "a/../../out.py", "a\\..\\out.py"])
def test_a_member_that_would_leave_the_folder_is_refused(scratch, member):
    with pytest.raises(InputError, match="would leave its folder"):
        packages.unpack(NAME, wheel(FILES | {member: "x"}))
    assert list(scratch.iterdir()) == []
    assert not list(scratch.parent.glob("**/out.py"))


def test_a_folder_is_named_by_its_wheel_and_replaced_if_it_differs(scratch):
    folder = packages.unpack(NAME, wheel(FILES))
    other = packages.unpack(NAME, wheel(FILES | {"more.py": ""}))
    assert folder != other
    (folder / "carried_thing" / "inner.py").write_text("WORD = 'altered'\n")
    (folder / "torch.py").write_text("")
    assert packages.unpack(NAME, wheel(FILES)) == folder
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(folder).as_posix(): path.read_text() for path in files} == FILES
    assert sorted(scratch.iterdir()) == sorted([folder, other])


def test_a_wheel_for_another_python_is_not_used(scratch):
    name = "other-1.0-cp27-cp27m-manylinux2014_x86_64.whl"
    line = packages.use_wheel(name, wheel({"other/__init__.py": ""}))
    ours = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert line == f"{name}: not used, since it is for cp27 and this Python is {ours}"
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("form", ["datasets/me/offline", "offline", "notebooks/me/made"])
def test_an_attached_data_set_is_found_wherever_it_is_mounted(scratch, tmp_path, form):
    files = {NAME: wheel(FILES), "resnet34.pth": b"weights"}
    wanted = data_set(tmp_path / "input", files, form)
    lines = list(packages.use_wheels({}, wanted))
    assert lines[0].startswith(f"{NAME}: carried_thing from {scratch}")
    assert lines[1] == f"resnet34.pth: complete, in {tmp_path / 'input' / form}"


def test_a_damaged_or_missing_file_or_manifest_stops_the_kernel_with_the_fix(scratch, tmp_path):
    data_set(tmp_path / "input", {"resnet34.pth": b"weights"})
    folder = tmp_path / "input/datasets/me/offline"
    (folder / "resnet34.pth").write_bytes(b"wights")
    refuse(r"resnet34\.pth is damaged: .*`kaggle datasets version", {})
    (folder / "resnet34.pth").unlink()
    refuse(r"resnet34\.pth is missing, .*newest version of me/off", {})
    (folder / packages.MANIFEST).write_text("[]")
    refuse(r"offline-manifest\.json is no manifest", {})


def test_a_data_set_that_is_not_attached_is_named_with_the_way_to_attach_it(scratch, tmp_path):
    wanted = data_set(tmp_path / "elsewhere", {"resnet34.pth": b"weights"})
    refuse(r"resnet34\.pth is in no input: attach .* me/offline", {}, wanted)
    data_set(tmp_path / "input", {"resnet34.pth": b"older"})
    refuse(r"resnet34\.pth is of another version: attach", {}, wanted)
