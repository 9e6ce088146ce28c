"""Library, notebook and parameters as one readable file that Kaggle can run.

The library stands in it as plain text, each file a raw literal under a banner (`sources.py`); the
same sources give the same bytes. What the kernel does with it at its start is `boot.py`.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from kernel_build import boot, cells, metadata, names, parameters, wheels
from kernel_build.sources import LIBRARY, Member, collect, left_out, literal, read_text
from kernel_lib.errors import InputError
from kernel_lib.stages.table import STAGES, Stage
from kernel_lib.storage import atomic_folder, write_text

MAX_BYTES = 1_000_000  # Kaggle refuses a source of 1 MB or more, after the push
# nbconvert's HTML cannot collapse a cell: its templates give a cell's tag as a class to styles.
_COLLAPSE_STYLE = (
    "<style>.celltag_library .highlight {max-height: 4em; overflow: auto; resize: vertical}</style>"
)
_START = (boot.unpack_library, boot.put_on_path, boot.bring_packages)
_PYTHON = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Inputs:
    """What a kernel takes beside library and notebook.

    Attributes:
        sources: What is attached to it.
        wheels: The wheels that it carries.
        offline: The manifest of a data set (`offline.manifest`) that it must find attached.
        accelerator: What it runs on, if it needs a GPU; None: that of the root's metadata.
    """

    sources: metadata.Sources = field(default_factory=metadata.Sources)
    wheels: tuple[wheels.Wheel, ...] = ()
    offline: dict | None = None
    accelerator: str | None = None


@dataclass(frozen=True)
class Kernel:
    """A kernel: the folder to push, its files, its size as sent, and what stands in it."""

    folder: Path
    code_file: Path
    code: str
    size_bytes: int
    n_members: int  # files of the library
    parameters: dict
    metadata: dict

    def write(self) -> None:
        """Write the folder, complete, in place of an earlier build.

        Raises: InputError if it has files that no build wrote.
        """
        folder = self.folder
        own = {f"{folder.name}.ipynb", f"{folder.name}.py", metadata.FILE}
        if folder.is_dir() and (others := sorted({p.name for p in folder.iterdir()} - own)):
            raise InputError(
                f"{folder} holds {others[0]}, which no build wrote; remove it or give another --out"
            )
        with atomic_folder(folder) as fresh:
            write_text(fresh / self.code_file.name, self.code)
            write_text(fresh / metadata.FILE, metadata.as_text(self.metadata))


def compose(
    root: Path,
    stage: str,
    kind: str,
    *,
    given: tuple[tuple[str, str], ...] = (),
    owner: str | None = None,
    out: Path | None = None,
    slug: str | None = None,
    inputs: Inputs | None = None,
) -> Kernel:
    """Return a kernel, to be written as `<out>/<slug>/`: its code file and kernel-metadata.json.

    Args:
        root: The project's folder.
        kind: 'notebook' or 'script'.
        given: The parameters to bake in, as strings.
        owner: The Kaggle user name; None: a placeholder.
        out: The folder of kernels; None: `build` in the project.
        slug: The kernel's name; None: the stage's default name.

    Raises: InputError for an unknown or ill-typed parameter, a source that cannot be embedded, a
        kernel of 1 MB or more, and metadata that Kaggle would refuse.
    """
    notebook, inputs = f"notebooks/{stage}.py", inputs or Inputs()
    percent = read_notebook(root, stage)  # the notebook as Python source, in jupytext's format
    values = parameters.read(percent, notebook, given)
    name = slug or names.slug(stage, kind)
    members = collect(root, left_out(stage))
    code_name = f"{name}.py" if kind == "script" else f"{name}.ipynb"
    meta = metadata.of_kernel(
        metadata.read_base(root), stage, kind, owner, code_name, name=name, sources=inputs.sources,
        accelerator=inputs.accelerator,
    )  # fmt: skip
    text = cells.for_kernel(percent, stage, parameters.defaults(percent, notebook) | values, meta)
    make_code = script_kernel if kind == "script" else notebook_kernel
    code = make_code(members, stage, text, values, inputs)
    size_bytes = check_size(code, kind, members, inputs)
    folder = (out or root / "build") / name
    return Kernel(folder, folder / code_name, code, size_bytes, len(members), values, meta)


def build(root: Path, stage: str, kind: str, **options) -> Kernel:
    """Write a kernel, composed with the options of `compose`, and return it."""
    kernel = compose(root, stage, kind, **options)
    kernel.write()
    return kernel


def library_source(members: list[Member], headline: str, inputs: Inputs) -> str:
    """Return the source that both kinds share: library files under banners, wheels, unpacking."""
    parts = [
        f"# {headline}\n"
        "# Built by build_kernel.py: change the project's files and build again, not this one.\n"
        f"# The {len(members)} library files that it may need follow, unchanged.\n\n"
        "kernel_files = {}\n"
    ]
    for member in members:
        lines = member.text.count("\n") + (not member.text.endswith("\n") and bool(member.text))
        parts.append(
            f"\n# {'=' * 16}  {member.path}  |  {lines} lines  {'=' * 16}\n"
            f'kernel_files[{json.dumps(member.path)}] = (\n    "{member.sha256}",\n'
            f"    {literal(member.path, member.text)},\n)\n"
        )
    parts.append("\n\nkernel_wheels = {}\n")
    parts += [wheels.source(wheel) for wheel in inputs.wheels]
    wanted = json.dumps(inputs.offline, indent=4, sort_keys=True) if inputs.offline else "None"
    parts.append(f"\n# Files of a data set that must be attached\nkernel_wanted = {wanted}\n")
    for function in _START:
        parts.append(f"\n\n{inspect.getsource(function)}")
    parts.append(
        '\n\nprint("library:", put_on_path(unpack_library(kernel_files)), flush=True)\n'
        "bring_packages(kernel_wheels, kernel_wanted)\n"
    )
    return "".join(parts)


def script_kernel(
    members: list[Member], stage: str, percent: str, values: dict, inputs: Inputs
) -> str:
    """Return a script: the library, the notebook as percent text, and code that runs it.

    Papermill runs the notebook. If RANK is set, the script is one process of a training on several
    GPUs, and runs kernel_lib instead.
    """
    baked = "".join(f"        {k!r}: {parameters.literal(v)},\n" for k, v in values.items())
    baked = f"{{\n{baked}    }}" if values else "{}"
    embedded = literal(f"notebooks/{stage}.py", percent)
    return (
        library_source(members, f"{stage}: script kernel of notebooks/{stage}.py", inputs)
        + f"\n# notebooks/{stage}.py, run by papermill below\nkernel_notebook = {embedded}\n"
        + f"\n\n{inspect.getsource(boot.cells_of)}\n\n{inspect.getsource(boot.run_notebook)}\n\n"
        + 'if __name__ == "__main__":\n    import os\n    import runpy\n\n'
        + f"    kernel_parameters = {baked}\n"
        + '    if "RANK" in os.environ:  # one training process of several: not the notebook\n'
        + f'        runpy.run_module("{LIBRARY}", run_name="__main__", alter_sys=True)\n'
        + f'    else:\n        run_notebook("{stage}", kernel_notebook, kernel_parameters)\n'
    )


def notebook_kernel(
    members: list[Member], stage: str, percent: str, values: dict, inputs: Inputs
) -> str:
    """Return the notebook as nbformat 4.4 JSON: title, collapsed library cell, then its cells.

    It has no outputs. The parameters are in an injected cell after the defaults, as papermill
    writes it.
    """
    source = library_source(members, f"{stage}: the library of notebooks/{stage}.py", inputs)
    # Deleted, since the notebook's namespace becomes the configuration.
    used = ", ".join(function.__name__ for function in _START)
    source += f"del kernel_files, kernel_wheels, kernel_wanted, {used}"
    collapsed = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}, "tags": ["library"]}
    title, *others = boot.cells_of(percent)
    title["source"] += f"\n\n{_COLLAPSE_STYLE}"
    cells_out = [title, _code_cell(source, collapsed)]
    for cell in others:
        cells_out.append(cell)
        if values and "parameters" in cell["metadata"].get("tags", []):
            injected = {"tags": ["injected-parameters"]}
            cells_out.append(_code_cell(parameters.cell_source(values).rstrip("\n"), injected))
    notebook = {
        "cells": [cell | {"source": cell["source"].splitlines(True)} for cell in cells_out],
        "metadata": {"kernelspec": _PYTHON, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def check_size(code: str, kind: str, members: list[Member], inputs: Inputs) -> int:
    """Return the number of bytes that a push uploads.

    Raises: InputError naming the largest parts if it is 1 MB or more.
    """
    size_bytes = sent_bytes(code, kind)
    if size_bytes >= MAX_BYTES:
        sizes = [(m.path, len(m.text.encode("utf-8"))) for m in members]
        sizes += [(wheel.name, len(wheels.source(wheel))) for wheel in inputs.wheels]
        largest = sorted(sizes, key=lambda part: (-part[1], part[0]))[:5]
        parts = ", ".join(f"{name} {size:,}" for name, size in largest)
        raise InputError(
            f"the {kind} kernel has {size_bytes:,} bytes, and Kaggle refuses {MAX_BYTES:,} or more;"
            f" the largest parts: {parts}; make them smaller"
        )
    return size_bytes


def stage_of(code: str) -> Stage | None:
    """Return the stage of a built kernel, by its headline; None for code that no build wrote."""
    line = re.search(r"# (\w+): (?:script kernel|the library) of notebooks/\1\.py", code)
    return STAGES.get(line[1]) if line else None


def sent_bytes(code: str, kind: str) -> int:
    """Return the bytes of a code file as the Kaggle CLI sends it.

    A notebook is sent as JSON without outputs, with non-ASCII characters escaped.

    Raises: InputError for a notebook that is not of nbformat 4.
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
        raise InputError(f"not a notebook of nbformat 4 ({error!r}); build it again") from None
    return len(json.dumps(notebook))


def read_notebook(root: Path, stage: str) -> str:
    """Return the percent text of a stage's notebook.

    Raises: InputError if it is missing, or if `boot.cells_of` does not read it as jupytext does.
    """
    path = root / "notebooks" / f"{stage}.py"
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there is no {stage} kernel; restore it")
    percent = read_text(path, f"notebooks/{stage}.py")
    try:
        parsed = boot.cells_of(percent)
    except ValueError as error:
        raise InputError(f"notebooks/{stage}.py: {error}; save it with jupytext") from None
    import jupytext  # a second to import, and only a build reads notebooks

    expected = jupytext.reads(percent, fmt="py:percent").cells
    for number in range(max(len(parsed), len(expected))):
        got, wanted = parsed[number : number + 1], expected[number : number + 1]
        if [_comparable(cell) for cell in got] != [_comparable(cell) for cell in wanted]:
            raise InputError(
                f"cell {number + 1} of notebooks/{stage}.py reads differently in jupytext and in "
                "a kernel; use plain code and markdown cells, without magics"
            )
    return percent


def _comparable(cell: dict) -> tuple:
    """Return what must be equal: type, source, and metadata but for jupytext's layout hint."""
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
