"""What `build_kernel.py check` finds: each thing that Kaggle refuses or silently accepts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_build import bundle, check, offline
from kernel_lib.kaggle.packages import MANIFEST


def rewrite(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def of(folder: Path) -> list[str]:
    return check.check([folder])[folder]


PARAMETERS = {
    "train": 'EXPERIMENT: str = "demo_UNetResNet10_128_v1"\nSEED: int = 3456\nLR: float = 0.001',
    "thresholds": 'GATE: str = "auto"',
    "inference": "WORKERS: int = 0",
}


@pytest.fixture
def project(project: Path) -> Path:
    """Return the small project with parameters that its stages have."""
    for stage, cell in PARAMETERS.items():
        text = f'# %% [markdown]\n# # Title\n\n# %% tags=["parameters"]\n{cell}\n\n# %%\n1\n'
        (project / "notebooks" / f"{stage}.py").write_text(text)
    return project


@pytest.fixture
def kernel(project: Path) -> bundle.Kernel:
    return bundle.build(project, "train", "notebook", owner="me")


@pytest.mark.parametrize("kind", ["script", "notebook"])
@pytest.mark.parametrize("stage", ["train", "thresholds", "inference"])
def test_a_built_kernel_is_fine(project: Path, stage: str, kind: str):
    assert of(bundle.build(project, stage, kind, owner="me").folder) == []


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("train", {"id": "me/other-train"}, "title 'Pneumothorax train' becomes 'pneumothorax-t"),
        ("train", {"enable_internet": True}, "enable_internet is true; submissions need it off"),
        ("train", {"enable_gpu": False}, "enable_gpu is False: train runs for days on a CPU;"),
        ("train", {"enable_gpu": False}, "machine_shape NvidiaTeslaT4 without enable_gpu"),
        ("thresholds", {"enable_gpu": True}, "thresholds costs GPU quota for nothing; write false"),
        ("train", {"kernel_type": "script"}, "is not a script: kernel_type"),
        ("train", {"code_file": "gone.ipynb"}, "code_file 'gone.ipynb' is not there; run build_"),
        ("train", {"kernel_sources": ["me/pneumothorax-train"]}, "is its own source"),
        ("train", {"id": "OWNER_TO_FILL/pneumothorax-train"}, "owner is still OWNER_TO_FILL"),
    ],
)
def test_each_fault_of_the_metadata_is_a_line(project, stage: str, change: dict, words: str):
    folder = bundle.build(project, stage, "notebook", owner="me").folder
    rewrite(folder / "kernel-metadata.json", lambda meta: meta.update(change))
    assert any(words in problem for problem in of(folder))


@pytest.mark.parametrize("kind", ["script", "notebook"])
@pytest.mark.parametrize(
    ("stage", "given", "words"),
    [
        ("train", ("SEED", "-1"), "SEED = -1: "),
        ("train", ("LR", "inf"), "LR = inf: "),
        ("train", ("EXPERIMENT", "demo"), "EXPERIMENT 'demo' is unknown"),
        ("train", ("EXPERIMENT", "lite0_256"), "needs ImageNet weights of timm-tf_efficientnet_"),
        ("thresholds", ("GATE", "lable"), "GATE = 'lable': "),
    ],
)
def test_what_the_stage_would_refuse_or_miss_is_found(
    project: Path, kind: str, stage: str, given: tuple[str, str], words: str
):
    (problem,) = of(bundle.build(project, stage, kind, given=(given,), owner="me").folder)
    assert problem.startswith(words)


def test_a_default_that_was_changed_after_the_build_is_found(kernel: bundle.Kernel):
    text = kernel.code_file.read_text()
    kernel.code_file.write_text(text.replace("demo_UNetResNet10_128_v1", "demo_UNet"))
    (problem,) = of(kernel.folder)
    assert problem.startswith("EXPERIMENT 'demo_UNet' is unknown")
    kernel.code_file.write_text(text.replace("SEED: int = 3456", "SEED: int = ="))
    (problem,) = of(kernel.folder)
    assert problem.startswith(f"{kernel.code_file.name}: line 2 is not Python")


@pytest.mark.parametrize("wrong", [None, 3, "text", [3], {"a": 1}, True])
def test_a_value_of_any_type_is_a_line_and_no_traceback(project: Path, wrong: object):
    folder = bundle.build(project, "train", "script", owner="me").folder
    file = folder / "kernel-metadata.json"
    right = json.loads(file.read_text())
    for key in right:
        if right[key] is wrong:
            continue
        file.write_text(json.dumps(right | {key: wrong}))
        assert check.notes(folder) == []
        # Without an accelerator of its own, the default is given.
        assert bool(of(folder)) is ((key, wrong) != ("machine_shape", None)), key


def test_a_second_code_file_is_found(kernel: bundle.Kernel):
    (kernel.folder / "mine.py").write_text("")
    (problem,) = of(kernel.folder)
    assert problem.startswith(f"mine.py is not pushed, only {kernel.code_file.name} is")


def test_a_megabyte_is_found_as_it_is_sent(kernel: bundle.Kernel):
    """Outputs are dropped by the push and do not count; escapes are made by it and do."""

    def add(notebook: dict, source: str, text: str) -> None:
        output = {"output_type": "stream", "name": "stdout", "text": [text]}
        notebook["cells"][-1] |= {"source": [source], "outputs": [output]}

    rewrite(kernel.code_file, lambda notebook: add(notebook, "", "x" * 1_100_000))
    (problem,) = of(kernel.folder)
    assert problem.startswith("1 cells have outputs")
    rewrite(kernel.code_file, lambda notebook: add(notebook, "#" + "ü" * 170_000, ""))
    assert any("bytes, and Kaggle refuses 1,000,000 or more" in line for line in of(kernel.folder))


@pytest.mark.parametrize("key", ["widgets", "papermill"])
def test_what_a_run_left_in_a_notebook_is_found(kernel: bundle.Kernel, key: str):
    rewrite(kernel.code_file, lambda notebook: notebook["metadata"].update({key: {"a": 1}}))
    (problem,) = of(kernel.folder)
    assert problem.startswith(f"metadata holds {key}")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_code_file_that_is_none_is_found(kernel: bundle.Kernel, content: bytes):
    kernel.code_file.write_bytes(content)
    (problem,) = of(kernel.folder)
    assert problem.endswith("; build it again")


def test_a_folder_without_metadata_is_found(tmp_path: Path):
    (problem,) = of(tmp_path)
    assert problem.startswith("no kernel-metadata.json")


def test_all_that_is_built_is_checked_and_the_root_only_where_its_kernel_is(
    project: Path, data_set: Path
):
    assert check.built(project) == [project]
    given = (("SEED", "7"),)
    options = {"given": given, "owner": "me"}
    plain = bundle.build(project, "train", "script", **options).folder
    planned = bundle.build(
        project, "train", "script", out=project / "build" / "a-plan", **options
    ).folder
    data_set.rename(project / "build" / "offline")
    assert check.built(project) == [planned, project / "build" / "offline", plain]
    base = bundle.build(project, "train", "notebook", owner="me").folder
    assert check.built(project)[:1] == [project]
    assert base in check.built(project)


def test_two_kernels_of_one_id_are_found_and_the_root_s_own_is_not(project: Path, tmp_path: Path):
    first = bundle.build(project, "train", "notebook", owner="me").folder
    rewrite(project / "kernel-metadata.json", lambda meta: meta.update(id="me/pneumothorax-train"))
    assert check.built(project) == [project, first]
    assert check.check(check.built(project)) == {project: [], first: []}
    second = bundle.build(project, "train", "notebook", owner="me", out=tmp_path / "out").folder
    (text,) = check.check([first, second])[second]
    assert text == f"id me/pneumothorax-train is also that of {first}; the later push wins"


@pytest.fixture
def data_set(tmp_path: Path, make_wheel: Callable) -> Path:
    cache = tmp_path / "cache"
    make_wheel(cache / "kaggle", "thing", "1.0", {"thing.py": ""})
    contents = offline.Contents(wheels=["thing==1.0"])
    offline.write(tmp_path / "set", contents, owner="me", slug="some-things", cache=cache)
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "me/short"}, "slug of 6 to 50"),
        ({"id": "OWNER_TO_FILL/some-things"}, "owner is still"),
        ({"title": "Short"}, "5 characters; give 6 to 50"),
        ({"licenses": []}, "write exactly one"),
    ],
)
def test_each_fault_of_a_data_set_is_a_line(data_set: Path, change: dict, words: str):
    rewrite(data_set / "dataset-metadata.json", lambda meta: meta.update(change))
    (problem,) = of(data_set)
    assert words in problem


def test_a_data_set_s_damaged_file_or_manifest_is_found(data_set: Path):
    assert of(data_set) == []
    with (data_set / "thing-1.0-py3-none-any.whl").open("ab") as file:
        file.write(b"x")
    (problem,) = of(data_set)
    assert problem.startswith("thing-1.0-py3-none-any.whl differs from offline-manifest.json")
    (data_set / MANIFEST).write_text('{"dataset": "me/x"}')
    (problem,) = of(data_set)
    assert "has no complete offline-manifest.json" in problem


def test_a_data_set_s_folders_and_gaps_are_found(data_set: Path):
    gone = "thing-1.0-py3-none-any.whl"
    (data_set / "inner").mkdir()
    (data_set / gone).unlink()
    inner, listed = of(data_set)
    assert inner.startswith("inner is a folder")
    assert listed.startswith(f"{gone} is missing and listed in {MANIFEST}")
