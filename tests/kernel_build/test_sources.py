"""The library's files in a kernel: those it needs, in order, byte for byte or refused by name."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from kernel_build import boot, bundle, metadata, sources
from kernel_build.bundle import read_notebook
from kernel_build.cells import for_kernel
from kernel_lib.errors import InputError
from kernel_lib.stages.table import STAGES

# Texts near everything that a raw literal, a tokenizer or IPython might stumble over.
ODD = st.text(
    st.one_of(
        st.sampled_from("'\"\\\n%!?>{}#\t\r\x0c\x85\u2028\ufeff\x00"), st.characters(codec="utf-8")
    ),
    max_size=40,
)


@given(ODD)
@example("ends in a backslash \\")
@example("ends in two \\\\")
@example("'''")
@example("both ''' and \"\"\"")
@example('ends in a quote "')
@example("'''\" and a quote")
@example("'starts")
@example("''' '''")
@example("\\'\\'\\'")
def test_a_literal_is_exact_or_refused_with_the_file_named(text: str):
    refusal = ""
    try:
        literal = sources.literal("viewer/viewer.html", text)
    except InputError as error:
        refusal = str(error)
    if refusal:
        assert "viewer/viewer.html" in refusal
    else:
        assert literal.startswith("r")
        assert ast.literal_eval(literal) == text


@given(st.text("abc\n'\"#ü", max_size=30).map(lambda text: text + "\n"))
def test_ordinary_texts_with_one_kind_of_triple_quotes_are_never_refused(text: str):
    if "'''" in text and '"""' in text:
        return
    assert ast.literal_eval(sources.literal("a", text)) == text


# Few of these are refused, and lines look like magics, prompts and questions to IPython.
EMBEDDABLE = st.lists(
    st.one_of(
        st.sampled_from(["%%bash\n", "!ls\n", "what?\n", ">>> x\n", "In [1]: x\n", "  %a\n", "\n"]),
        st.sampled_from(["'", '"', "\\", "{", "#", "\t", "ü", "\ufeff", "🫁", "\\n", "x"]),
    ),
    max_size=12,
).map(lambda parts: "".join(parts) + "\n")


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["a.html", "b/c.txt", "b/d/e.md"]), EMBEDDABLE, min_size=1))
def test_unpacked_files_are_the_project_s_byte_for_byte(texts: dict[str, str]):
    """Through real files, the whole generated source, IPython, and a kernel's start."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        for name, text in {"__init__.py": "", **texts}.items():
            path = root / "kernel_lib" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("utf-8"))
        try:
            source = bundle.library_source(sources.collect(root), "test", bundle.Inputs())
        except InputError:
            return
        (Path(folder) / "tmp").mkdir()
        files = written_files(TransformerManager().transform_cell(source))
        before = tempfile.tempdir
        tempfile.tempdir = f"{folder}/tmp"
        try:
            unpacked = Path(boot.unpack_library(files))
        finally:
            tempfile.tempdir = before
        for path in (p for p in (root / "kernel_lib").rglob("*") if p.is_file()):
            assert (unpacked / path.relative_to(root)).read_bytes() == path.read_bytes()
        assert len(files) == len(texts) + 1


def written_files(source: str) -> dict[str, tuple[str, str]]:
    """`kernel_files` of a generated source, its data part executed alone."""
    namespace: dict = {}
    exec(source.split("\n\ndef unpack_library")[0], namespace)
    return namespace["kernel_files"]


def test_sub_packages_and_data_files_are_in_and_litter_is_out(project: Path):
    library = project / "kernel_lib"
    for litter in ("__pycache__/a.pyc", ".hidden", "data/.ipynb_checkpoints/x.py", "old.pyc"):
        (library / litter).parent.mkdir(exist_ok=True)
        (library / litter).write_bytes(b"\xff")
    assert {member.path for member in sources.collect(project)} == {
        path.relative_to(project).as_posix()
        for path in library.rglob("*.*")
        if path.suffix in (".py", ".html") and "checkpoints" not in str(path)
    }


def test_files_and_folders_that_are_left_out_stay_out(project: Path):
    every = [member.path for member in sources.collect(project)]
    left = ["data", "viewer/viewer.html", "gone.py"]
    carried = [member.path for member in sources.collect(project, left)]
    data = ["kernel_lib/data/__init__.py", "kernel_lib/data/rle.py"]
    out = [*data, "kernel_lib/viewer/viewer.html"]
    assert carried == [path for path in every if path not in out]
    assert len(every) == len(carried) + len(out)


def by_module(root: Path, without: tuple[str, ...] = ()) -> dict[str, sources.Member]:
    """Return the library's members by the names of their modules."""
    members = sources.collect(root, without)
    return {
        m.path.removesuffix(".py").replace("/__init__", "").replace("/", "."): m for m in members
    }


def imports(text: str) -> Iterator[str]:
    """Yield what a module imports, at its top and inside functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


@pytest.mark.parametrize("stage", STAGES)
def test_a_kernel_imports_nothing_that_it_leaves_out(project_root: Path, stage: str):
    """Not even inside a function, but for the commands that a kernel has not."""
    members = by_module(project_root, sources.left_out(stage))
    texts = {name: m.text for name, m in members.items() if m.path.endswith(".py")}
    texts["kernel_lib.__main__"] = texts["kernel_lib.__main__"].replace("kernel_lib.commands", "os")
    notebook = read_notebook(project_root, stage)
    meta = dict.fromkeys(metadata.SOURCES, ())
    texts["notebook"] = for_kernel(notebook, stage, {}, meta).replace("# %%", "#")
    modules = by_module(project_root)
    for name, text in texts.items():
        absent = {i for i in imports(text) if i in modules} - members.keys()
        assert not absent, f"{name} imports {absent}: carry it, or leave {name} out too"


def test_what_is_left_out_exists(project_root: Path):
    """Else it was renamed, and is carried."""
    left = {path for stage in STAGES for path in sources.left_out(stage)}
    assert [path for path in left if not (project_root / "kernel_lib" / path).exists()] == []


def test_no_module_of_the_library_is_imported_by_a_computed_name(project_root: Path):
    """Else a kernel may lack it. The stages' own are imported by name."""
    names = {"import_module", "__import__", "run_module", "run_path"}
    for member in sources.collect(project_root):
        exempt = ("/command_line.py", "/stages/table.py")
        if member.path.endswith(".py") and not member.path.endswith(exempt):
            used = {
                getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(ast.parse(member.text))
            }
            assert not used & names, member.path


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=[pytest.mark.slow] * STAGES[s].needs_gpu) for s in STAGES]
)
def test_every_module_of_a_kernel_can_be_imported(project_root: Path, tmp_path: Path, stage: str):
    members = by_module(project_root, sources.left_out(stage))
    for member in members.values():
        path = tmp_path / member.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(member.text, encoding="utf-8")
    names = [name for name, m in members.items() if m.path.endswith(".py")]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    code += "print({m.__file__ for n, m in sys.modules.items() if n.startswith('kernel_lib')})"
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == {str(tmp_path / members[name].path) for name in names}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("viewer/icon.png", b"\x89PNG\r\n", r"kernel_lib/viewer/icon\.png is not UTF-8 at byte 0"),
        ("broken.py", b"x = 1\ny = (\n", r"kernel_lib/broken\.py:2 is not Python"),
    ],
)
def test_files_that_no_kernel_can_carry_are_named(project: Path, name: str, content, words: str):
    (project / "kernel_lib" / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        sources.collect(project)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = 2\r\n", r"a null or a line end other than \\n \('\\r'\)"),
        ("x = 1\ny = '\u2028'\n", r"\('\\u2028'\)"),
        ("x = 1\n  \n", "a line of blanks alone"),
    ],
)
def test_what_ipython_would_alter_is_named_with_its_line(text: str, words: str):
    with pytest.raises(InputError, match=rf"a\.py:2 holds .*{words}"):
        sources.literal("a.py", text)


def test_a_folder_without_the_library_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="build in the project's root"):
        sources.collect(tmp_path)


def test_the_project_s_own_library_can_be_carried(project_root: Path):
    members = sources.collect(project_root)
    files = written_files(bundle.library_source(members, "test", bundle.Inputs()))
    for path, (_, text) in files.items():
        assert text.encode("utf-8") == (project_root / path).read_bytes()
    assert os.path.commonpath(files) == "kernel_lib"
    assert {".py", ".json", ".html", ".css", ".js"} <= {Path(path).suffix for path in files}
