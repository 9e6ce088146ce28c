"""kernel-metadata.json, checked before Kaggle refuses it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kernel_build import accelerators, names
from kernel_lib.errors import InputError
from kernel_lib.stages.table import STAGES
from kernel_lib.storage import write_text

FILE = "kernel-metadata.json"
PLACEHOLDER = "OWNER_TO_FILL"
KINDS = ("notebook", "script")
# With what kaggle-cli 2.2.5 sends where one is missing (kernels_push of kaggle_api_extended.py; its
# documentation says false of the internet).
BOOLEANS = {"is_private": True, "enable_gpu": False, "enable_tpu": False, "enable_internet": True}
OWNER = _SLUG = r"[A-Za-z0-9][A-Za-z0-9_-]*"
_DOTTED = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
# As kaggle-cli 2.2.5 validates them, which lets a malformed owner or slug pass.
SOURCES = {
    "dataset_sources": ("OWNER/SLUG", rf"{OWNER}/{_SLUG}(/\d+)?"),
    "competition_sources": ("the slug of a competition's address", _SLUG),
    "kernel_sources": ("OWNER/SLUG with a slug of 5 to 50", rf"{OWNER}/[a-z0-9-]{{5,50}}(/\d+)?"),
    "model_sources": (
        "OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, such as google/gemma/transformers/2b/1",
        rf"{OWNER}/{_DOTTED}/[A-Za-z0-9]+/{_DOTTED}/\d+",
    ),
}
_TEXTS = ("id", "title", "code_file", "language", "kernel_type", "machine_shape", "docker_image",
          "docker_image_pinning_type")  # fmt: skip
_KEYS = frozenset({*_TEXTS, *BOOLEANS, *SOURCES, "keywords"})


@dataclass(frozen=True)
class Sources:
    """What is attached to a kernel; the rest is as the root's file and the stage have it.

    Attributes:
        data: A data set's OWNER/SLUG, or a competition's slug.
        datasets: More data sets.
        kernels: Those whose output it takes.
        models: Versions of Kaggle Models.

    Raises: InputError for a name that Kaggle would refuse.
    """

    data: str | None = None
    datasets: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        data = [] if self.data is None else [self.data]
        given = {
            "dataset_sources": [*self.datasets, *(name for name in data if "/" in name)],
            "competition_sources": [name for name in data if "/" not in name],
            "kernel_sources": self.kernels,
            "model_sources": self.models,
        }
        if faults := [fault for key, names in given.items() for fault in _malformed(key, names)]:
            raise InputError("; ".join(faults))


def read_base(root: Path) -> dict:
    """Return the root's kernel-metadata.json, from which each kernel's is derived."""
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
    accelerator: str | None = None,
) -> dict:
    """Return a kernel's metadata: the base with what differs by stage, kind and sources.

    Args:
        owner: Its Kaggle user; None: a placeholder, which Kaggle refuses until it is filled.
        name: Its slug; None: it is the stage's own kernel.
        accelerator: Of a stage that needs a GPU; None: the base's.

    Raises: InputError for what Kaggle would refuse.
    """
    owner = owner or PLACEHOLDER
    name = name or names.slug(stage, kind)
    gpu = STAGES[stage].needs_gpu
    meta = base | {
        "id": f"{owner}/{name}",
        "title": names.title(name),
        "code_file": code_file,
        "language": "python",
        "kernel_type": kind,
        "enable_gpu": gpu,
        "machine_shape": (accelerator or base.get("machine_shape", "")) if gpu else "",
    }
    meta |= _sources(base, stage, kind, owner, sources or Sources())
    faults = problems(meta)
    if faults:
        raise InputError(f"{FILE} of the {stage} {kind}: " + "; ".join(faults))
    return meta


def problems(meta: dict) -> list[str]:
    """Return what Kaggle would refuse or, worse, accept in silence, each with its fix."""
    faults = _unknown_keys(meta)
    if mistyped := _mistyped(meta):
        return mistyped + faults
    faults += name_problems(meta, shortest=5)
    heading, name = meta.get("title") or "", (meta.get("id") or "").partition("/")[2]
    if names.slugify(heading) != name:
        faults.append(
            f"title {heading!r} becomes {names.slugify(heading)!r}, not the id's {name!r}; "
            "make them agree"
        )
    for key in SOURCES:
        value = meta[key]
        faults += _malformed(key, value)
        twice = sorted({name for name in value if value.count(name) > 1})
        faults += [f"{key} names {name} twice" for name in twice]
    if meta["enable_tpu"]:
        faults.append("enable_tpu is true, and nothing here runs on a TPU; write false")
    if fault := accelerators.fault(meta.get("machine_shape") or ""):
        faults.append(fault)
    if meta.get("kernel_type") not in KINDS:
        faults.append(
            f"kernel_type {meta.get('kernel_type')!r} is not known; write {' or '.join(KINDS)}"
        )
    if meta.get("language") != "python":
        faults.append(f"language is {meta.get('language')!r}; write python")
    if not meta.get("code_file"):
        faults.append("code_file is missing; name the file to push")
    if meta.get("docker_image_pinning_type") not in (None, "original", "latest"):
        faults.append(
            f"docker_image_pinning_type is {meta['docker_image_pinning_type']!r}; write original "
            "or latest, or leave it out"
        )
    return faults


def name_problems(meta: dict, shortest: int) -> list[str]:
    """Return what Kaggle would refuse of the id and title of a kernel or data set."""
    faults, name, heading = [], str(meta.get("id") or ""), str(meta.get("title") or "")
    if not re.fullmatch(rf"{OWNER}/[a-z0-9-]{{{shortest},{names.MAX_LENGTH}}}", name):
        faults.append(
            f"id {meta.get('id')!r} is not owner/slug with a slug of {shortest} to "
            f"{names.MAX_LENGTH} a-z, 0-9, -"
        )
    if not shortest <= len(heading) <= names.MAX_LENGTH:
        faults.append(
            f"title {heading!r} has {len(heading)} characters; give {shortest} to "
            f"{names.MAX_LENGTH}"
        )
    return faults


def notes(meta: dict) -> list[str]:
    """Return what is valid and may still turn out otherwise on Kaggle; usually nothing."""
    shape = meta.get("machine_shape")
    note = accelerators.note(shape) if isinstance(shape, str) else None
    return [note] if note else []


def _malformed(key: str, values: Iterable[str]) -> list[str]:
    """Return the names of sources that Kaggle would refuse, each with the right form."""
    form, pattern = SOURCES[key]
    return [f"{key}: {v!r} is not {form}" for v in values if not re.fullmatch(pattern, v)]


def _unknown_keys(meta: dict) -> list[str]:
    faults = []
    for key in sorted(meta.keys() - _KEYS):
        near = difflib.get_close_matches(key, _KEYS, n=1)
        fix = f"write {near[0]}" if near else "leave it out"
        faults.append(f"{key} is not a key to push, and the push ignores or misreads it; {fix}")
    return faults


def _mistyped(meta: dict) -> list[str]:
    """Return values of the wrong type, and booleans and lists that are missing."""
    faults = [
        f"{key} is {meta[key]!r}, not a text; write it in quotes"
        for key in _TEXTS
        if not isinstance(meta.get(key), str | None)
    ]
    for key, sent in BOOLEANS.items():
        if key not in meta:
            faults.append(
                f"{key} is missing, and the command line then sends {str(sent).lower()}; "
                "write true or false"
            )
        elif not isinstance(meta[key], bool):
            faults.append(f"{key} is {meta[key]!r}; write true or false")
    for key in SOURCES:
        value = meta.get(key)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            faults.append(f"{key} is {value!r}; write a list of names, [] for none")
    words = meta.get("keywords", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        faults.append(f"keywords is {words!r}; write a list of texts, or leave it out")
    return faults


def _sources(base: dict, stage: str, kind: str, owner: str, given: Sources) -> dict:
    """Return the lists of sources: the root's own, and those given for a kernel."""
    datasets = [*base.get("dataset_sources", []), *given.datasets]
    competitions = base.get("competition_sources", [])
    if given.data is not None and "/" in given.data:
        datasets, competitions = [given.data, *datasets], []
    elif given.data is not None:
        competitions = [given.data]
    earlier = [f"{owner}/{names.slug(taken, kind)}" for taken in STAGES[stage].takes]
    return {
        "dataset_sources": list(dict.fromkeys(datasets)),
        "competition_sources": competitions,
        "kernel_sources": list(dict.fromkeys(given.kernels or earlier)),
        "model_sources": list(dict.fromkeys([*base.get("model_sources", []), *given.models])),
    }


def find_owner(
    root: Path, given: str | None, environ: Mapping[str, str], home: Path
) -> tuple[str, str] | None:
    """Return who pushes, and where that was read; None where nobody is named.

    The places: --owner, KAGGLE_USERNAME, Kaggle's own file, the root's metadata.

    Raises: InputError for a name that Kaggle cannot have given.
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
                f"{owner!r} ({place}) is not a Kaggle user name; it is the last part of your "
                "profile's address"
            )
        return owner, place
    return None


def fill_owner(root: Path, owner: str) -> bool:
    """Write the owner into the root's file; return whether that changed it."""
    base = read_base(root)
    name = str(base.get("id", "")).partition("/")[2]
    if base.get("id") == f"{owner}/{name}":
        return False
    write_text(root / FILE, as_text(base | {"id": f"{owner}/{name}"}))
    return True


def as_text(meta: dict) -> str:
    """Return metadata as the file has them: indented, keys in their order."""
    return json.dumps(meta, indent=2, ensure_ascii=False) + "\n"


def _username(file: Path) -> str | None:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("username")
    except (ValueError, AttributeError):
        raise InputError(f"{file} is not Kaggle's JSON; give --owner or correct it") from None
