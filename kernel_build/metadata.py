"""kernel-metadata.json: what Kaggle is told of a kernel, checked before it refuses it itself."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernel_build import names
from kernel_lib.errors import InputError
from kernel_lib.files import write_text

FILE = "kernel-metadata.json"
PLACEHOLDER = "OWNER_TO_FILL"
KINDS = ("notebook", "script")
# Whose output each stage reads. Thresholds need no GPU, so they cost no quota.
STAGES = {"train": (), "thresholds": ("train",), "inference": ("train", "thresholds")}
GPU_STAGES = ("train", "inference")
BOOLEANS = ("is_private", "enable_gpu", "enable_tpu", "enable_internet")
OWNER = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_SLUG = r"[A-Za-z0-9][\w-]*"
SOURCES = {
    "dataset_sources": ("OWNER/SLUG", rf"{OWNER}/{_SLUG}(/\d+)?"),
    "competition_sources": ("the slug of a competition's address", _SLUG),
    "kernel_sources": ("OWNER/SLUG with a slug of 5 to 50", rf"{OWNER}/[a-z0-9-]{{5,50}}(/\d+)?"),
    "model_sources": (
        "OWNER/MODEL/FRAMEWORK/VARIATION/VERSION",
        rf"{OWNER}/{_SLUG}/[A-Za-z0-9]+/[A-Za-z0-9][\w.-]*/\d+",
    ),
}

_KEYS = frozenset({
    "id", "title", "code_file", "language", "kernel_type", "machine_shape", "keywords",
    "docker_image", "docker_image_pinning_type", *BOOLEANS, *SOURCES,
})  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """Where a kernel's inputs come from; what is not given is as the root's file and the stage say.

    `data` is the OWNER/SLUG of a data set, or the slug of a competition; `kernels` are those whose
    output it takes.
    """

    data: str | None = None
    datasets: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()


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


def of_kernel(
    base: dict,
    stage: str,
    kind: str,
    owner: str | None,
    code_file: str,
    *,
    name: str | None = None,
    sources: Sources | None = None,
) -> dict:
    """A kernel's metadata: the base with what differs by stage, kind and sources; checked.

    `name` is its slug; without it, it is the stage's own kernel. Without an owner the placeholder
    stands in, and Kaggle refuses the push until it is filled. InputError for what Kaggle would
    refuse.
    """
    owner = owner or PLACEHOLDER
    name = name or names.slug(stage, kind)
    gpu = stage in GPU_STAGES
    meta = base | {
        "id": f"{owner}/{name}",
        "title": names.title(name),
        "code_file": code_file,
        "language": "python",
        "kernel_type": kind,
        "enable_gpu": gpu,
        "machine_shape": base.get("machine_shape", "") if gpu else "",
    }
    meta |= _sources(base, stage, kind, owner, sources or Sources())
    faults = problems(meta)
    if faults:
        raise InputError(f"{FILE} of the {stage} {kind}: " + "; ".join(faults))
    return meta


def problems(meta: dict) -> list[str]:
    """What Kaggle would refuse or, worse, accept in silence; each with its mend."""
    found = []
    owner, _, name = str(meta.get("id", "")).partition("/")
    if not re.fullmatch(OWNER, owner) or not re.fullmatch(r"[a-z0-9-]{5,50}", name):
        found.append(f"id {meta.get('id')!r} is not owner/slug with a slug of 5 to 50 a-z, 0-9, -")
    heading = str(meta.get("title") or "")
    if not 5 <= len(heading) <= names.MAX_LENGTH:
        found.append(f"title {heading!r} has {len(heading)} characters; give 5 to 50")
    if names.slugify(heading) != name:
        found.append(
            f"title {heading!r} becomes {names.slugify(heading)!r}, not the id's {name!r}; "
            "make them agree"
        )
    for key in BOOLEANS:
        # The CLI takes a missing enable_internet for true, and a text for false.
        if not isinstance(meta.get(key), bool):
            found.append(f"{key} is {meta.get(key)!r}; write true or false")
    for key, (form, pattern) in SOURCES.items():
        value = meta.get(key)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            found.append(f"{key} is {value!r}; write a list of names, [] for none")
            continue
        found += [
            f"{key}: {one!r} is not {form}" for one in value if not re.fullmatch(pattern, one)
        ]
        found += [
            f"{key} names {one} twice" for one in sorted({o for o in value if value.count(o) > 1})
        ]
    for key in sorted(meta.keys() - _KEYS):
        near = difflib.get_close_matches(key, _KEYS, n=1)
        mend = f"write {near[0]}" if near else "leave it out"
        found.append(
            f"{key} is no key that is to be pushed, and the push ignores or misreads it; {mend}"
        )
    if meta.get("enable_gpu") is True and meta.get("enable_tpu") is True:
        found.append("enable_gpu and enable_tpu are both true; write false for the TPU")
    if "P100" in str(meta.get("machine_shape")):
        found.append(f"machine_shape {meta['machine_shape']} is retired; write NvidiaTeslaT4")
    if meta.get("kernel_type") not in KINDS:
        found.append(
            f"kernel_type {meta.get('kernel_type')!r} is not known; write {' or '.join(KINDS)}"
        )
    if meta.get("language") != "python":
        found.append(f"language is {meta.get('language')!r}; write python")
    if not meta.get("code_file"):
        found.append("code_file is missing; name the file to push")
    if meta.get("docker_image_pinning_type") not in (None, "original", "latest"):
        found.append(
            f"docker_image_pinning_type is {meta['docker_image_pinning_type']!r}; write original "
            "or latest, or leave it out"
        )
    return found


def _sources(base: dict, stage: str, kind: str, owner: str, given: Sources) -> dict:
    """The three lists of sources: the root's own data sets, and what is given for this kernel."""
    datasets = [*base.get("dataset_sources", []), *given.datasets]
    competitions = base.get("competition_sources", [])
    if given.data is not None:
        is_dataset = "/" in given.data
        competitions = [] if is_dataset else [given.data]
        datasets = [given.data, *datasets] if is_dataset else datasets
    earlier = [f"{owner}/{names.slug(one, kind)}" for one in STAGES[stage]]
    return {
        "dataset_sources": list(dict.fromkeys(datasets)),
        "competition_sources": competitions,
        "kernel_sources": list(dict.fromkeys(given.kernels or earlier)),
    }


def find_owner(
    root: Path, given: str | None, environ: Mapping[str, str], home: Path
) -> tuple[str, str] | None:
    """Who pushes, and where that was read: --owner, KAGGLE_USERNAME, Kaggle's file, the root's.

    None where nobody is named. Raises InputError for a name that Kaggle cannot have given.
    """
    places = [(given, "--owner"), (environ.get("KAGGLE_USERNAME"), "KAGGLE_USERNAME")]
    config = environ.get("XDG_CONFIG_HOME") or home / ".config"
    folders = [environ.get("KAGGLE_CONFIG_DIR"), home / ".kaggle", Path(config) / "kaggle"]
    for folder in (Path(folder) for folder in folders if folder):
        for file in (folder / "kaggle.json", folder / "credentials.json"):  # a key, a log-in
            if file.is_file():
                places.append((_username(file), str(file)))
    in_root = str(read_base(root).get("id", "")).partition("/")[0]
    places.append((in_root, FILE))
    for owner, place in places:
        if owner in (None, "", PLACEHOLDER):
            continue
        if not re.fullmatch(OWNER, owner):
            raise InputError(
                f"{owner!r} ({place}) is no Kaggle user name; it is the last part of your "
                "profile's address"
            )
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
