"""Names of kernels: valid, beginning with their run's name, never with a hash."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_build import metadata, names
from kernel_lib.config import TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.plan import plan_training


def train(kind: str = "notebook", fold: int | None = None, **values: object) -> str:
    run = plan_training(TrainParameters(**values), EXPERIMENTS).run
    return names.slug("train", kind, run, fold)


def is_valid(slug: str) -> bool:
    title = names.title(slug)
    return (
        re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) is not None
        and 5 <= len(slug) <= 50
        and len(title) == len(slug)
        and names.slugify(title) == slug
    )


RUN = "deeplabv3plus_resnet_1024_v2_seed5678"


@pytest.mark.parametrize(
    ("slug", "expected"),
    [
        (names.slug("train", "notebook"), "pneumothorax-train"),
        (names.slug("thresholds", "script"), "pneumothorax-thresholds-script"),
        (names.slug("train", "notebook", RUN), "deeplabv3plus-resnet-1024-v2-s5678"),
        (names.slug("train", "script", RUN, 0), "deeplabv3plus-resnet-1024-v2-s5678-f0-script"),
        (names.slug("thresholds", "notebook", RUN),
         "deeplabv3plus-resnet-1024-v2-s5678-thresholds"),
        (names.slug("thresholds", "script", RUN), "deeplabv3plus-resnet-1024-v2-s5678-thr-py"),
        (names.slug("inference", "notebook", "notes_best"), "notes-best-inference"),
        (train(experiment="deep_supervision_UNetResNet34_512_v1", fold=4),
         "deep-supervision-unetresnet34-512-v1-s3456-f4"),
        (train(experiment="deeplabv3plus_supervision_resnet_1024_v1", fold=0),
         "dlv3p-sup-rn-1024-v1-s3456-f0"),
        (train(name="short", lr=0.5, seed=7, fold=0), "short-s7-f0"),
        (train(size=256, epochs=3, fold=1), "unetresnet34-512-v1-size256-epochs3-s3456-f1"),
    ],
)  # fmt: skip
def test_a_name_says_what_the_kernel_is(slug: str, expected: str):
    assert slug == expected
    assert is_valid(slug)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"ENSEMBLE": "notes_best"}, "notes_best"),
        ({"ENSEMBLE": "/kaggle/input/x/mine.json"}, "mine"),
        ({"RUNS": "a_seed1"}, "a_seed1"),
        ({"RUNS": "a_seed1,b_seed2", "ENSEMBLE": "both"}, "both"),
        ({"BOOTSTRAP": 100}, None),
    ],
)
def test_an_ensemble_is_called_as_its_parameters_say(values: dict, name: str | None):
    assert names.ensemble(values) == name


def test_what_no_name_can_hold_is_refused_with_a_way_to_a_short_one():
    long = {"experiment": "deep_supervision_UNetResNet34_512_v1", "batch_size": 32, "lr": 0.001}
    with pytest.raises(
        InputError, match=r"_batch32_lr0.001 is too long .*-p NAME SHORT, or .*--slug"
    ):
        train(epochs=3, **long)
    assert train(name="mine", epochs=3, **long) == "mine-s3456"
    with pytest.raises(InputError, match="--slug NAME"):
        names.slug("thresholds", "notebook", ",".join(f"two_step_seed{seed}" for seed in range(5)))
    # Shortened, it would be another's.
    with pytest.raises(InputError, match="too long"):
        names.slug("train", "notebook", "att_attention_deeplabv3plus_supervision_resnet_x_seed1")


def test_every_experiment_s_kernels_have_names_of_their_own_that_begin_alike():
    every = {}
    for row, seed in product(EXPERIMENTS, (3456, 12345)):
        for kind, part in product(metadata.KINDS, (None, 0, 9)):
            every[row, seed, kind, part] = train(kind, part, experiment=row, seed=seed)
        for kind, stage in product(metadata.KINDS, ("thresholds", "inference")):
            every[row, seed, kind, stage] = names.slug(stage, kind, f"{row}_seed{seed}")
    assert len(set(every.values())) == len(every)
    assert all(map(is_valid, every.values()))
    assert all(
        slug.startswith(every[row, seed, "notebook", None])
        for (row, seed, *_), slug in every.items()
    )


WORDS = st.lists(
    st.sampled_from([*names.ABBREVIATIONS, *names.ABBREVIATIONS.values(), "v1", "1024", "x"]),
    min_size=1,
    max_size=9,
).map("_".join)


@given(
    st.lists(st.tuples(WORDS, st.integers(0, 9999)), min_size=2, max_size=2, unique=True),
    st.sampled_from(metadata.KINDS),
)
def test_another_run_has_another_name_or_none(two: list[tuple[str, int]], kind: str):
    try:
        slugs = {names.slug("train", kind, f"{name}_seed{seed}", 0) for name, seed in two}
    except InputError:
        return
    assert len(slugs) == 2
    assert all(map(is_valid, slugs))


def test_runs_that_a_run_needs_keep_their_names_or_take_the_wanted_one_s():
    ends = [names.ending("s3456", "f0", "p1"), names.ending("s3456", "inference")]
    assert names.heads(["a_b", "c"], ends) == {"a_b": "a-b", "c": "c"}
    assert names.heads(["x" * 39, "c"], ends) == {"x" * 39: "c-parent1", "c": "c"}
    heads = names.heads(["a", "b", "c"], ends, given="mine")
    assert heads == {"a": "mine-parent1", "b": "mine-parent2", "c": "mine"}
    with pytest.raises(InputError, match=r"--slug My_own cannot begin .* write my-own"):
        names.heads(["c"], ends, given="My_own")
    with pytest.raises(InputError, match="leave 38: shorten it"):
        names.heads(["c"], ends, given="x" * 39)


def test_abbreviations_are_shorter_and_differ():
    assert all(len(short) < len(word) for word, short in names.ABBREVIATIONS.items())
    assert len(set(names.ABBREVIATIONS.values())) == len(names.ABBREVIATIONS)
    assert names.shorten("resnets-resnet34-unresnet-attention") == "resnets-rn34-unresnet-att"
