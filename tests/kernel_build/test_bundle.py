"""Built kernels as files: the same bytes, the right shape, refused when they cannot be pushed."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import nbformat
import pytest

from kernel_build import bundle, metadata
from kernel_lib.errors import InputError
from kernel_lib.stages.table import STAGES

EVERY = list(product(STAGES, metadata.KINDS))


@pytest.mark.parametrize("kind", metadata.KINDS)
def test_the_same_sources_give_the_same_bytes(project: Path, tmp_path: Path, kind: str):
    given = (("SIZE", "1024"), ("SEED", "5"))
    first = bundle.build(project, "train", kind, given=given)
    content = first.code_file.read_bytes()
    shutil.copytree(project / "kernel_lib", tmp_path / "copy" / "kernel_lib")
    shutil.copytree(project / "notebooks", tmp_path / "copy" / "notebooks")
    shutil.copy(project / "kernel-metadata.json", tmp_path / "copy")
    again = bundle.build(tmp_path / "copy", "train", kind, given=given, out=tmp_path / "out")
    assert again.code_file.read_bytes() == content
    assert bundle.build(project, "train", kind, given=given).code_file.read_bytes() == content


@pytest.mark.parametrize("kind", metadata.KINDS)
def test_a_kernel_is_one_code_file_and_its_metadata(project: Path, kind: str):
    kernel = bundle.build(project, "train", kind, owner="me")
    names = sorted(path.name for path in kernel.folder.iterdir())
    assert names == sorted([kernel.code_file.name, "kernel-metadata.json"])
    meta = json.loads((kernel.folder / "kernel-metadata.json").read_text())
    assert meta["code_file"] == kernel.code_file.name
    assert meta["id"] == f"me/{kernel.folder.name}"
    assert not list((project / "build").glob(".*"))


def test_the_library_stands_readable_under_banners(project: Path):
    text = bundle.build(project, "train", "script").code_file.read_text()
    source = (project / "kernel_lib" / "stages.py").read_text()
    assert source in text
    assert f"  kernel_lib/stages.py  |  {source.count(chr(10))} lines  " in text
    assert "base64" not in text


def test_a_notebook_kernel_is_the_notebook_with_a_folded_library(project: Path):
    given = (("SIZE", "1024"), ("NAME", "x"))
    kernel = bundle.build(project, "train", "notebook", given=given)
    notebook = nbformat.read(kernel.code_file, as_version=4)
    nbformat.validate(notebook)
    words, library, defaults, injected, config, run = notebook.cells
    assert library.metadata["jupyter"] == {"source_hidden": True}
    assert library.metadata["_kg_hide-input"] is True
    assert words.cell_type == "markdown"
    assert words.source.startswith("# Train: x, seed 3456, every fold\nIt says")
    # Each template of nbconvert gives a tag to styles so.
    assert f"<style>.celltag_{library.metadata.tags[0]} " in words.source
    assert defaults.metadata["tags"] == ["parameters"]
    assert injected.metadata["tags"] == ["injected-parameters"]
    assert injected.source == "# Parameters\nSIZE = 1024\nNAME = 'x'"
    assert config.source.startswith("from kernel_lib import stages")
    assert run.source.endswith("stages.run(FAIL)")
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_without_parameters_nothing_is_injected(project: Path):
    kernel = bundle.build(project, "train", "notebook")
    assert "injected-parameters" not in kernel.code_file.read_text()


@pytest.mark.parametrize("kind", metadata.KINDS)
def test_a_kernel_of_a_megabyte_is_refused_with_its_largest_parts(project: Path, kind: str):
    (project / "kernel_lib" / "big.txt").write_text("x" * 995_000)
    with pytest.raises(InputError) as caught:
        bundle.build(project, "train", kind)
    assert "kernel_lib/big.txt 995,000" in str(caught.value)
    assert "1,000,000 or more" in str(caught.value)
    assert not (project / "build").exists()


def test_a_notebook_is_measured_as_the_cli_sends_it(project: Path):
    """Every ü is six bytes in the JSON that is sent, two in the file."""
    (project / "kernel_lib" / "letters.txt").write_text("ü" * 200_000)
    assert bundle.build(project, "train", "script").size_bytes < 500_000
    with pytest.raises(InputError, match="the notebook kernel has 1,2"):
        bundle.build(project, "train", "notebook")


def test_an_unknown_parameter_stops_before_anything_is_written(project: Path):
    with pytest.raises(InputError, match=r"notebooks/train\.py: parameter .SIZES. is .* SIZE"):
        bundle.build(project, "train", "script", given=(("SIZES", "1024"),))
    assert not (project / "build").exists()


@pytest.mark.parametrize(
    ("name", "added", "words"),
    [
        (
            "kernel_lib/data/page.html",
            "''' \"\"\"",
            r"kernel_lib/data/page\.html cannot be embedded",
        ),
        ("notebooks/train.py", "\n# %%\n# %matplotlib inline\n", r"cell 6 of notebooks/train\.py"),
        ("notebooks/train.py", None, "there is no train kernel"),
    ],
)
def test_a_file_that_no_kernel_can_hold_is_named(project: Path, name: str, added, words: str):
    path = project / name
    if added is None:
        path.unlink()
    else:
        path.write_text((path.read_text() if path.exists() else "") + added)
    with pytest.raises(InputError, match=words):
        bundle.build(project, "train", "script")


def test_a_folder_with_other_things_is_not_replaced(project: Path):
    kernel = bundle.build(project, "train", "script")
    (kernel.folder / "thesis.txt").write_text("")
    with pytest.raises(InputError, match=r"holds thesis\.txt, which no build wrote"):
        bundle.build(project, "train", "script")


@pytest.mark.parametrize(("stage", "kind"), EVERY)
def test_the_project_s_own_kernels_can_be_pushed(
    project_root: Path, tmp_path: Path, stage: str, kind: str
):
    kernel = bundle.build(project_root, stage, kind, owner="me", out=tmp_path)
    assert kernel.size_bytes < 1_000_000
    meta = json.loads((kernel.folder / "kernel-metadata.json").read_text())
    assert metadata.problems(meta) == []
    if kind == "notebook":
        nbformat.validate(nbformat.read(kernel.code_file, as_version=4))
    else:
        compile(kernel.code_file.read_text(encoding="utf-8"), str(kernel.code_file), "exec")


@pytest.mark.parametrize("kind", metadata.KINDS)
def test_a_file_s_experiment_travels_as_its_text(project_root: Path, tmp_path: Path, kind: str):
    row = {"name": "mine", "says": 'it\'s "mine"', "size": 64}
    (tmp_path / "mine.json").write_text(json.dumps(row, indent=1))
    given = (("EXPERIMENT", str(tmp_path / "mine.json")), ("FOLD", "0"))
    kernel = bundle.build(project_root, "train", kind, given=given, out=tmp_path)
    assert json.loads(kernel.parameters["EXPERIMENT"]) == row
    assert str(tmp_path) not in kernel.code_file.read_text()
