"""A small project to build kernels from: sub-packages, a data file, a notebook, odd contents."""

from __future__ import annotations

import base64
import hashlib
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from kernel_lib.stages.table import STAGES

NOTEBOOK = """\
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A stage
# It says *what* it does.
#
# And more, after a blank line.

# %% tags=["local"]
raise SystemExit("no kernel has a clone")

# %% tags=["parameters"]
from typing import Optional

SIZE: Optional[int] = None
SEED: int = 3456
RATE: float = 0.5
NAME: str = "none"
FAIL: bool = False

# %%
from kernel_lib import stages

print("config:", {k: v for k, v in sorted(globals().items()) if k[0].isupper() and k.isupper()})

# %% jupyter={"outputs_hidden": true} tags=["run"]
# a comment first

stages.run(FAIL)
"""

FILES = {
    "__init__.py": "",
    "__main__.py": """\
        import sys

        from kernel_lib.data import rle

        print("rank:", sys.argv[1:], rle.__file__)
        """,
    "data/__init__.py": "",
    "data/rle.py": '''\
        """Docstring with "quotes", a \\backslash and ünïcode."""

        PATTERN = r"\\d+\\n"
        QUOTED = """
        %%bash
        !ls
        what?
        >>> not a prompt
        """
        ''',
    "kaggle/__init__.py": "",
    "kaggle/packages.py": """\
        def use_wheels(wheels, wanted):
            yield f"packages: {sorted(wheels)} {wanted}"
        """,
    "stages.py": """\
        import multiprocessing
        import subprocess
        import sys
        from concurrent.futures import ProcessPoolExecutor
        from pathlib import Path

        from kernel_lib.data import rle


        def where(_=None):
            return rle.__file__


        def run(fail):
            print("library from", where())
            Path("artefact.txt").write_text("written early")
            if fail:
                raise ValueError("this stage was asked to fail")  # the line of the traceback
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                print("worker agrees:", list(pool.map(where, [0])) == [where()])
            code = "import kernel_lib.stages as s; print(s.where())"
            child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            print("child agrees:", child.stdout.strip() == where())
            print("done")
        """,
    "viewer/__init__.py": "",
    "viewer/viewer.html": "<!doctype html>\n<p class='x'>“look”?</p>\n<script>let a = `\\`;</script>",  # noqa: E501
}


@pytest.fixture
def project(tmp_path: Path, project_root: Path) -> Path:
    """The root of a fresh small project."""
    root = tmp_path / "project"
    for name, text in FILES.items():
        path = root / "kernel_lib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    (root / "notebooks").mkdir()
    for stage in STAGES:
        (root / "notebooks" / f"{stage}.py").write_text(NOTEBOOK, encoding="utf-8")
    shutil.copy(project_root / "kernel-metadata.json", root)
    return root


def write_wheel(
    folder: Path, project: str, version: str, files: dict[str, str], tag: str = "py3-none-any"
) -> Path:
    """A small wheel, as a registry would have it."""
    name = project.replace("-", "_")
    about = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    about += 'Requires-Dist: numpy>=1\nRequires-Dist: pytest ; extra == "test"\n'
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    kind = f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: {tag}\n"
    inner = f"{name}-{version}.dist-info"
    files = files | {f"{inner}/METADATA": about, f"{inner}/WHEEL": kind}
    record = "".join(map(record_row, files, files.values())) + f"{inner}/RECORD,,\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, text in (files | {f"{inner}/RECORD": record}).items():
            wheel.writestr(member, text)
    return path


def record_row(member: str, text: str) -> str:
    """A file's row in the RECORD of its wheel."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"{member},sha256={digest.rstrip('=')},{len(text.encode())}\n"


@pytest.fixture
def make_wheel() -> Callable[..., Path]:
    return write_wheel


@pytest.fixture
def fake_kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that makes `kaggle` answer so, and returns the file of its calls.

    Until then there is no `kaggle`, whatever this machine has.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    calls = folder / "calls.txt"

    def answering(answer: str, status: int = 0) -> Path:
        command = folder / "kaggle"
        code = f"""\
            #!{sys.executable}
            import sys
            with open({str(calls)!r}, "a") as file:
                print(*sys.argv[1:], file=file)
            print({answer!r}, end="", file=sys.stderr if {status} else sys.stdout)
            sys.exit({status})
            """
        command.write_text(dedent(code))
        command.chmod(0o755)
        return calls

    return answering
