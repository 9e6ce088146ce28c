"""What a kernel does at its start: it unpacks the library and reads the notebook."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jupytext
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import v4

import kernel_lib
from kernel_build import boot


def packed(**texts: str) -> dict[str, tuple[str, str]]:
    return {
        f"kernel_lib/{name}.py": (hashlib.sha256(text.encode()).hexdigest(), text)
        for name, text in texts.items()
    }


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_same_library_gets_the_same_folder_and_another_its_own(scratch: Path):
    folder = boot.unpack_library(packed(a="x = 1\n", b=""))
    assert boot.unpack_library(packed(b="", a="x = 1\n")) == folder
    assert boot.unpack_library(packed(a="x = 2\n", b="")) != folder
    assert Path(folder).parent == scratch


def test_an_unchanged_folder_is_left_alone_with_its_compiled_files(scratch: Path):
    folder = Path(boot.unpack_library(packed(a="x = 1\n")))
    compiled = folder / "kernel_lib" / "__pycache__" / "a.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"compiled")
    boot.unpack_library(packed(a="x = 1\n"))
    assert compiled.read_bytes() == b"compiled"


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "a file"])
def test_a_folder_that_exists_is_verified_and_repaired(scratch: Path, damage: str):
    files = packed(a="x = 1\n", b="y = 2\n")
    folder = Path(boot.unpack_library(files))
    if damage == "changed":
        (folder / "kernel_lib" / "a.py").write_text("x = 3\n")
    elif damage == "missing":
        (folder / "kernel_lib" / "b.py").unlink()
    elif damage == "added":
        (folder / "torch.py").write_text("")
    else:
        folder.rename(scratch / "away")
        folder.write_text("")
    assert boot.unpack_library(files) == str(folder)
    written = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.py")}
    assert written == {path: text for path, (_, text) in files.items()}


def test_an_altered_file_is_named(scratch: Path):
    files = packed(a="x = 1\n")
    with pytest.raises(RuntimeError, match=r"kernel_lib/a\.py has sha256"):
        boot.unpack_library({path: (digest, "x = 2\n") for path, (digest, _) in files.items()})


def test_nowhere_to_write_names_the_fix(scratch: Path, monkeypatch: pytest.MonkeyPatch):
    (scratch / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch / "file"))
    with pytest.raises(RuntimeError, match="set TMPDIR"):
        boot.unpack_library(packed(a=""))


def test_processes_that_start_at_once_on_a_damaged_folder_agree(scratch: Path, project_root: Path):
    files = packed(__init__="", a="x = 1\n" * 1000)
    folder = Path(boot.unpack_library(files))
    (folder / "kernel_lib" / "a.py").write_text("x = 0\n")
    code = (
        f"import sys; sys.path.insert(0, {str(project_root)!r})\n"
        f"from kernel_build import boot\nsys.path.pop(0)\nfiles = {files!r}\n"
        "boot.put_on_path(boot.unpack_library(files))\n"
        "import kernel_lib.a; print(kernel_lib.a.x, kernel_lib.a.__file__)\n"
    )
    env = os.environ | {"TMPDIR": str(scratch)}
    command = [sys.executable, "-P", "-c", code]
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    said = {process.communicate()[0] for process in started}
    assert said == {f"1 {folder}/kernel_lib/a.py\n"}


def test_another_imported_copy_is_refused(tmp_path: Path):
    assert kernel_lib.__file__  # the project's own is imported already
    with pytest.raises(RuntimeError, match="restart the kernel"):
        boot.put_on_path(str(tmp_path))


def essence(cell: dict) -> tuple:
    kept = {k: v for k, v in cell["metadata"].items() if k != "lines_to_next_cell"}
    return cell["cell_type"], cell["source"], kept


LINES = st.sampled_from(
    ["", "x = 1", "# a comment", "if x:\n    y = 'ü'", '"""text"""', "# # heading", "## two", "é"]
)
CODE = st.lists(LINES, min_size=1, max_size=6).map("\n".join).map(lambda text: text.strip("\n"))
MARKDOWN = st.lists(
    st.sampled_from(["# Title", "words", "", "- a list", "`code` %% x", "# %"]), min_size=1
)
META = st.sampled_from([{}, {"tags": ["parameters"]}, {"tags": ["a", "b"], "collapsed": True}])


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("code"), CODE, META),
            st.tuples(st.just("markdown"), MARKDOWN.map("\n".join).map(str.strip), META),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_cells_are_read_as_jupytext_reads_them(cells):
    made = [
        (v4.new_code_cell if kind == "code" else v4.new_markdown_cell)(source, metadata=meta)
        for kind, source, meta in cells
        if source
    ]
    if not made:
        return
    python = {"kernelspec": {"display_name": "P", "language": "python", "name": "python3"}}
    percent = jupytext.writes(v4.new_notebook(cells=made, metadata=python), fmt="py:percent")
    theirs = jupytext.reads(percent, fmt="py:percent").cells
    assert [essence(c) for c in boot.cells_of(percent)] == [essence(c) for c in theirs]


@pytest.mark.parametrize("text", ["x = 1\n# %%\n", "# %% a title\nx = 1\n"])
def test_what_is_not_understood_is_refused(text: str):
    with pytest.raises(ValueError, match=r"x = 1|a title"):
        boot.cells_of(text)
