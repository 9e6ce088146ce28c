"""What a kernel will miss on Kaggle, said at its build."""

from __future__ import annotations

import json

import pytest

from kernel_build import needs
from kernel_lib.errors import InputError

NOTHING = {
    "dataset_sources": [],
    "model_sources": [],
    "competition_sources": ["siim"],
    "kernel_sources": [],
    "enable_internet": False,
}
ROW = "deeplabv3plus_resnet_1024_v1"  # starts from the run at 512


def missed(stage: str = "train", *, attached: dict | None = None, **values: object) -> list[str]:
    return list(needs.unmet(stage, values, NOTHING | (attached or {})))


def test_imagenet_weights_need_a_data_set_without_internet():
    (words,) = missed(EXPERIMENT="UNetResNet34_512_v1")
    assert words.startswith("needs ImageNet weights of resnet34: they cannot be downloaded")
    images = {"dataset_sources": ["you/images"], "competition_sources": []}
    assert missed(attached=images) == [words]
    assert missed(attached=images | {"dataset_sources": ["you/images", "me/weights"]}) == []
    assert missed(attached={"dataset_sources": ["me/weights"]}) == []
    assert missed(attached={"enable_internet": True}) == []
    assert missed(attached={"model_sources": ["me/nets/pyTorch/resnet34/1"]}) == []
    assert missed(WEIGHTS="none") == []
    assert missed(EXPERIMENT="demo_UNetResNet10_128_v1") == []


def test_an_offline_data_set_is_looked_into():
    def given(*files: str) -> list[str]:
        meta = NOTHING | {"dataset_sources": ["me/offline"]}
        listed = {"dataset": "me/offline", "files": dict.fromkeys(files)}
        return list(needs.unmet("train", {"EXPERIMENT": "UNetResNet34_512_v1"}, meta, listed))

    assert given("resnet34-333f7ec4.pth") == given("a.whl", "resnet34.safetensors") == []
    (words,) = given("resnet18-f37072fd.pth", "resnet34-1.0-py3-none-any.whl", "xresnet34.pth")
    assert words.startswith("needs ImageNet weights of resnet34: me/offline holds none, and they")


def test_a_run_that_starts_from_another_needs_its_kernel():
    words = "needs the run deeplabv3plus_resnet_512_v1_seed7: attach its kernel with"
    assert missed(EXPERIMENT=ROW, SEED=7) == [f"{words} --kernel-source OWNER/SLUG"]
    assert missed(EXPERIMENT=ROW, attached={"kernel_sources": ["me/train-512"]}) == []
    assert missed(EXPERIMENT=ROW, attached={"model_sources": ["me/nets/pyTorch/512/1"]}) == []
    (weights,) = missed(EXPERIMENT=ROW, WITH_PARENTS=True)
    assert weights.startswith("needs ImageNet weights of resnet101")


def test_nih_rows_need_a_data_set():
    assert any("NIH" in one for one in missed(EXPERIMENT="nih_UNetResNet34_v1", WEIGHTS="none"))


@pytest.mark.parametrize(
    ("stage", "values", "words"),
    [
        ("train", {"EXPERIMENT": "UNetResNet34_512_v9"}, "no row of experiments"),
        ("train", {"SIZE": 500}, "the nearest that is: 512"),
        ("train", {"FOLD": 5}, "FOLD 5 is not below N_FOLDS 5"),
        ("inference", {"TTA": "hflop"}, "hflop"),
        ("thresholds", {"BOOTSTRAP": 1}, "BOOTSTRAP = 1"),
    ],
)
def test_what_the_stage_would_refuse_is_refused_at_the_build(stage: str, values: dict, words: str):
    with pytest.raises(InputError, match=words):
        missed(stage, **values)


def test_other_stages_miss_nothing():
    assert missed("thresholds") == missed("inference", TTA="none") == []


def test_an_experiment_of_the_user_s_own_is_checked_and_its_needs_named():
    rows = [{"name": "a", "encoder": "resnet18"}, {"name": "b", "parent": "a", "weights": "a"}]
    (run,) = missed(EXPERIMENT=json.dumps(rows))
    assert run.startswith("needs the run a_seed3456: ")
    (weights,) = missed(EXPERIMENT=json.dumps(rows), WITH_PARENTS=True)
    assert weights.startswith("needs ImageNet weights of resnet18")
    rows[1]["network"] = "UNt"
    with pytest.raises(InputError, match="UNt"):
        missed(EXPERIMENT=json.dumps(rows))
