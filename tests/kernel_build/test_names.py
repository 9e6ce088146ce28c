"""Names of kernels: valid, saying what they are, and never two alike."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_build import metadata, names
from kernel_lib.experiments import EXPERIMENTS

DEFAULTS = {"EXPERIMENT": "UNetResNet34_512_v1", "SEED": 3456, "FOLD": None, "SIZE": None}


def train(kind: str = "notebook", part: int | None = None, **values: object) -> str:
    return names.slug("train", kind, values, DEFAULTS, part)


def is_valid(slug: str) -> bool:
    title = names.title(slug)
    return (
        re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) is not None
        and 5 <= len(slug) <= 50
        and len(title) == len(slug)
        and names.slugify(title) == slug
    )


@pytest.mark.parametrize(
    ("slug", "expected"),
    [
        (names.slug("train", "notebook"), "pneumothorax-train"),
        (names.slug("thresholds", "script"), "pneumothorax-thresholds-script"),
        (train(FOLD=0), "train-unetresnet34-512-v1-seed3456-fold0"),
        (
            train(EXPERIMENT="deeplabv3plus_resnet_1024_v2", SEED=5678, FOLD=0),
            "train-deeplabv3plus-resnet-1024-v2-seed5678-fold0",
        ),
        (
            train(EXPERIMENT="deeplabv3plus_supervision_resnet_1024_v1", SEED=5678, FOLD=0),
            "train-dlv3p-sup-rn-1024-v1-s5678-f0",
        ),
        (
            train("script", 2, EXPERIMENT="multitask_UNetResNet34_512_v1", FOLD=4),
            "train-multi-unet34-512-v1-s3456-f4-py-p2",
        ),
        (
            names.slug("thresholds", "notebook", {"RUNS": "two_step_seed3456"}),
            "thresholds-two-step-seed3456",
        ),
        (names.slug("inference", "notebook", {"ENSEMBLE": "best"}), "inference-best"),
    ],
)
def test_a_name_says_what_the_kernel_is(slug: str, expected: str):
    assert slug == expected
    assert is_valid(slug)


def test_parameters_that_a_name_cannot_show_are_a_hash_at_its_end():
    plain, sized, other = train(FOLD=0), train(FOLD=0, SIZE=768), train(FOLD=0, SIZE=1024)
    assert re.fullmatch(re.escape(plain) + "-[0-9a-f]{6}", sized)
    assert len({plain, sized, other}) == 3
    assert train(SIZE=768, FOLD=0) == sized  # whatever their order
    assert train(FOLD=0, SIZE=None, SEED=3456) == plain  # what the notebook says anyway


def test_what_is_cut_or_ambiguous_has_a_hash():
    runs = ",".join(f"multitask_UNetResNet34_512_v1_seed{seed}" for seed in range(3))
    slugs = [names.slug("thresholds", "script", {"RUNS": runs + end}) for end in ("", "2", ",x")]
    assert len(set(slugs)) == 3
    assert all(is_valid(slug) and len(slug) > 45 and "-py-" in slug for slug in slugs)
    joined = {names.slug("inference", "notebook", {"ENSEMBLE": e}) for e in ("a+b", "a.b", "a_b")}
    assert len(joined) == 3


def test_every_row_s_kernels_have_names_of_their_own():
    every = [
        train(kind, part, EXPERIMENT=row, SEED=seed, FOLD=fold)
        for row, kind, part, seed, fold in product(
            EXPERIMENTS, metadata.KINDS, (None, 1, 12), (3456, 12345), (None, 0, 9)
        )
    ]
    assert len(set(every)) == len(every)
    assert all(map(is_valid, every))


WORDS = st.lists(
    st.sampled_from([*names.ABBREVIATIONS, *names.ABBREVIATIONS.values(), "v1", "1024", "x+y"]),
    min_size=1,
    max_size=9,
).map("_".join)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"EXPERIMENT": WORDS, "SEED": st.integers(0, 9999)}, optional={"SIZE": st.just(64)}
        ),
        min_size=2,
        max_size=2,
        unique_by=repr,
    ),
    st.sampled_from(metadata.KINDS),
)
def test_other_parameters_give_another_name(two: list[dict], kind: str):
    one, other = (train(kind, **values) for values in two)
    assert one != other
    assert is_valid(one)


def test_abbreviations_are_shorter_and_differ():
    assert all(len(short) < len(word) for word, short in names.ABBREVIATIONS.items())
    assert len(set(names.ABBREVIATIONS.values())) == len(names.ABBREVIATIONS)
    assert names.shorten("folds-fold3-unfold-seedling") == "folds-f3-unfold-seedling"


def test_an_experiment_s_json_and_a_run_s_name_are_shown_by_name():
    row = '{"name": "lite0_384", "size": 384}'
    assert train(EXPERIMENT=row, FOLD=0) == "train-lite0-384-seed3456-fold0"
    named = train(EXPERIMENT=row, NAME="short", LR=0.5, FOLD=0)
    assert re.fullmatch(r"train-short-seed3456-fold0-[0-9a-f]{6}", named)
    assert named != train(EXPERIMENT=row, NAME="short", LR=0.6, FOLD=0)
