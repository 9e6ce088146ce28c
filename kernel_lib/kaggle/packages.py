"""Packages that Kaggle's image lacks: wheels in the kernel's file, or in an attached data set.

Nothing is installed and no network is used: a wheel whose hash agrees is unpacked into a scratch
folder named by that hash, which is put on the path of this process and of those it starts.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import lzma
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from kernel_lib import storage
from kernel_lib.errors import InputError
from kernel_lib.kaggle import paths

MAX_BYTES = 1 << 30  # of a wheel, unpacked
MANIFEST = "offline-manifest.json"  # in a data set that `build_kernel.py offline` made


def use_wheels(
    wheels: Mapping[str, tuple[str, str]], wanted: Mapping | None = None
) -> Iterator[str]:
    """Make the wheels that the kernel carries and its inputs hold importable; yield log lines.

    wheels: for each file name the sha256 and the content, packed by LZMA, in base 85 in lines.
    wanted: the manifest of the data set that the kernel was built for.

    Raises: InputError with the fix where a file was altered, is damaged, or is missing.
    """
    for name, (digest, text) in wheels.items():
        try:
            content = lzma.decompress(base64.b85decode("".join(text.split())))
        except (ValueError, lzma.LZMAError) as error:
            raise InputError(f"{name} is damaged ({error}); build the kernel again") from None
        _check(name, hashlib.sha256(content).hexdigest(), digest, "build the kernel again")
        yield use_wheel(name, content)
    attached = paths.mounted_files(MANIFEST)
    if wanted:
        _check_attached(wanted, attached)
    for manifest in attached:
        yield from use_data_set(manifest)


def use_wheel(name: str, content: bytes) -> str:
    """Make a wheel's modules importable where they are not yet; return a log line.

    A wheel for another Python is not used, since importing it would crash.
    """
    with _opened(name, content) as wheel:
        modules = _modules(wheel)
    if not modules or name.count("-") < 4:
        raise InputError(f"{name} is no wheel of Python modules; fetch it again")
    if all(find_spec(module) for module in modules):
        return f"{name}: {', '.join(modules)} is in this image already"
    ours = f"cp{sys.version_info.major}{sys.version_info.minor}"
    python, abi = name.removesuffix(".whl").split("-")[-3:-1]
    if not (abi == "abi3" or {"py3", ours} & set(python.split("."))):
        return f"{name}: not used, since it is for {python} and this Python is {ours}"
    folder = str(unpack(name, content))
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if folder not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*inherited, folder])
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    return f"{name}: {', '.join(modules)} from {folder}"


def use_data_set(manifest: Path) -> Iterator[str]:
    """Check every file that a data set's manifest lists, and use its wheels; yield log lines.

    Raises: InputError where a file is missing or differs.
    """
    listed = _read(manifest)
    for name, entry in sorted(listed["files"].items()):
        path = manifest.parent / PurePosixPath(name).name
        fix = (
            "make the folder again with `build_kernel.py offline`, `kaggle datasets version -p "
            f"FOLDER -m fixed`, and attach the newest version of {listed['dataset']}"
        )
        if not path.is_file():
            raise InputError(f"{path} is missing, and {manifest} lists it; {fix}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _check(str(path), digest, entry["sha256"], fix)
        if name.endswith(".whl"):
            yield use_wheel(name, path.read_bytes())
        else:
            yield f"{name}: complete, in {path.parent}"


def unpack(name: str, content: bytes) -> Path:
    """Return the scratch folder with exactly the wheel's files, named by its hash.

    It appears complete, and processes that start together agree on it.

    Raises: InputError where a member would leave the folder, or it cannot be written.
    """
    scratch = Path(tempfile.gettempdir()).resolve()
    folder = scratch / f"kernel_wheel-{hashlib.sha256(content).hexdigest()[:16]}"
    files = members(name, content)
    if _holds(folder, files):
        return folder
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=scratch) as beside:
            for member, data in files.items():
                target = Path(beside) / "new" / member
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            if folder.exists():
                folder.rename(Path(beside) / "damaged")
            (Path(beside) / "new").rename(folder)
    except OSError as error:
        if not _holds(folder, files):  # otherwise another process was first
            raise InputError(
                f"cannot unpack {name} to {folder} ({error}); set TMPDIR to a folder of your own"
            ) from error
    return folder


def members(name: str, content: bytes) -> dict[str, bytes]:
    """Return the contents of a wheel's files by path, relative to where it is unpacked.

    Raises: InputError where the wheel is damaged, or a file would leave that folder.
    """
    files: dict[str, bytes] = {}
    left = MAX_BYTES
    with _opened(name, content) as wheel:
        for member in wheel.namelist():
            if member.endswith("/"):  # a folder
                continue
            path = PurePosixPath(member)
            # One spelling for one file: a wheel has no "./a", "a//b" or drive.
            is_normal = path.parts and str(path) == member and "\\" not in member
            if not is_normal or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise InputError(
                    f"{name} holds {member!r}, which would leave its folder; do not use it"
                )
            try:
                files[member] = storage.read_member(wheel, member, left)
            except storage.ArchiveError as error:
                raise InputError(f"{name} is damaged: {error}; fetch it again") from error
            left -= len(files[member])
    return files


def _check_attached(wanted: Mapping, attached: list[Path]) -> None:
    """Raise InputError unless the kernel's data set is attached in the right version."""
    listed = {name: entry for m in attached for name, entry in _read(m)["files"].items()}
    for name, entry in sorted(wanted["files"].items()):
        digest = listed.get(name, {}).get("sha256")
        if digest != entry["sha256"]:
            what = "is in no input" if digest is None else "is of another version"
            raise InputError(
                f"{name} {what}: attach the data set {wanted['dataset']} (Add Input, then its "
                "name; or in dataset_sources of kernel-metadata.json), newest version; it is made "
                "by `build_kernel.py offline` and `kaggle datasets create`"
            )


def _read(manifest: Path) -> dict:
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        hashes = [entry["sha256"] for entry in listed["files"].values()]
        if listed["dataset"] and all(isinstance(digest, str) for digest in hashes):
            return listed
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise InputError(f"{manifest} is no manifest of `build_kernel.py offline`; make it again")


def _check(what: str, digest: str, expected: str, fix: str) -> None:
    if digest != expected:
        raise InputError(f"{what} is damaged: its sha256 is {digest}, expected {expected}; {fix}")


def _opened(name: str, content: bytes) -> zipfile.ZipFile:
    try:
        return storage.open_archive(io.BytesIO(content))
    except storage.ArchiveError as error:
        raise InputError(f"{name} is no wheel ({error}); fetch it again") from error


def _modules(wheel: zipfile.ZipFile) -> list[str]:
    """Return the names of a wheel's top-level modules and packages."""
    names = set()
    for name in wheel.namelist():
        head, inner, _ = name.partition("/")
        if inner and not head.endswith((".dist-info", ".data", ".libs")):
            names.add(head)
        elif not inner and name.endswith((".py", ".so")):
            names.add(name.split(".")[0])
    return sorted(name for name in names if name.isidentifier())


def _holds(folder: Path, members: Mapping[str, bytes]) -> bool:
    """Return whether a folder holds exactly these files, besides compiled Python."""
    try:
        contents = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"
        }
    except OSError:  # another process is replacing the folder
        return False
    return contents == members
