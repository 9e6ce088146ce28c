"""The library's files in a kernel: those it needs, in order, byte for byte or refused by name."""

from __future__ import annotations

import ast
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from kernel_build import boot, bundle, sources
from kernel_lib.errors import InputError

# Texts near everything that a raw literal, a tokenizer or IPython might stumble over.
ODD = st.text(
    st.one_of(
        st.sampled_from("'\"\\\n%!?>{}#\t\r\x0c\x85\u2028\ufeff\x00"),
        st.characters(codec="utf-8"),
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
            source = bundle.library_source(
                sources.ordered(sources.collect(root)), "test", bundle.Cargo()
            )
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
    found = {member.path for member in sources.collect(project)}
    assert found == {
        path.relative_to(project).as_posix()
        for path in library.rglob("*.*")
        if path.suffix in (".py", ".html") and "checkpoints" not in str(path)
    }


def test_modules_come_after_what_they_import_and_data_last(project: Path):
    names = [member.path for member in sources.ordered(sources.collect(project))]
    assert names.index("kernel_lib/data/rle.py") < names.index("kernel_lib/stages.py")
    assert names[-1] == "kernel_lib/viewer/viewer.html"
    assert sorted(names) == sorted(m.path for m in sources.collect(project))


def test_relative_imports_and_cycles_are_ordered_too(tmp_path: Path):
    texts = {
        "a.py": "from .z import late\n",
        "z.py": "def late():\n    from . import a\n",
        "p/__init__.py": "from .q import x\n",
        "p/q.py": "from ..z import late\n",
    }
    members = [sources.Member(f"kernel_lib/{name}", text) for name, text in texts.items()]
    names = [member.path.removeprefix("kernel_lib/") for member in sources.ordered(members)]
    assert names == ["z.py", "a.py", "p/q.py", "p/__init__.py"]


def test_a_kernel_carries_what_it_can_import_and_the_data_files_of_that():
    texts = {
        "__init__.py": "",
        "__main__.py": "from . import top\n\ndef draw():\n    from .data import drawn\n",
        "top.py": "",
        "a/__init__.py": "from .inner import x\n",
        "a/inner.py": "def x():\n    import kernel_lib.b.late\n",
        "b/__init__.py": "",
        "b/late.py": "PAGE = 'own.css'\n",
        "b/unused.py": "PAGE = 'page.html' + 'own.css'\n",
        "b/page.html": "",
        "b/own.css": "",
        "b/not-own.css": "",
        "data/__init__.py": "",
        "data/drawn.py": "",
        "tables/few.json": "",
    }
    members = [sources.Member(f"kernel_lib/{name}", text) for name, text in texts.items()]
    start = sources.Member("n.py", "def f():\n    from kernel_lib.a import x\n")
    found = {m.path.removeprefix("kernel_lib/") for m in sources.needed(members, [start])}
    out = {"b/unused.py", "b/page.html", "data/__init__.py", "data/drawn.py"}
    assert found == texts.keys() - out
    everything = [start, sources.Member("m.py", "import kernel_lib.b.unused\n")]
    assert {m.path for m in members} - {m.path for m in sources.needed(members, everything)} == {
        "kernel_lib/data/__init__.py",
        "kernel_lib/data/drawn.py",
    }


def test_no_module_of_the_library_is_imported_by_a_computed_name(project_root: Path):
    """Else a kernel would lack it. The command line's are the stages that a kernel is made of."""
    names = {"import_module", "__import__", "run_module", "run_path"}
    for member in sources.collect(project_root):
        if member.path.endswith(".py") and member.path != "kernel_lib/__main__.py":
            used = {
                getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(ast.parse(member.text))
            }
            assert not used & names, member.path


def test_no_kernel_of_the_project_carries_what_draws_phantoms(project_root: Path):
    members = sources.collect(project_root)
    for stage in ("train", "thresholds", "inference"):
        path = f"notebooks/{stage}.py"
        start = sources.Member(path, (project_root / path).read_text())
        found = {member.path for member in sources.needed(members, [start])}
        assert {f"kernel_lib/stages/{stage}.py", "kernel_lib/__main__.py"} <= found
        assert not [name for name in found if "phantom" in name]
        assert ("kernel_lib/stages/report.py" in found) is (stage != "train")


def test_files_that_no_kernel_can_carry_are_named(project: Path):
    (project / "kernel_lib" / "viewer" / "icon.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"kernel_lib/viewer/icon\.png is not UTF-8 at byte 0"):
        sources.collect(project)


def test_a_module_that_is_not_python_is_named_with_its_line(project: Path):
    (project / "kernel_lib" / "broken.py").write_text("x = 1\ny = (\n")
    with pytest.raises(InputError, match=r"kernel_lib/broken\.py:2 is not Python"):
        sources.ordered(sources.collect(project))


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
    members = sources.ordered(sources.collect(project_root))
    files = written_files(bundle.library_source(members, "test", bundle.Cargo()))
    for path, (_, text) in files.items():
        assert text.encode("utf-8") == (project_root / path).read_bytes()
    assert os.path.commonpath(files) == "kernel_lib"
    assert {".py", ".json", ".html", ".css", ".js"} <= {Path(path).suffix for path in files}
