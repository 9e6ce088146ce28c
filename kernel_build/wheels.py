"""Wheels from the configured registry: fetched once, checked, carried by kernels as text."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from kernel_lib.errors import InputError

CARRIED = "segmentation-models-pytorch"  # all that it needs is in Kaggle's image, and it is not
# Kaggle's image; a wheel may be tagged for any glibc up to its own.
KAGGLE = (
    *("--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:"),
    *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64"),
    *("--platform", "manylinux2014_x86_64"),
)
_COLUMNS = 96  # of base64, a multiple of four


@dataclass(frozen=True)
class Wheel:
    """A wheel as it came: its file's name and its bytes."""

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


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
    of its own. Raises InputError where neither has it.
    """
    for path in sorted(cache.glob(f"{project.replace('-', '_')}-{version}-*.whl")):
        if _is_whole(path, project, version):
            return Wheel(path.name, path.read_bytes())
        path.unlink()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        command += [scratch, "--disable-pip-version-check", *(target or ("--only-binary=:all:",))]
        done = subprocess.run(
            [*command, f"{project}=={version}"], capture_output=True, text=True, check=False
        )
        found = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or len(found) != 1 or not _is_whole(found[0], project, version):
            said = (done.stderr.strip() or "no wheel came").splitlines()[-1]
            raise InputError(
                f"cannot fetch the wheel of {project} {version}: it is not in {cache}, and pip "
                f"says {said!r}; connect to a package registry, or put the wheel into that folder"
            )
        found[0].replace(cache / found[0].name)
    return Wheel(found[0].name, (cache / found[0].name).read_bytes())


def carried(root: Path) -> Wheel:
    """The wheel that kernels carry, of the pinned version."""
    try:
        return fetch(CARRIED, pinned(root, CARRIED), cache_folder())
    except InputError as error:
        raise InputError(f"{error}; or build --without-wheel") from None


def source(wheel: Wheel) -> str:
    """The part of a kernel's file that carries a wheel, under a banner that says what it is."""
    project, version = wheel.name.split("-")[:2]
    text = base64.b64encode(wheel.content).decode("ascii")
    lines = "\n".join(text[i : i + _COLUMNS] for i in range(0, len(text), _COLUMNS))
    rule = "# " + "=" * 98
    return (
        f"\n{rule}\n# {project} {version}, which Kaggle's image lacks:\n"
        "# its wheel as the registry has it, in base64, since it is a zip.\n"
        "# It is unpacked at the start, and only where the package cannot be imported.\n"
        f"# {wheel.name}  |  {len(wheel.content)} bytes\n# sha256 {wheel.sha256}\n{rule}\n"
        f'kernel_wheels["{wheel.name}"] = (\n    "{wheel.sha256}",\n    """\n{lines}\n""",\n)\n'
    )


def needs(wheel: Wheel) -> list[str]:
    """What a wheel asks for beside itself, extras and other Pythons left out, by name."""
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as archive:
        found = _metadata(archive).get_all("Requires-Dist") or []
    return sorted({re.split(r"[^\w.-]", one)[0] for one in found if "extra ==" not in one})


def _metadata(archive: zipfile.ZipFile) -> Message:
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    return HeaderParser().parsestr(archive.read(name).decode("utf-8"))


def _is_whole(path: Path, project: str, version: str) -> bool:
    """Whether a file is an undamaged wheel of that project and version."""
    try:
        with zipfile.ZipFile(path) as wheel:
            said = _metadata(wheel)
            if wheel.testzip() is not None:
                return False
    except (zipfile.BadZipFile, ValueError, OSError, KeyError):
        return False
    plain = re.sub(r"[-_.]+", "-", str(said["Name"])).lower()
    return plain == re.sub(r"[-_.]+", "-", project).lower() and said["Version"] == version
