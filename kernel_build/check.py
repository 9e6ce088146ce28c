"""What Kaggle would refuse of a built folder or, worse, accept in silence, said before the push."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from kernel_build import bundle, metadata, needs, offline, parameters
from kernel_lib.errors import InputError
from kernel_lib.kaggle.packages import MANIFEST

_STAGE = r"# (\w+): (?:script kernel|the library) of notebooks/"
_SUFFIXES = {"script": ".py", "notebook": ".ipynb"}


def built(root: Path) -> list[Path]:
    """The project's folders to push: every one below `build`, and the root where it can be."""
    names = (metadata.FILE, offline.FILE)
    below = sorted({f.parent for name in names for f in (root / "build").rglob(name)})
    code = root / str((_read(root / metadata.FILE) or {}).get("code_file"))
    return [root, *below] if code.is_file() or not below else below


def check(folders: Sequence[Path]) -> dict[Path, list[str]]:
    """The problems of each folder, each with its mend; an empty list is fine to push."""
    found = {folder: _of_folder(folder) for folder in folders}
    for folder, words in _shared_ids(folders):
        found[folder].append(words)
    return found


def notes(folder: Path) -> list[str]:
    """Return what is valid of a kernel's folder and may still turn out otherwise on Kaggle."""
    return metadata.notes(_read(folder / metadata.FILE) or {})


def _of_folder(folder: Path) -> list[str]:
    kernel, data_set = folder / metadata.FILE, folder / offline.FILE
    if not kernel.is_file() and data_set.is_file():
        return _of_data_set(folder, data_set)
    meta = _read(kernel)
    if meta is None:
        return [f"no {metadata.FILE} that is JSON; build the folder with build_kernel.py"]
    found = metadata.problems(meta)
    if metadata.PLACEHOLDER in json.dumps(meta):
        found.append(f"the owner is still {metadata.PLACEHOLDER}; build with --owner NAME")
    if meta.get("enable_internet") is True:
        found.append("enable_internet is true; submissions need it off, write false")
    if meta.get("machine_shape") and meta.get("enable_gpu") is False:
        found.append(f'machine_shape {meta["machine_shape"]} without enable_gpu; write ""')
    sources = meta.get("kernel_sources")
    if isinstance(sources, list) and meta.get("id") in sources:
        found.append("the kernel is its own source; name the kernel whose output it takes")
    return found + _of_code(folder, meta)


def _of_code(folder: Path, meta: dict) -> list[str]:
    """Problems of the file that is pushed."""
    path, kind = folder / str(meta.get("code_file") or ""), str(meta.get("kernel_type"))
    if not path.is_file():
        return [f"code_file {meta.get('code_file')!r} is not there; run build_kernel.py"]
    found = [
        f"{other.name} is not pushed, only {path.name} is; move it, or name it as code_file"
        for other in sorted(folder.iterdir())
        if path.parent == folder and other != path and other.suffix in _SUFFIXES.values()
    ]
    if kind in _SUFFIXES and path.suffix != _SUFFIXES[kind]:
        found.append(f"{path.name} is no {kind}; kernel_type and suffix ({_SUFFIXES[kind]}) differ")
    try:
        code = path.read_bytes().decode("utf-8")
        size_bytes = bundle.sent_bytes(code, kind)
    except UnicodeDecodeError:
        return [*found, f"{path.name} is not UTF-8; build it anew"]
    except InputError as error:
        return [*found, f"{path.name}: {error}"]
    if size_bytes >= bundle.MAX_BYTES:
        found.append(f"{size_bytes:,} bytes, and Kaggle refuses {bundle.MAX_BYTES:,} or more")
    if kind == "notebook":
        found += _of_notebook(json.loads(code))
    stage = re.search(_STAGE, code)
    if stage and meta.get("enable_gpu") is not (stage[1] in metadata.GPU_STAGES):
        right = "true" if stage[1] in metadata.GPU_STAGES else "false"
        cost = "runs for days on a CPU" if right == "true" else "costs GPU quota for nothing"
        found.append(f"enable_gpu is {meta.get('enable_gpu')}: {stage[1]} {cost}; write {right}")
    return found + _of_stage(code, meta, path.name)


def _of_stage(code: str, meta: dict, name: str) -> list[str]:
    """Return what the stage refuses of its parameters, or will miss."""
    stage = re.search(_STAGE, code)
    if stage is None or stage[1] not in metadata.STAGES:
        return []
    try:
        values = parameters.baked(code, str(meta.get("kernel_type")), name)
        if metadata.problems(meta):  # what is attached is not known
            needs.resolve(stage[1], values)
            return []
        return list(needs.unmet(stage[1], values, meta))
    except InputError as error:
        return [str(error)]


def _of_notebook(notebook: dict) -> list[str]:
    """What a push keeps or drops of a notebook that was opened or run after its build."""
    found = []
    outputs = sum(bool(cell.get("outputs")) for cell in notebook["cells"])
    if outputs:
        found.append(f"{outputs} cells have outputs, which the push drops; build it anew")
    for key in ("widgets", "papermill"):
        kept = [notebook["metadata"], *(cell.get("metadata", {}) for cell in notebook["cells"])]
        if any(key in one for one in kept):
            found.append(f"metadata holds {key} of an earlier run, which is pushed; build it anew")
    return found


def _of_data_set(folder: Path, file: Path) -> list[str]:
    meta = _read(file)
    if meta is None:
        return [f"{file.name} is not JSON; write the folder anew"]
    found = offline.problems(meta)
    found += [
        f"{path.name} is a folder, skipped without -r zip; put its files beside {file.name}"
        for path in sorted(folder.iterdir())
        if path.is_dir()
    ]
    if (folder / MANIFEST).is_file():
        try:
            listed = offline.manifest(folder)["files"]
        except InputError as error:
            return [*found, str(error)]
        for name, entry in sorted(listed.items()):
            if not (folder / name).is_file():
                found.append(
                    f"{name} is listed in {MANIFEST} and is not there; write the folder anew"
                )
            elif offline.entry(folder / name) != entry:
                found.append(f"{name} differs from what {MANIFEST} says; write the folder anew")
    return found


def _shared_ids(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Folders whose push would replace another's: one id, but another file."""
    first: dict[str, tuple[Path, Path]] = {}
    found = []
    for folder in folders:
        meta = _read(folder / metadata.FILE) or {}
        name, code = meta.get("id"), (folder / str(meta.get("code_file") or "")).resolve()
        if not isinstance(name, str) or not name:
            continue
        other, its_code = first.setdefault(name, (folder, code))
        if its_code != code:
            found.append((folder, f"id {name} is also that of {other}; the later push wins"))
    return found


def _read(file: Path) -> dict | None:
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None
