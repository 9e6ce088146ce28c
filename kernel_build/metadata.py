"""kernel-metadata.json: what Kaggle is told of a kernel, checked before it refuses it itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from kernel_lib.errors import InputError
from kernel_lib.files import write_text

FILE = "kernel-metadata.json"
PLACEHOLDER = "OWNER_TO_FILL"
KINDS = ("notebook", "script")
# Whose output each stage reads. Thresholds need no GPU, so they cost no quota.
STAGES = {"train": (), "thresholds": ("train",), "inference": ("train", "thresholds")}
GPU_STAGES = ("train", "inference")
BOOLEANS = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
SOURCES = ("dataset_sources", "competition_sources", "kernel_sources", "model_sources")


def slug(stage: str, kind: str) -> str:
    """A kernel's name in addresses and folders; both kinds of a stage can stand side by side."""
    return f"pneumothorax-{stage}" + ("-script" if kind == "script" else "")


def title(stage: str, kind: str) -> str:
    """A kernel's title; Kaggle makes the slug of it."""
    return slug(stage, kind).replace("-", " ").capitalize()


def slugify(text: str) -> str:
    """Kaggle's slug of a title: lower case, everything else than letters and digits one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read_base(root: Path) -> dict:
    """The root's kernel-metadata.json, from which each kernel's is derived."""
    path = root / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist, and each kernel's is made of it; restore it"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; correct it") from None


def of_kernel(base: dict, stage: str, kind: str, owner: str | None, code_file: str) -> dict:
    """A kernel's metadata: the base with what differs by stage and kind; checked.

    Without an owner the placeholder stands in, and Kaggle refuses the push until it is filled.
    """
    owner = owner or PLACEHOLDER
    gpu = stage in GPU_STAGES
    meta = base | {
        "id": f"{owner}/{slug(stage, kind)}",
        "title": title(stage, kind),
        "code_file": code_file,
        "language": "python",
        "kernel_type": kind,
        "enable_gpu": gpu,
        "machine_shape": base.get("machine_shape", "") if gpu else "",
        "kernel_sources": [f"{owner}/{slug(earlier, kind)}" for earlier in STAGES[stage]],
    }
    faults = problems(meta)
    if faults:
        raise InputError(f"{FILE} of the {stage} {kind}: " + "; ".join(faults))
    return meta


def problems(meta: dict) -> list[str]:
    """What Kaggle would refuse or, worse, accept in silence; each with its mend."""
    found = []
    owner, _, name = str(meta.get("id", "")).partition("/")
    if not re.fullmatch(r"\w[\w-]*", owner) or not re.fullmatch(r"[a-z0-9-]{5,50}", name):
        found.append(f"id {meta.get('id')!r} is not owner/slug with a slug of 5 to 50 a-z, 0-9, -")
    heading = meta.get("title", "")
    if not 5 <= len(heading) <= 50:
        found.append(f"title {heading!r} has {len(heading)} characters; give 5 to 50")
    if slugify(heading) != name:
        found.append(f"title {heading!r} becomes {slugify(heading)!r}, not the id's {name!r}")
    for key in BOOLEANS:
        # The CLI takes a missing enable_internet for true, and a text for false.
        if not isinstance(meta.get(key), bool):
            found.append(f"{key} is {meta.get(key)!r}; write true or false")
    for key in SOURCES:
        value = meta.get(key)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            found.append(f"{key} is {value!r}; write a list of names, [] for none")
    if meta.get("kernel_type") not in KINDS:
        found.append(f"kernel_type {meta.get('kernel_type')!r} is none of {', '.join(KINDS)}")
    return found


def find_owner(
    root: Path, given: str | None, environ: Mapping[str, str], home: Path
) -> tuple[str, str] | None:
    """Who pushes, and where that was read: --owner, KAGGLE_USERNAME, Kaggle's file, the root's.

    None where nobody is named. Raises InputError for a name that Kaggle cannot have given.
    """
    places = [(given, "--owner"), (environ.get("KAGGLE_USERNAME"), "KAGGLE_USERNAME")]
    config = environ.get("XDG_CONFIG_HOME") or home / ".config"
    folders = [environ.get("KAGGLE_CONFIG_DIR"), home / ".kaggle", Path(config) / "kaggle"]
    for file in (Path(folder) / "kaggle.json" for folder in folders if folder):
        if file.is_file():
            places.append((_username(file), str(file)))
    in_root = str(read_base(root).get("id", "")).partition("/")[0]
    places.append((in_root if in_root != PLACEHOLDER else None, FILE))
    for owner, place in places:
        if owner and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", owner):
            raise InputError(
                f"{owner!r} ({place}) is no Kaggle user name; it is the last part of your "
                "profile's address"
            )
        if owner:
            return owner, place
    return None


def fill_owner(root: Path, owner: str) -> bool:
    """Write the owner into the root's file; True if that changed it."""
    base = read_base(root)
    name = str(base.get("id", "")).partition("/")[2]
    if base.get("id") == f"{owner}/{name}":
        return False
    write_text(root / FILE, as_text(base | {"id": f"{owner}/{name}"}))
    return True


def as_text(meta: dict) -> str:
    """Metadata as the file has it: indented, keys in their order."""
    return json.dumps(meta, indent=2, ensure_ascii=False) + "\n"


def _username(file: Path) -> str | None:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("username")
    except (ValueError, AttributeError):
        raise InputError(f"{file} is not Kaggle's JSON; give --owner or correct it") from None
