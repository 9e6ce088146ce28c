"""The start of a kernel: the bundle copies the text of these functions into each kernel.

Each function therefore imports what it needs inside: a notebook kernel's namespace, which becomes
its configuration, gains nothing.
"""

from __future__ import annotations


def unpack_library(files: dict[str, tuple[str, str]]) -> str:
    """Check the library, write it to a folder named by its hash, and return the folder.

    `files` maps a relative path to (sha256, text). The folder is written beside and renamed:
    workers and ranks that start together see a complete one. An earlier one is compared byte for
    byte, and replaced if it differs.

    Raises: RuntimeError if the library was altered after the build, or nothing can be written.
    """
    import fcntl
    import hashlib
    import tempfile
    from pathlib import Path

    contents = {}
    for path, (digest, text) in files.items():
        contents[path] = text.encode("utf-8")
        actual = hashlib.sha256(contents[path]).hexdigest()
        if actual != digest:
            raise RuntimeError(
                f"{path} has sha256 {actual} and was built with {digest}: this kernel was altered "
                "after its build; change the project and run build_kernel.py again"
            )
    listing = "".join(f"{path} {digest}\n" for path, (digest, _) in sorted(files.items()))
    name = f"kernel_lib-{hashlib.sha256(listing.encode('utf-8')).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()).resolve() / name

    def is_complete() -> bool:
        try:
            present = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file() and path.parent.name != "__pycache__"
            }
        except OSError:  # another process is replacing the folder
            return False
        return present == contents

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
        if not is_complete():
            # Of several processes that see a damaged folder, only the first replaces it.
            with open(f"{folder}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not is_complete():
                    write()
    except OSError as error:
        raise RuntimeError(
            f"cannot write the library to {folder} ({error}); set TMPDIR to a folder of your own"
        ) from error
    return str(folder)


def put_on_path(folder: str) -> str:
    """Make this process, and those that it starts, import the library from the folder.

    Returns: The folder.

    Raises: RuntimeError if another copy of the library is imported already.
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
    """Use the wheels that this kernel carries and those of attached data sets, and print them."""
    from kernel_lib.kaggle import packages

    for line in packages.use_wheels(wheels, wanted):
        print(line, flush=True)


def cells_of(percent: str) -> list[dict]:
    """Return the cells of a jupytext percent text, without its header, as of nbformat 4.4.

    Reads code and markdown cells with JSON metadata after the marker, and no other kinds; the
    bundle compares the result with jupytext's.
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

    The cells' output is this process's too. A failing cell raises papermill's error, which fails
    the kernel and keeps its files; an InputError ends the process with its message alone.
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
