"""A data set for kernels without internet: encoder weights and wheels, their hashes in a manifest.

The kernel finds it attached wherever Kaggle mounts it: `kernel_lib/kaggle/packages.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_build import names, wheels
from kernel_build.metadata import PLACEHOLDER, name_problems
from kernel_lib.errors import InputError
from kernel_lib.kaggle.packages import MANIFEST
from kernel_lib.kaggle.paths import WEIGHT_ENDINGS
from kernel_lib.storage import atomic_folder, write_json

FILE = "dataset-metadata.json"
SLUG = "pneumothorax-offline"


@dataclass(frozen=True)
class Contents:
    """Contents of the data set: files of weights, encoders to fetch, wheels as NAME==VERSION."""

    weights: Sequence[Path] = ()
    fetch: Sequence[str] = ()
    wheels: Sequence[str] = ()


def write(folder: Path, contents: Contents, *, owner: str, slug: str, cache: Path) -> list[str]:
    """Write the folder that `kaggle datasets create -p` takes, and return a line for each file.

    An earlier one is replaced, completely or not at all.

    Raises: InputError for a slug that Kaggle would refuse, weights that cannot be read, and what
        cannot be fetched.
    """
    licenses = [{"name": "other"}]  # of each file, its author's
    meta = {"id": f"{owner}/{slug}", "title": names.title(slug), "licenses": licenses}
    if faults := problems(meta):
        raise InputError(f"{FILE}: " + "; ".join(faults))
    if not (contents.weights or contents.fetch or contents.wheels):
        raise InputError("the data set would be empty; give --weights, --fetch or --wheel")
    _may_replace(folder)
    with atomic_folder(folder) as fresh:
        lines = [_add(path, fresh) for path in contents.weights]
        lines += [_add(_fetched(encoder), fresh) for encoder in contents.fetch]
        lines += [_add_wheel(wheel, fresh, cache / "kaggle") for wheel in contents.wheels]
        files = {path.name: entry(path) for path in sorted(fresh.iterdir())}
        write_json(fresh / MANIFEST, {"dataset": meta["id"], "files": files})
        write_json(fresh / FILE, meta)
    return lines


def manifest(folder: Path) -> dict:
    """Return the manifest of a folder that `write` made.

    Raises: InputError for another folder.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {"dataset": str(listed["dataset"]), "files": dict(listed["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} has no complete {MANIFEST}; give a folder that `build_kernel.py offline` "
            "wrote"
        ) from None


def problems(meta: dict) -> list[str]:
    """Return what Kaggle would refuse of a data set's metadata, each with its fix."""
    faults = name_problems(meta, shortest=6)
    if str(meta.get("id")).partition("/")[0] == PLACEHOLDER:
        faults.append(f"the owner is still {PLACEHOLDER}; give --owner")
    licenses = meta.get("licenses")
    if not isinstance(licenses, list) or len(licenses) != 1:
        faults.append(f'licenses is {licenses!r}; write exactly one, [{{"name": "other"}}]')
    return faults


def _may_replace(folder: Path) -> None:
    """Refuse a folder with other files than those of an earlier `write`."""
    if not folder.is_dir():
        return
    present = {path.name for path in folder.iterdir()}
    own = {MANIFEST, FILE, *(manifest(folder)["files"] if MANIFEST in present else ())}
    if others := sorted(present - own):
        raise InputError(f"{folder} holds {others[0]}, which is not of it; give another folder")


def _add(path: Path, folder: Path) -> str:
    """Copy a file of weights, and read it, so that damage shows here and not on Kaggle."""
    from kernel_lib.models import weights

    if not path.is_file() or path.suffix not in WEIGHT_ENDINGS:
        raise InputError(
            f"{path} is not a file of weights ({', '.join(WEIGHT_ENDINGS)}); correct it"
        )
    if (folder / path.name).exists():
        raise InputError(f"two files are named {path.name}; rename one")
    weights.check_hash(path)
    tensors = len(weights.read_state(path))
    shutil.copyfile(path, folder / path.name)
    return f"{path.name}: {tensors} tensors, {path.stat().st_size:,} bytes"


def _fetched(encoder: str) -> Path:
    """Return torchvision's ImageNet weights of an encoder, hash and fit checked."""
    from segmentation_models_pytorch.encoders import get_encoder

    from kernel_lib.models import weights

    try:
        network = get_encoder(encoder, weights=None)
    except KeyError:
        raise InputError(
            f"no encoder {encoder!r}; name one of segmentation-models-pytorch"
        ) from None
    try:
        return weights.load_imagenet(network, encoder, [])
    except InputError as error:
        raise InputError(f"--fetch {encoder}: {error}; or give the file with --weights") from None


def _add_wheel(pinned: str, folder: Path, cache: Path) -> str:
    """Fetch a wheel for Kaggle's Python, and return a line with what it needs besides."""
    project, _, version = pinned.partition("==")
    if not re.fullmatch(r"\w[\w.-]*", project) or not re.fullmatch(r"[\w.+!]+", version):
        raise InputError(f"--wheel {pinned} is not NAME==VERSION; write pylibjpeg-libjpeg==2.3.0")
    wheel = wheels.fetch(project, version, cache, wheels.KAGGLE)
    (folder / wheel.name).write_bytes(wheel.content)
    needs = ", ".join(wheels.needs(wheel))
    return f"{wheel.name}: {len(wheel.content):,} bytes" + (f"; needs {needs}" if needs else "")


def entry(path: Path) -> dict:
    """Return a file's entry in a manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
