"""Find what Kaggle would refuse of a built folder or, worse, accept in silence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kernel_build import bundle, metadata, needs, offline, parameters
from kernel_lib.errors import InputError
from kernel_lib.kaggle.packages import MANIFEST
from kernel_lib.stages.table import Stage

_SUFFIXES = {"script": ".py", "notebook": ".ipynb"}


def built(root: Path) -> list[Path]:
    """Return the project's folders to push: those below `build`, and the root where it can be."""
    names = (metadata.FILE, offline.FILE)
    below = sorted({f.parent for name in names for f in (root / "build").rglob(name)})
    code = root / str((_read(root / metadata.FILE) or {}).get("code_file"))
    return [root, *below] if code.is_file() or not below else below


def check(folders: Sequence[Path]) -> dict[Path, list[str]]:
    """Return the problems of each folder, each with its fix; with none it can be pushed."""
    problems = {folder: _of_folder(folder) for folder in folders}
    for folder, text in _shared_ids(folders):
        problems[folder].append(text)
    return problems


def notes(folder: Path) -> list[str]:
    """Return what is valid of a kernel's folder, and may still differ on Kaggle."""
    return metadata.notes(_read(folder / metadata.FILE) or {})


def _of_folder(folder: Path) -> list[str]:
    kernel, data_set = folder / metadata.FILE, folder / offline.FILE
    if not kernel.is_file() and data_set.is_file():
        return _of_data_set(folder, data_set)
    meta = _read(kernel)
    if meta is None:
        return [f"no {metadata.FILE} that is JSON; build the folder with build_kernel.py"]
    faults = metadata.problems(meta)
    if metadata.PLACEHOLDER in json.dumps(meta):
        faults.append(f"the owner is still {metadata.PLACEHOLDER}; build with --owner NAME")
    if meta.get("enable_internet") is True:
        faults.append("enable_internet is true; submissions need it off, write false")
    if meta.get("machine_shape") and meta.get("enable_gpu") is False:
        faults.append(f'machine_shape {meta["machine_shape"]} without enable_gpu; write ""')
    sources = meta.get("kernel_sources")
    if isinstance(sources, list) and meta.get("id") in sources:
        faults.append("the kernel is its own source; name the kernel whose output it takes")
    return faults + _of_code(folder, meta)


def _of_code(folder: Path, meta: dict) -> list[str]:
    """Return the problems of the file that is pushed."""
    path, kind = folder / str(meta.get("code_file") or ""), str(meta.get("kernel_type"))
    if not path.is_file():
        return [f"code_file {meta.get('code_file')!r} is not there; run build_kernel.py"]
    faults = [
        f"{other.name} is not pushed, only {path.name} is; move it, or name it as code_file"
        for other in sorted(folder.iterdir())
        if path.parent == folder and other != path and other.suffix in _SUFFIXES.values()
    ]
    if kind in _SUFFIXES and path.suffix != _SUFFIXES[kind]:
        faults.append(f"{path.name} is not a {kind}: kernel_type and suffix differ")
    try:
        code = path.read_bytes().decode("utf-8")
        size_bytes = bundle.sent_bytes(code, kind)
    except UnicodeDecodeError:
        return [*faults, f"{path.name} is not UTF-8; build it again"]
    except InputError as error:
        return [*faults, f"{path.name}: {error}"]
    if size_bytes >= bundle.MAX_BYTES:
        faults.append(f"{size_bytes:,} bytes, and Kaggle refuses {bundle.MAX_BYTES:,} or more")
    if kind == "notebook":
        faults += _of_notebook(json.loads(code))
    stage = bundle.stage_of(code)
    if stage and meta.get("enable_gpu") is not stage.needs_gpu:
        right = str(stage.needs_gpu).lower()
        cost = "runs for days on a CPU" if stage.needs_gpu else "costs GPU quota for nothing"
        faults.append(f"enable_gpu is {meta.get('enable_gpu')}: {stage.name} {cost}; write {right}")
    return faults + (_of_stage(stage, code, meta, path.name) if stage else [])


def _of_stage(stage: Stage, code: str, meta: dict, name: str) -> list[str]:
    """Return what the stage refuses of its parameters, or will miss."""
    try:
        values = parameters.baked(code, str(meta.get("kernel_type")), name)
        if metadata.problems(meta):  # what is attached is not known
            needs.resolve(stage.name, values)
            return []
        return list(needs.unmet(stage.name, values, meta))
    except InputError as error:
        return [str(error)]


def _of_notebook(notebook: dict) -> list[str]:
    """Return what a push keeps or drops of a notebook that was opened or run after its build."""
    faults, cells = [], notebook["cells"]
    if outputs := sum(bool(cell.get("outputs")) for cell in cells):
        faults.append(f"{outputs} cells have outputs, which the push drops; build it again")
    kept = {*notebook["metadata"]}.union(*(cell.get("metadata", {}) for cell in cells))
    return faults + [
        f"metadata holds {key} of an earlier run, which is pushed; build it again"
        for key in ("widgets", "papermill")
        if key in kept
    ]


def _of_data_set(folder: Path, file: Path) -> list[str]:
    meta = _read(file)
    if meta is None:
        return [f"{file.name} is not JSON; write the folder again"]
    faults = offline.problems(meta)
    faults += [
        f"{path.name} is a folder, skipped without -r zip; put its files beside {file.name}"
        for path in sorted(folder.iterdir())
        if path.is_dir()
    ]
    if (folder / MANIFEST).is_file():
        try:
            listed = offline.manifest(folder)["files"]
        except InputError as error:
            return [*faults, str(error)]
        for name, entry in sorted(listed.items()):
            path = folder / name
            if not path.is_file() or offline.entry(path) != entry:
                fault = "differs from" if path.is_file() else "is missing and listed in"
                faults.append(f"{name} {fault} {MANIFEST}; write the folder again")
    return faults


def _shared_ids(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return the folders whose push would replace another's: one id, but another file."""
    first: dict[str, tuple[Path, Path]] = {}
    faults = []
    for folder in folders:
        meta = _read(folder / metadata.FILE) or {}
        name, code = meta.get("id"), (folder / str(meta.get("code_file") or "")).resolve()
        if not isinstance(name, str) or not name:
            continue
        other, its_code = first.setdefault(name, (folder, code))
        if its_code != code:
            faults.append((folder, f"id {name} is also that of {other}; the later push wins"))
    return faults


def _read(file: Path) -> dict | None:
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) else None
