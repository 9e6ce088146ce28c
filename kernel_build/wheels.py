"""Wheels from the configured registry: fetched once, checked, carried by kernels as text."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import lzma
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from kernel_lib.errors import InputError
from kernel_lib.kaggle import packages

CARRIED = "segmentation-models-pytorch"  # all that it needs is in Kaggle's image, and it is not
# Kaggle's image; a wheel may be tagged for any glibc up to its own.
KAGGLE = (
    *("--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:"),
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64"),
    *("--platform", "manylinux2014_x86_64"),
)
_COLUMNS = 98
_HASHES = ("sha256", "sha384", "sha512")  # those that a wheel may state its files by
_METADATA = r"[^/]+\.dist-info/METADATA"
_UNLISTED = ("RECORD", "RECORD.jws", "RECORD.p7s")  # the list itself, and what signs it later


@dataclass(frozen=True)
class Wheel:
    """A wheel as it came: its file's name and its bytes."""

    name: str
    content: bytes


def pinned(root: Path, project: str) -> str:
    """The version of a project that the root's requirements.txt pins."""
    path = root / "requirements.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(rf"^{re.escape(project)}==([^\s;]+)", text, re.MULTILINE)
    if not found:
        raise InputError(f"{path} does not pin {project}; write {project}==VERSION into it")
    return found[1]


def cache_folder() -> Path:
    """Where fetched wheels are kept: the user's cache, outside every project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pneumothorax/wheels"


def fetch(project: str, version: str, cache: Path, target: Iterable[str] = ()) -> Wheel:
    """A wheel from the cache, else from the registry that pip is set up for, by `pip download`.

    `target` are pip's options for another machine than this one (`KAGGLE`), which then has a cache
    of its own. A damaged wheel in the cache is removed. Raises InputError where neither has it.
    """
    for path in sorted(cache.glob(f"{project.replace('-', '_')}-{version}-*.whl")):
        try:
            return read(path, project, version)
        except InputError:
            path.unlink(missing_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        command += [scratch, "--disable-pip-version-check", *(target or ("--only-binary=:all:",))]
        done = subprocess.run(
            [*command, f"{project}=={version}"], capture_output=True, text=True, check=False
        )
        found = sorted(Path(scratch).glob("*.whl"))
        try:
            if done.returncode or len(found) != 1:
                said = (done.stderr.strip() or "no wheel came").splitlines()[-1]
                raise InputError(f"pip says {said!r}")
            wheel = read(found[0], project, version)
        except InputError as error:
            raise InputError(
                f"cannot fetch the wheel of {project} {version}: it is not in {cache}, and "
                f"{error}; connect to a package registry, or put the wheel into that folder"
            ) from error
        found[0].replace(cache / wheel.name)
    return wheel


def read(path: Path, project: str, version: str) -> Wheel:
    """The wheel of that project and version in a file, each of its files as its RECORD has it.

    Raises InputError for every other file.
    """
    try:
        wheel = Wheel(path.name, path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); fetch it anew") from error
    members = packages.members(wheel.name, wheel.content)
    _check_record(wheel.name, members)
    said = _metadata(wheel.name, members)
    plain = re.sub(r"[-_.]+", "-", str(said["Name"])).lower()
    if plain != re.sub(r"[-_.]+", "-", project).lower() or said["Version"] != version:
        raise InputError(
            f"{wheel.name} holds {said['Name']} {said['Version']}, not {project} {version}; "
            "fetch it anew"
        )
    return wheel


def carried(root: Path) -> Wheel:
    """The wheel that kernels carry, of the pinned version."""
    try:
        return fetch(CARRIED, pinned(root, CARRIED), cache_folder())
    except InputError as error:
        raise InputError(f"{error}; or build --without-wheel") from None


def stored(wheel: Wheel) -> bytes:
    """Return the wheel with the same files, none of them packed, which LZMA packs to half."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for path, content in packages.members(wheel.name, wheel.content).items():
            file.writestr(zipfile.ZipInfo(path), content)  # of 1980, so that the bytes are the same
    return target.getvalue()


def source(wheel: Wheel) -> str:
    """The part of a kernel's file that carries a wheel, under a banner that says what it is."""
    project, version = wheel.name.split("-")[:2]
    content = stored(wheel)
    digest = hashlib.sha256(content).hexdigest()
    text = base64.b85encode(lzma.compress(content, preset=9)).decode("ascii")
    lines = "\n".join(text[i : i + _COLUMNS] for i in range(0, len(text), _COLUMNS))
    rule = "# " + "=" * 98
    return (
        f"\n{rule}\n# {project} {version}, which Kaggle's image lacks:\n"
        "# its wheel's files in a zip, packed by LZMA, in base 85, since that is no text.\n"
        "# It is unpacked at the start, and only where the package cannot be imported.\n"
        f"# {wheel.name}  |  {len(content)} bytes\n# sha256 {digest}\n{rule}\n"
        f'kernel_wheels["{wheel.name}"] = (\n    "{digest}",\n    """\n{lines}\n""",\n)\n'
    )


def needs(wheel: Wheel) -> list[str]:
    """What a wheel asks for beside itself, extras and other Pythons left out, by name."""
    said = _metadata(wheel.name, packages.members(wheel.name, wheel.content))
    found = said.get_all("Requires-Dist") or []
    return sorted({re.split(r"[^\w.-]", one)[0] for one in found if "extra ==" not in one})


def _check_record(name: str, members: Mapping[str, bytes]) -> None:
    """InputError unless a wheel's files are those that its own RECORD lists, to the byte."""
    folder = _about(name, members)
    try:
        text = members[f"{folder}/RECORD"].decode("utf-8")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        listed = {path: (stated, size) for path, stated, size in rows}
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{name} is damaged: it has no whole RECORD; fetch it anew") from error
    if len(listed) < len(rows):
        raise InputError(f"{name} is damaged: its RECORD lists a file twice; fetch it anew")
    unlisted = {f"{folder}/{one}" for one in _UNLISTED}
    for path in sorted((listed.keys() | members.keys()) - unlisted):
        if path not in members or path not in listed:
            fault = "does not list" if path in members else "lists what is not there,"
            raise InputError(f"{name} is damaged: its RECORD {fault} {path!r}; fetch it anew")
        if not _is_as_stated(members[path], *listed[path]):
            raise InputError(
                f"{name} is damaged: {path!r} is not what its RECORD states; fetch it anew"
            )


def _is_as_stated(content: bytes, stated: str, size: str) -> bool:
    """Whether a file has the hash that a row of a RECORD states, and the size if it states one."""
    algorithm, _, digest = stated.partition("=")
    if algorithm not in _HASHES or size not in ("", str(len(content))):
        return False
    found = base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest())
    return found.decode("ascii").rstrip("=") == digest


def _metadata(name: str, members: Mapping[str, bytes]) -> Message:
    try:
        text = members[f"{_about(name, members)}/METADATA"].decode("utf-8")
    except ValueError as error:
        raise InputError(f"{name} is damaged: METADATA is not UTF-8; fetch it anew") from error
    return HeaderParser().parsestr(text)


def _about(name: str, members: Mapping[str, bytes]) -> str:
    """The one top folder of a wheel that says what it is; a wheel within it has its own deeper."""
    found = [path.split("/")[0] for path in members if re.fullmatch(_METADATA, path)]
    if len(found) != 1:
        raise InputError(f"{name} is damaged: it has {len(found)} METADATA, not 1; fetch it anew")
    return found[0]
