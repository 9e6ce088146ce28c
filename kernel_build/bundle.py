"""Library, notebook and parameters as one readable file that Kaggle can run.

The library stands in it as plain text, each file a raw literal under a banner (`sources.py`); the
same sources give the same bytes. What the kernel does with it at its start is `boot.py`.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kernel_build import boot, cells, metadata, names, parameters, wheels
from kernel_build.sources import LIBRARY, Member, collect, literal, needed, ordered, read_text
from kernel_lib.errors import InputError
from kernel_lib.storage import write_text

MAX_BYTES = 1_000_000  # Kaggle refuses a source of 1 MB or more, after the push
# nbconvert's pages know no folded cell: its templates give a cell's tag as a class to styles.
_FOLD = (
    "<style>.celltag_library .highlight {max-height: 4em; overflow: auto; resize: vertical}</style>"
)
_START = (boot.unpack_library, boot.put_on_path, boot.bring_packages)
_PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Kernel:
    """A built kernel: its folder, the file to push, its size in bytes as sent, what it carries."""

    folder: Path
    code_file: Path
    size_bytes: int
    members: int
    parameters: dict
    metadata: dict
    unmet: tuple[str, ...] = ()  # what it will miss on Kaggle


@dataclass(frozen=True)
class Cargo:
    """What a kernel carries or needs beside library and notebook.

    `wanted` is the manifest of an offline data set (`offline.manifest`) that the kernel must find
    attached.
    """

    wheels: tuple[wheels.Wheel, ...] = field(default=())
    wanted: dict | None = None


def build(
    root: Path,
    stage: str,
    kind: str,
    *,
    given: tuple[tuple[str, str], ...] = (),
    owner: str | None = None,
    out: Path | None = None,
    sources: metadata.Sources | None = None,
    cargo: Cargo | None = None,
    slug: str | None = None,
    needs: Callable[[str, dict, dict], Iterable[str]] | None = None,
) -> Kernel:
    """Write one kernel, `<out>/<slug>/` with its code file and kernel-metadata.json.

    `kind` is 'notebook' or 'script', `given` holds the parameters to bake in as texts, `slug` is
    the kernel's name, without which it is the stage's own kernel. `needs` says what a stage with
    these parameters and metadata will miss, and may refuse them. Raises InputError for an unknown
    or ill-typed parameter, a source that cannot be embedded, a kernel of 1 MB or more, and metadata
    that Kaggle would refuse. Nothing is written then.
    """
    notebook, cargo = f"notebooks/{stage}.py", cargo or Cargo()
    percent = read_notebook(root, stage)
    values = parameters.read(percent, notebook, given)
    name = slug or names.slug(stage, kind)
    start = "\n".join(inspect.getsource(function) for function in _START)
    own = (Member(notebook, percent), Member("boot.py", start))
    members = ordered(needed(collect(root), own))
    code_name = f"{name}.py" if kind == "script" else f"{name}.ipynb"
    base = metadata.read_base(root)
    meta = metadata.of_kernel(base, stage, kind, owner, code_name, name=name, sources=sources)
    shown = cells.for_kernel(percent, stage, parameters.defaults(percent, notebook) | values, meta)
    write = script_kernel if kind == "script" else notebook_kernel
    code = write(members, stage, shown, values, cargo)
    size_bytes = check_size(code, kind, members, cargo)
    unmet = tuple(needs(stage, values, meta)) if needs else ()
    folder = (out or root / "build") / name
    _write_folder(folder, {code_name: code, metadata.FILE: metadata.as_text(meta)})
    return Kernel(folder, folder / code_name, size_bytes, len(members), values, meta, unmet)


def library_source(members: list[Member], headline: str, cargo: Cargo) -> str:
    """The part that both kinds share: every file under its banner, wheels, and the unpacking."""
    parts = [
        f"# {headline}\n"
        "# Built by build_kernel.py: change the project's files and build again, not this one.\n"
        f"# The {len(members)} files of the library that it can need stand below as they are,\n"
        "# in order of their imports."
        "\n\nkernel_files = {}\n"
    ]
    for member in members:
        lines = member.text.count("\n") + (not member.text.endswith("\n") and bool(member.text))
        parts.append(
            f"\n# {'=' * 16}  {member.path}  |  {lines} lines  {'=' * 16}\n"
            f'kernel_files[{json.dumps(member.path)}] = (\n    "{member.sha256}",\n'
            f"    {literal(member.path, member.text)},\n)\n"
        )
    parts.append("\n\nkernel_wheels = {}\n")
    parts += [wheels.source(wheel) for wheel in cargo.wheels]
    wanted = json.dumps(cargo.wanted, indent=4, sort_keys=True) if cargo.wanted else "None"
    parts.append(
        f"\n# Files of a data set that must be attached; None: none\nkernel_wanted = {wanted}\n"
    )
    for function in _START:
        parts.append(f"\n\n{inspect.getsource(function)}")
    parts.append(
        '\n\nprint("library:", put_on_path(unpack_library(kernel_files)), flush=True)\n'
        "bring_packages(kernel_wheels, kernel_wanted)\n"
    )
    return "".join(parts)


def script_kernel(
    members: list[Member], stage: str, percent: str, values: dict, cargo: Cargo
) -> str:
    """A script: the library, the notebook as its percent text, and a run of it by papermill.

    Started with RANK set, it is one process of a training on several GPUs, and no notebook.
    """
    baked = "".join(f"        {k!r}: {parameters.literal(v)},\n" for k, v in values.items())
    baked = f"{{\n{baked}    }}" if values else "{}"
    embedded = literal(f"notebooks/{stage}.py", percent)
    return (
        library_source(members, f"{stage}: script kernel of notebooks/{stage}.py", cargo)
        + f"\n# notebooks/{stage}.py, run by papermill below\nkernel_notebook = {embedded}\n"
        + f"\n\n{inspect.getsource(boot.cells_of)}\n\n{inspect.getsource(boot.run_notebook)}\n\n"
        + 'if __name__ == "__main__":\n    import os\n    import runpy\n\n'
        + f"    kernel_parameters = {baked}\n"
        + '    if "RANK" in os.environ:  # one process of several: no notebook, no launcher\n'
        + f'        runpy.run_module("{LIBRARY}", run_name="__main__", alter_sys=True)\n'
        + f'    else:\n        run_notebook("{stage}", kernel_notebook, kernel_parameters)\n'
    )


def notebook_kernel(
    members: list[Member], stage: str, percent: str, values: dict, cargo: Cargo
) -> str:
    """The notebook as nbformat 4.4 JSON, the library folded after its title, no outputs.

    The parameters stand in an injected cell after their defaults, as papermill prepares it.
    """
    source = library_source(members, f"{stage}: the library of notebooks/{stage}.py", cargo)
    # What is left over would otherwise stand in the namespace that becomes the configuration.
    used = ", ".join(function.__name__ for function in _START)
    source += f"del kernel_files, kernel_wheels, kernel_wanted, {used}"
    folded = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}, "tags": ["library"]}
    title, *others = boot.cells_of(percent)
    title["source"] += f"\n\n{_FOLD}"
    listed = [title, _code_cell(source, folded)]
    for cell in others:
        listed.append(cell)
        if values and "parameters" in cell["metadata"].get("tags", []):
            injected = {"tags": ["injected-parameters"]}
            listed.append(_code_cell(parameters.cell_source(values).rstrip("\n"), injected))
    notebook = {
        "cells": [cell | {"source": cell["source"].splitlines(True)} for cell in listed],
        "metadata": {"kernelspec": _PYTHON, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def check_size(code: str, kind: str, members: list[Member], cargo: Cargo) -> int:
    """Bytes of what is pushed; InputError with the largest parts from 1 MB on."""
    size_bytes = sent_bytes(code, kind)
    if size_bytes >= MAX_BYTES:
        sizes = [(m.path, len(m.text.encode("utf-8"))) for m in members]
        sizes += [(wheel.name, len(wheels.source(wheel))) for wheel in cargo.wheels]
        largest = sorted(sizes, key=lambda part: (-part[1], part[0]))[:5]
        parts = ", ".join(f"{name} {size:,}" for name, size in largest)
        raise InputError(
            f"the {kind} kernel has {size_bytes:,} bytes, and Kaggle refuses {MAX_BYTES:,} or more;"
            f" the largest parts: {parts}; make them smaller"
        )
    return size_bytes


def sent_bytes(code: str, kind: str) -> int:
    """Bytes of a code file as the Kaggle CLI sends it: a notebook as JSON anew, without outputs.

    Every letter beyond ASCII is an escape in that JSON. InputError for a notebook that is none.
    """
    if kind != "notebook":
        return len(code.encode("utf-8"))
    try:
        notebook = json.loads(code)
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            if cell["cell_type"] == "code":
                cell["outputs"] = []
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"not a notebook of nbformat 4 ({error!r}); build it anew") from None
    return len(json.dumps(notebook))


def read_notebook(root: Path, stage: str) -> str:
    """The percent text of a stage's notebook.

    Raises InputError where it is missing, or holds more than kernels can read without jupytext.
    """
    path = root / "notebooks" / f"{stage}.py"
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there is no {stage} kernel; restore it")
    percent = read_text(path, f"notebooks/{stage}.py")
    try:
        ours = boot.cells_of(percent)
    except ValueError as error:
        raise InputError(f"notebooks/{stage}.py: {error}; write it as jupytext does") from None
    import jupytext  # a second to import, and only a build reads notebooks

    theirs = jupytext.reads(percent, fmt="py:percent").cells
    for number in range(max(len(ours), len(theirs))):
        mine, its = ours[number : number + 1], theirs[number : number + 1]
        if [_essence(cell) for cell in mine] != [_essence(cell) for cell in its]:
            raise InputError(
                f"cell {number + 1} of notebooks/{stage}.py reads differently in jupytext and in "
                "a kernel; use plain code and markdown cells, without magics"
            )
    return percent


def _essence(cell: dict) -> tuple:
    kept = {k: v for k, v in cell["metadata"].items() if k != "lines_to_next_cell"}
    return cell["cell_type"], cell["source"], kept


def _code_cell(source: str, meta: dict) -> dict:
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": meta,
        "outputs": [],
        "source": source,
    }


def _write_folder(folder: Path, files: dict[str, str]) -> None:
    """Put a built folder in place of an earlier one, whole; refused if other things lie in it."""
    ours = {f"{folder.name}.ipynb", f"{folder.name}.py", metadata.FILE}
    if folder.is_dir():
        others = sorted({path.name for path in folder.iterdir()} - ours)
        if others:
            raise InputError(
                f"{folder} holds {others[0]}, which no build wrote; remove it or give another --out"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        for name, text in files.items():
            write_text(fresh / name, text)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        fresh.rename(folder)
