"""What a kernel will miss on Kaggle, said at its build."""

from __future__ import annotations

import json

import pytest

from kernel_build import needs
from kernel_lib.errors import InputError

NOTHING = {"dataset_sources": [], "model_sources": [], "competition_sources": ["siim"],
           "kernel_sources": [], "enable_internet": False}  # fmt: skip
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
    words = "deeplabv3plus_resnet_512_v1_seed7, and no kernel with it is attached"
    with pytest.raises(InputError, match=f"{words}: give --kernel-source OWNER/SLUG"):
        missed(EXPERIMENT=ROW, SEED=7)
    assert missed(EXPERIMENT=ROW, attached={"kernel_sources": ["me/train-512"]}) == []
    assert missed(EXPERIMENT=ROW, attached={"model_sources": ["me/nets/pyTorch/512/1"]}) == []
    (weights,) = missed(EXPERIMENT=ROW, WITH_PARENTS=True)
    assert weights.startswith("needs ImageNet weights of resnet101")


def test_what_gates_a_run_is_named_for_the_thresholds():
    gate, weights = sorted(missed(EXPERIMENT="two_step"), key=lambda words: "ImageNet" in words)
    assert "the run two_step_classifier_512_v1_seed3456, which gates" in gate
    assert weights.startswith("needs ImageNet weights of resnet34")


def test_nih_rows_need_a_data_set():
    assert any("NIH" in one for one in missed(EXPERIMENT="nih_UNetResNet34_v1", WEIGHTS="none"))


@pytest.mark.parametrize(
    ("stage", "values", "words"),
    [
        ("train", {"EXPERIMENT": "UNetResNet34_512_v9"}, "'UNetResNet34_512_v9' is unknown"),
        ("train", {"SIZE": 500}, "the nearest is 512"),
        ("train", {"FOLD": 5}, "FOLD 5 is not below N_FOLDS 5"),
        ("train", {"LOSS": "bse"}, "loss 'bse' is unknown; nearest: bce"),
        ("train", {"ENCODER": "convnext_atto"}, "nearest: tu-convnext_atto,"),
        ("train", {"ENCODER": "tu-vit_tiny_patch16_224"}, "does not fit UNet at 512 px"),
        ("train", {"ENCODER": "tu-mobilenetv2_035"}, "nobody publishes ImageNet weights"),
        ("train", {"SAMPLING": "nonemtpy"}, "nearest: nonempty"),
        ("train", {"AUGMENT": "nots"}, "nearest: notes"),
        ("train", {"MONITOR": "dise"}, "nearest: dice"),
        ("train", {"TTA": "hflop"}, "hflop"),
        ("train", {"OPTIMIZER": "adam"}, "optimizer 'adam' is unknown; nearest: adamw"),
        ("train", {"WEIGHTS": "imagenett"}, "'imagenett' is neither .* nearest: imagenet"),
        ("train", {"WEIGHTS": "a.pth"}, "WEIGHTS a.pth is not there on Kaggle"),
        ("train", {"WEIGHTS": "none", "WEIGHTS_ARE": "imagenet"}, "leave WEIGHTS_ARE out"),
        ("train", {"DATA_DIR": "~/siim"}, "DATA_DIR ~/siim is not there on Kaggle"),
        ("train", {"DEVICE": "gpu"}, "DEVICE 'gpu'"),
        ("train", {"DEVICE": "cuda:1", "PROCESSES": 2}, "is one GPU"),
        ("train", {"DEVICE": "cpu", "PRECISION": "float16"}, "PRECISION float16 needs a GPU"),
        ("train", {"PRECISION": "half"}, "PRECISION = 'half'"),
        ("train", {"SEED": "one"}, "SEED = 'one'"),
        ("inference", {"TTA": "hflop"}, "hflop"),
        ("inference", {"SAMPLE": "sample.csv"}, "SAMPLE sample.csv is not there on Kaggle"),
        ("thresholds", {"BOOTSTRAP": 1}, "BOOTSTRAP = 1"),
        ("thresholds", {"GATE": "lable"}, "GATE = 'lable'"),
        ("thresholds", {"RUNS": "lite0_256"}, "nearest: lite0_256_seed3456"),
        ("thresholds", {"RUNS": "a_seed1", "COMBINE": "member_vote"}, "name two or more"),
        ("thresholds", {"ENSEMBLE": "notes_best", "AT_LEAST": 2}, "at_least 2"),
        ("thresholds", {"ENSEMBLE": "mine.json"}, "ENSEMBLE mine.json is not there on Kaggle"),
    ],
)
def test_what_the_stage_would_refuse_is_refused_at_the_build(stage: str, values: dict, words: str):
    with pytest.raises(InputError, match=words):
        missed(stage, **values)


def test_inputs_are_given_as_kaggle_mounts_them():
    for place in ("/kaggle/input/x", "../input/x"):
        assert missed(WEIGHTS="none", DATA_DIR=place, GROUPS=f"{place}/nih_id.csv") == []
    assert missed(WEIGHTS="/kaggle/input/x/a.pth") == missed(WEIGHTS="lite0_256_seed1") == []


def test_other_stages_miss_nothing():
    assert missed("thresholds") == missed("inference", TTA="none") == []


def test_an_experiment_of_the_user_s_own_is_checked_and_its_needs_named():
    rows = [{"name": "a", "encoder": "resnet18"}, {"name": "b", "parent": "a", "weights": "a"}]
    with pytest.raises(InputError, match="b_seed3456 starts from the run a_seed3456"):
        missed(EXPERIMENT=json.dumps(rows))
    (weights,) = missed(EXPERIMENT=json.dumps(rows), WITH_PARENTS=True)
    assert weights.startswith("needs ImageNet weights of resnet18")
    rows[1]["network"] = "UNt"
    with pytest.raises(InputError, match="UNt"):
        missed(EXPERIMENT=json.dumps(rows))
