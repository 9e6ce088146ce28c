"""Wheels: fetched once from the configured registry, checked, carried by kernels as text."""

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
_HASHES = ("sha256", "sha384", "sha512")  # that a RECORD may use
_METADATA = r"[^/]+\.dist-info/METADATA"
_UNLISTED = ("RECORD", "RECORD.jws", "RECORD.p7s")  # the list itself, and its signatures


@dataclass(frozen=True)
class Wheel:
    """A wheel's file: name and content."""

    name: str
    content: bytes


def pinned(root: Path, project: str) -> str:
    """Return the version of a project that the root's requirements.txt pins."""
    path = root / "requirements.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    pin = re.search(rf"^{re.escape(project)}==([^\s;]+)", text, re.MULTILINE)
    if not pin:
        raise InputError(f"{path} does not pin {project}; write {project}==VERSION into it")
    return pin[1]


def cache_folder() -> Path:
    """Return the folder of fetched wheels: in the user's cache, outside every project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pneumothorax/wheels"


def fetch(project: str, version: str, cache: Path, target: Iterable[str] = ()) -> Wheel:
    """Return a wheel from the cache, else by `pip download` from the registry that pip uses.

    `target` are pip's options for another machine (`KAGGLE`), which needs a cache of its own. A
    damaged wheel in the cache is removed.

    Raises:
        InputError: Neither has it.
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
        paths = sorted(Path(scratch).glob("*.whl"))
        try:
            if done.returncode or len(paths) != 1:
                reason = (done.stderr.strip() or "no wheel came").splitlines()[-1]
                raise InputError(f"pip says {reason!r}")
            wheel = read(paths[0], project, version)
        except InputError as error:
            raise InputError(
                f"cannot fetch the wheel of {project} {version}: it is not in {cache}, and "
                f"{error}; connect to a package registry, or put the wheel into that folder"
            ) from error
        paths[0].replace(cache / wheel.name)
    return wheel


def read(path: Path, project: str, version: str) -> Wheel:
    """Return a file's wheel, checked against its own RECORD and this project and version.

    Raises:
        InputError: It is another file.
    """
    try:
        wheel = Wheel(path.name, path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); fetch it again") from error
    members = packages.members(wheel.name, wheel.content)
    _check_record(wheel.name, members)
    metadata = _metadata(wheel.name, members)
    names = [re.sub(r"[-_.]+", "-", str(name)).lower() for name in (metadata["Name"], project)]
    if names[0] != names[1] or metadata["Version"] != version:
        raise InputError(
            f"{wheel.name} holds {metadata['Name']} {metadata['Version']}, not {project} {version};"
            " fetch it again"
        )
    return wheel


def carried(root: Path) -> Wheel:
    """Return the wheel that kernels carry, of the pinned version."""
    try:
        return fetch(CARRIED, pinned(root, CARRIED), cache_folder())
    except InputError as error:
        raise InputError(f"{error}; or build --without-wheel") from None


def stored(wheel: Wheel) -> bytes:
    """Return the wheel with its files unpacked in the zip, which LZMA packs to half the size."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for path, content in packages.members(wheel.name, wheel.content).items():
            file.writestr(zipfile.ZipInfo(path), content)  # dated 1980: always the same bytes
    return target.getvalue()


def source(wheel: Wheel) -> str:
    """Return the part of a kernel's file that carries a wheel, under a banner that names it."""
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
    """Return the names of a wheel's dependencies, without those of its extras."""
    metadata = _metadata(wheel.name, packages.members(wheel.name, wheel.content))
    required = metadata.get_all("Requires-Dist") or []
    return sorted({re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line})


def _check_record(name: str, members: Mapping[str, bytes]) -> None:
    """Raise InputError unless a wheel's files are exactly those that its own RECORD lists.

    By hand: the package installer (1.1.0) accepts a listed file that is missing, or listed twice,
    and a wheel without METADATA.
    """
    folder = _dist_info(name, members)
    try:
        text = members[f"{folder}/RECORD"].decode("utf-8")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        listed = {path: (stated, size) for path, stated, size in rows}
    except (KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{name} is damaged: it has no complete RECORD; fetch it again") from error
    if len(listed) < len(rows):
        raise InputError(f"{name} is damaged: its RECORD lists a file twice; fetch it again")
    unlisted = {f"{folder}/{file}" for file in _UNLISTED}
    for path in sorted((listed.keys() | members.keys()) - unlisted):
        if path not in members or path not in listed:
            fault = "does not list" if path in members else "lists what is not there,"
            raise InputError(f"{name} is damaged: its RECORD {fault} {path!r}; fetch it again")
        if not _is_as_stated(members[path], *listed[path]):
            raise InputError(
                f"{name} is damaged: {path!r} is not what its RECORD states; fetch it again"
            )


def _is_as_stated(content: bytes, stated: str, size: str) -> bool:
    """Return whether a file has the hash, and the size if there is one, of its row in RECORD."""
    algorithm, _, digest = stated.partition("=")
    if algorithm not in _HASHES or size not in ("", str(len(content))):
        return False
    encoded = base64.urlsafe_b64encode(hashlib.new(algorithm, content).digest())
    return encoded.decode("ascii").rstrip("=") == digest


def _metadata(name: str, members: Mapping[str, bytes]) -> Message:
    try:
        text = members[f"{_dist_info(name, members)}/METADATA"].decode("utf-8")
    except ValueError as error:
        raise InputError(f"{name} is damaged: METADATA is not UTF-8; fetch it again") from error
    return HeaderParser().parsestr(text)


def _dist_info(name: str, members: Mapping[str, bytes]) -> str:
    """Return the top folder that describes a wheel; a wheel within it has its own deeper down."""
    folders = [path.split("/")[0] for path in members if re.fullmatch(_METADATA, path)]
    if len(folders) != 1:
        raise InputError(f"{name} is damaged: {len(folders)} METADATA, not 1; fetch it again")
    return folders[0]
