"""What a kernel does at its start. The bundle copies these functions' text into each kernel.

Each function therefore stands alone: standard library, papermill and nbformat, imported inside, so
that a notebook kernel's namespace, which becomes its configuration, gains nothing.
"""

from __future__ import annotations


def unpack_library(files: dict[str, tuple[str, str]]) -> str:
    """Check the library and write it to a folder named by its hash; returns the folder.

    `files` maps a relative path to (sha256, text). Workers and ranks that start at once agree on
    one whole folder: it is written beside and renamed. One that is there already is compared byte
    for byte and replaced if it differs. RuntimeError if the library was altered after the build,
    or nothing can be written.
    """
    import fcntl
    import hashlib
    import tempfile
    from pathlib import Path

    contents = {}
    for path, (digest, text) in files.items():
        contents[path] = text.encode("utf-8")
        found = hashlib.sha256(contents[path]).hexdigest()
        if found != digest:
            raise RuntimeError(
                f"{path} has sha256 {found} and was built with {digest}: this kernel was altered "
                "after its build; change the project and run build_kernel.py again"
            )
    listing = "".join(f"{path} {digest}\n" for path, (digest, _) in sorted(files.items()))
    name = f"kernel_lib-{hashlib.sha256(listing.encode('utf-8')).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()).resolve() / name

    def is_whole() -> bool:
        try:
            there = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file() and path.parent.name != "__pycache__"
            }
        except OSError:  # another process is replacing the folder
            return False
        return there == contents

    def write() -> None:
        with tempfile.TemporaryDirectory(prefix=f".{name}-") as beside:
            for path, content in contents.items():
                target = Path(beside) / "new" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            if folder.exists():
                folder.rename(Path(beside) / "damaged")
            (Path(beside) / "new").rename(folder)

    try:
        if not is_whole():
            # The lock is for those who find a damaged folder together: only the first mends it.
            with open(f"{folder}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not is_whole():
                    write()
    except OSError as error:
        raise RuntimeError(
            f"cannot write the library to {folder} ({error}); set TMPDIR to a folder of your own"
        ) from error
    return str(folder)


def put_on_path(folder: str) -> str:
    """Make this process, and every one that it starts, import the library from the folder.

    Returns the folder; RuntimeError if another copy of the library is imported already.
    """
    import importlib
    import os
    import sys
    from pathlib import Path

    loaded = getattr(sys.modules.get("kernel_lib"), "__file__", None)
    if loaded and not Path(loaded).resolve().is_relative_to(folder):
        raise RuntimeError(f"kernel_lib is already imported from {loaded}: restart the kernel")
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in inherited if entry and entry != folder]
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, *kept])
    sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    importlib.invalidate_caches()
    return folder


def bring_packages(wheels: dict[str, tuple[str, str]], wanted: dict | None) -> None:
    """Use the wheels that this kernel carries and those of attached data sets; says so."""
    from kernel_lib.kaggle import packages

    for line in packages.use_wheels(wheels, wanted):
        print(line, flush=True)


def cells_of(percent: str) -> list[dict]:
    """The cells of a jupytext percent text, as nbformat 4.4 has them; the header is left out.

    Only what this project's notebooks use: code and markdown cells with JSON metadata after the
    marker. The bundle compares the result with jupytext's own.
    """
    import json
    import re

    lines = percent.split("\n")
    if lines[0] == "# ---":
        lines = lines[lines.index("# ---", 1) + 1 :]
    cells: list[dict] = []
    for line in lines:
        marker = re.fullmatch(r"# %%(?P<kind> \[markdown\])?(?P<rest>( .*)?)", line)
        if marker:
            rest, metadata = marker["rest"].strip(), {}
            while entry := re.match(r"(\w+)=", rest):
                value, end = json.JSONDecoder().raw_decode(rest, entry.end())
                metadata[entry[1]] = value
                rest = rest[end:].strip()
            if rest:
                raise ValueError(f"cannot read {rest!r} in the cell marker {line!r}")
            kind = "markdown" if marker["kind"] else "code"
            cells.append({"cell_type": kind, "metadata": metadata, "source": []})
        elif cells:
            cells[-1]["source"].append(line)
        elif line.strip():
            raise ValueError(f"{line!r} stands before the first cell marker `# %%`")
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = [re.sub(r"^# ?", "", line) for line in cell["source"]]
        else:
            cell |= {"execution_count": None, "outputs": []}
        cell["source"] = "\n".join(cell["source"]).strip("\n")
    return cells


def run_notebook(stage: str, percent: str, parameters: dict) -> None:
    """Run the notebook through papermill and leave it, executed, in the working folder.

    Its cells' output streams to this process's own. A cell that fails raises papermill's error,
    so that the kernel ends with a failure; what was written until then stays. An error that the
    notebook shows as a sentence, without a traceback, ends the process with that sentence.
    """
    import sys
    import tempfile
    from pathlib import Path

    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.from_dict(
        {
            "cells": cells_of(percent),
            "metadata": {"kernelspec": python, "language_info": {"name": "python"}},
            "nbformat": 4,
            "nbformat_minor": 4,
        }
    )
    executed = Path.cwd() / f"{stage}.ipynb"
    print(f"{stage}: running {len(notebook.cells)} cells, kept in {executed}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / f"{stage}.ipynb"
        nbformat.write(notebook, source)
        try:
            papermill.execute_notebook(
                str(source),
                str(executed),
                parameters=parameters,
                kernel_name="python3",
                autosave_cell_every=60,  # a session that is killed keeps its finished cells
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
        except PapermillExecutionError as error:
            if error.traceback == [f"Error: {error.evalue}"]:  # an InputError
                sys.exit(error.traceback[0])
            raise
    print(f"{stage}: finished", flush=True)
