"""kernel-metadata.json: valid for every stage and kind, its owner found and filled in."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from kernel_build import accelerators, metadata, names
from kernel_build.metadata import Sources
from kernel_lib.errors import InputError
from kernel_lib.stages.table import STAGES

COMPETITION = "siim-acr-pneumothorax-segmentation"
EVERY = list(product(STAGES, metadata.KINDS))


def test_the_root_s_own_file_is_a_pushable_base(project_root: Path):
    base = metadata.read_base(project_root)
    assert metadata.problems(base) == []
    assert base["enable_internet"] is False
    assert base["competition_sources"] == [COMPETITION]
    assert base["kernel_type"] == "notebook"
    slug = names.slug("train", "notebook")
    assert base["id"].endswith(f"/{slug}")
    assert base["code_file"] == f"build/{slug}/{slug}.ipynb"


@pytest.mark.parametrize(("stage", "kind"), EVERY)
def test_every_kernel_s_metadata_is_whole(project: Path, stage: str, kind: str):
    meta = metadata.of_kernel(metadata.read_base(project), stage, kind, "someone", "code")
    assert metadata.problems(meta) == []
    owner, slug = meta["id"].split("/")
    assert owner == "someone"
    assert names.slugify(meta["title"]) == slug
    assert 5 <= len(meta["title"]) <= 50
    assert meta["enable_gpu"] is (stage != "thresholds")
    assert bool(meta["machine_shape"]) is (stage != "thresholds")
    assert meta["enable_internet"] is False
    assert meta["enable_tpu"] is False
    assert meta["kernel_type"] == kind
    assert meta["competition_sources"] == [COMPETITION]
    end = "-script" if kind == "script" else ""
    earlier = {"train": [], "thresholds": ["train"], "inference": ["train", "thresholds"]}[stage]
    assert meta["kernel_sources"] == [f"someone/pneumothorax-{name}{end}" for name in earlier]


def test_given_sources_replace_those_of_the_stage(project: Path):
    base = metadata.read_base(project) | {"dataset_sources": ["me/always"]}
    base["model_sources"] = ["me/nets/pyTorch/always/1"]

    def of(**given: object) -> dict:
        return metadata.of_kernel(base, "inference", "script", "me", "c", sources=Sources(**given))

    models = ("google/gemma/transformers/2b-it/2", "me/qwen2.5-3b_x/PyTorch/v1.0/14")
    datasets = ("me/weights", "me/always")
    meta = of(data="else/siim-png", datasets=datasets, kernels=("me/train-a",), models=models)
    assert meta["dataset_sources"] == ["else/siim-png", "me/always", "me/weights"]
    assert meta["competition_sources"] == []
    assert meta["kernel_sources"] == ["me/train-a"]
    assert meta["model_sources"] == ["me/nets/pyTorch/always/1", *models]
    assert metadata.problems(meta) == []
    other = of(data="another-competition")
    assert other["competition_sources"] == ["another-competition"]
    assert other["dataset_sources"] == ["me/always"]
    with pytest.raises(InputError, match="dataset_sources: 'x/y/z' is not OWNER/SLUG"):
        of(datasets=("x/y/z",))


@pytest.mark.parametrize(
    "model",
    ["google/gemma", "me/nets/pyTorch/x", "me/nets/pyTorch/x/latest", "me/nets/pyTorch/x/1/2",
     "me//pyTorch/x/1", "me/nets/py torch/x/1", "models/me/nets/pyTorch/x/1"],
)  # fmt: skip
def test_a_malformed_model_is_refused_in_a_sentence(model: str):
    with pytest.raises(InputError, match="is not OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, such as"):
        Sources(models=(model,))


@pytest.mark.parametrize("shape", ["", *accelerators.ACCELERATORS])
def test_every_gpu_of_kaggle_s_is_let_through(project: Path, shape: str):
    meta = metadata.read_base(project) | {"machine_shape": shape}
    assert metadata.problems(meta) == []
    assert len(metadata.notes(meta)) == (shape not in ("", "NvidiaTeslaT4"))


def test_a_name_of_one_s_own_is_id_and_title(project: Path):
    base = metadata.read_base(project)
    meta = metadata.of_kernel(base, "train", "script", "me", "code", name="train-x-part2")
    assert (meta["id"], meta["title"]) == ("me/train-x-part2", "Train x part2")
    with pytest.raises(InputError, match="'me/Train_x' is not owner/slug"):
        metadata.of_kernel(base, "train", "script", "me", "code", name="Train_x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "pneumothorax-train"}, "owner/slug"),
        ({"id": "me/abc", "title": "abc"}, "5 to 50"),
        ({"title": "Another"}, "becomes 'another'"),
        ({"title": "x" * 51}, "51 characters"),
        ({"enable_internet": None}, "enable_internet is None; write true or false"),
        ({"enable_gpu": "true"}, "enable_gpu is 'true'"),
        ({"dataset_sources": "me/data"}, "write a list"),
        ({"dataset_sources": ["data"]}, "dataset_sources: 'data' is not OWNER/SLUG"),
        ({"dataset_sources": ["me/a-b", "me/a-b"]}, "dataset_sources names me/a-b twice"),
        ({"kernel_sources": ["me/abc"]}, "with a slug of 5 to 50"),
        ({"competition_sources": ["c/x"]}, "competition's address"),
        ({"model_sources": ["me/model/pyTorch/base"]}, "FRAMEWORK/VARIATION/VERSION"),
        ({"kernel_type": "jupyter"}, "kernel_type"),
        ({"language": "r"}, "language is 'r'; write python"),
        ({"code_file": ""}, "code_file is missing"),
        ({"docker_image_pinning_type": "newest"}, "write original or latest"),
        ({"enable_tpu": True}, "enable_tpu is true, and nothing here runs on a TPU; write false"),
        ({"dataset_source": []}, "dataset_source is not a key"),
        ({"dataset_source": []}, "misreads it; write dataset_sources"),
        ({"id_no": 12}, "misreads it; leave it out"),
        ({"title": 5}, "title is 5, "),
        ({"keywords": "gpu"}, "keywords is 'gpu'; write a list"),
        ({"enable_interne": True}, "write enable_internet"),
        ({"machine_shape": "nvidiateslap100 "}, "gives NvidiaTeslaT4, two T4, in its place"),
        ({"machine_shape": "Tpu1VmV38"}, "is retired, and Kaggle gives TpuV5E8 in its place"),
        ({"machine_shape": "TpuV5E8"}, "is a TPU, which nothing here uses; write NvidiaTeslaT4"),
        ({"machine_shape": "nvidiaTeslaT4"}, "; write NvidiaTeslaT4"),
        ({"machine_shape": "L4"}, "; write NvidiaL4"),
        ({"machine_shape": "NvidiaTeslaT4Highmem"}, "write NvidiaTeslaT4"),
    ],
)
def test_what_kaggle_would_refuse_or_misread_is_found(project: Path, change: dict, words: str):
    meta = metadata.read_base(project) | change
    assert any(words in problem for problem in metadata.problems(meta))


def test_a_boolean_missing_from_the_base_stops_the_build(project: Path):
    base = metadata.read_base(project)
    del base["enable_internet"]
    with pytest.raises(InputError, match=r"internet is missing, and .* sends true"):
        metadata.of_kernel(base, "train", "script", "me", "code")


def test_the_owner_comes_from_the_nearest_place(project: Path, tmp_path: Path):
    home = tmp_path / "home"
    (home / ".kaggle").mkdir(parents=True)
    assert metadata.find_owner(project, metadata.PLACEHOLDER, {}, home) is None
    metadata.fill_owner(project, "in-root")
    assert metadata.find_owner(project, None, {}, home) == ("in-root", "kernel-metadata.json")
    log_in = home / ".kaggle" / "credentials.json"
    log_in.write_text('{"username": "logged-in"}')
    assert metadata.find_owner(project, None, {}, home) == ("logged-in", str(log_in))
    file = home / ".kaggle" / "kaggle.json"
    file.write_text(json.dumps({"username": "in-file", "key": "k"}))
    assert metadata.find_owner(project, None, {}, home) == ("in-file", str(file))
    environ = {"KAGGLE_USERNAME": "in-env"}
    assert metadata.find_owner(project, None, environ, home) == ("in-env", "KAGGLE_USERNAME")
    assert metadata.find_owner(project, "given", environ, home) == ("given", "--owner")
    owner, _ = metadata.find_owner(project, metadata.PLACEHOLDER, environ, home)
    assert owner == "in-env"  # the placeholder is nobody's name


@pytest.mark.parametrize("variable", ["KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"])
def test_kaggle_s_file_may_lie_elsewhere(project: Path, tmp_path: Path, variable: str):
    folder = tmp_path / "elsewhere"
    file = folder / ("kaggle" if variable.startswith("XDG") else ".") / "kaggle.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"username": "me"}')
    owner, _ = metadata.find_owner(project, None, {variable: str(folder)}, tmp_path / "home")
    assert owner == "me"


def test_an_impossible_owner_and_a_broken_file_of_kaggle_s_are_named(project, tmp_path: Path):
    with pytest.raises(InputError, match="'a b'"):
        metadata.find_owner(project, "a b", {}, tmp_path)
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text("{")
    with pytest.raises(InputError, match=r"kaggle\.json is not Kaggle's JSON; give --owner"):
        metadata.find_owner(project, None, {}, tmp_path)


def test_filling_the_owner_changes_nothing_else(project: Path):
    before = metadata.read_base(project)
    assert metadata.fill_owner(project, "me") is True
    assert metadata.fill_owner(project, "me") is False
    assert metadata.read_base(project) == before | {"id": "me/pneumothorax-train"}


def test_a_missing_or_broken_base_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        metadata.read_base(tmp_path)
    (tmp_path / "kernel-metadata.json").write_text("{'id': 1}")
    with pytest.raises(InputError, match="is not JSON"):
        metadata.read_base(tmp_path)
