"""The kernels of a plan: every source set, in an order in which they can be pushed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_build import bundle, graph, metadata, names
from kernel_build.graph import Node, PlannedEnsemble
from kernel_lib.config import ThresholdsParameters, TrainParameters, parse_value
from kernel_lib.errors import InputError
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.plan import plan_training


def planned(experiment: str, *seeds: int, folds: int = 2, **given) -> PlannedEnsemble:
    chains = []
    for seed in seeds:
        asked = TrainParameters(experiment=experiment, seed=seed, **given)
        wanted = plan_training(asked, EXPERIMENTS)
        chains.append((*wanted.needs(), wanted))
    runs = [chain[-1].run for chain in chains]
    ensemble = (given.get("name") or experiment) if len(seeds) > 1 else runs[0]
    decided = ThresholdsParameters(runs=",".join(runs), ensemble=ensemble)
    return PlannedEnsemble(tuple(chains), folds, decided)


def nodes(
    experiment: str, *seeds: int, hours: tuple = (1.0,), folds: int = 2, prefix=None, **given
) -> list[Node]:
    """The kernels of an experiment whose folds take these sessions, and its parents' an hour."""
    ensemble = planned(experiment, *seeds, folds=folds, **given)
    every = dict.fromkeys(ensemble.experiments, (1.0,))
    return graph.nodes(ensemble, every | {experiment: hours}, 2.0, 11.5, prefix)


def sources_by_slug(kernels: list[Node]) -> dict[str, tuple[str, ...]]:
    return {node.slug: node.sources for node in kernels}


def test_one_seed_without_parents_is_a_kernel_a_fold_and_two_more():
    kernels = nodes("UNetResNet34_512_v1", 3456)
    name = "unetresnet34-512-v1-s3456"
    folds = (f"{name}-f0", f"{name}-f1")
    assert sources_by_slug(kernels) == {
        folds[0]: (),
        folds[1]: (),
        f"{name}-thresholds": folds,
        f"{name}-inference": (*folds, f"{name}-thresholds"),
    }
    assert [node.gpu for node in kernels] == [True, True, False, True]
    given = {"EXPERIMENT": "UNetResNet34_512_v1", "SEED": "3456", "FOLD": "1", "N_FOLDS": "2"}
    assert dict(kernels[1].given) == given | {"MAX_HOURS": "11.5"}
    assert dict(kernels[2].given)["RUNS"] == "UNetResNet34_512_v1_seed3456"
    assert kernels[3].hours == 2.0


def test_a_fold_longer_than_a_session_is_a_chain_each_on_the_last_one_s_output():
    kernels = nodes("UNetResNet34_512_v1", 1, hours=(12, 12, 3))
    sources, name = sources_by_slug(kernels), "unetresnet34-512-v1-s1"
    part = f"{name}-f1-p"
    assert [sources[f"{part}{n}"] for n in (1, 2, 3)] == [(), (f"{part}1",), (f"{part}2",)]
    assert sources[f"{name}-thresholds"] == (f"{name}-f0-p3", f"{part}3")
    first, second, third = kernels[3:6]
    assert third.hours == 3
    assert first.given == second.given


def test_a_child_takes_its_parent_s_same_fold_in_each_of_its_sessions():
    sources = sources_by_slug(nodes("deeplabv3plus_resnet_1024_v1", 1, hours=(12, 3)))
    child, parent = "deeplabv3plus-resnet-1024-v1-s1", "deeplabv3plus-resnet-512-v1-s1"
    assert sources[f"{child}-f1-p1"] == (f"{parent}-f1",)
    assert sources[f"{child}-f1-p2"] == (f"{child}-f1-p1", f"{parent}-f1")
    # The ensemble needs the parents no longer.
    assert sources[f"{child}-thresholds"] == (f"{child}-f0-p2", f"{child}-f1-p2")


def test_what_gates_a_run_goes_on_to_the_thresholds():
    assert nodes("two_step", 1)[-2].sources == (
        "two-step-classifier-512-v1-s1-f0",
        "two-step-s1-f0",
        "two-step-classifier-512-v1-s1-f1",
        "two-step-s1-f1",
    )


def test_several_seeds_are_one_ensemble_under_the_experiment_s_name():
    kernels = nodes("UNetResNet34_512_v1", 1, 2, size=256, weights="none")
    assert len(kernels) == 6
    run = "UNetResNet34_512_v1_size256_fromnone_seed"
    given = {"RUNS": f"{run}1,{run}2", "ENSEMBLE": "UNetResNet34_512_v1"}
    assert dict(kernels[-2].given) == given
    assert dict(kernels[0].given).items() >= {"SIZE": "256", "WEIGHTS": "none"}.items()
    assert kernels[-1].sources == tuple(node.slug for node in kernels[:-1])


def test_the_parameters_make_the_run_again_that_was_planned():
    """What the notebook is given, read as papermill reads it, names the same run."""
    ensemble = planned("deeplabv3plus_resnet_1024_v1", 5678, epochs=8, lr=0.001, weights_dir="w",
                      parent_weights="none", ema_decay=0.5, freeze_batch_norm=True,
                      folds=3)  # fmt: skip
    kernels = graph.nodes(ensemble, dict.fromkeys(ensemble.experiments, (1.0,)), 1.0, 8.5, "short")
    for node, plan in zip(kernels, ensemble.runs, strict=False):
        values = {name.lower(): parse_value(text) for name, text in node.given}
        again = plan_training(TrainParameters.checked(values), EXPERIMENTS)
        assert (again.run, again.experiment) == (plan.run, plan.experiment)


def test_a_run_that_two_members_need_is_trained_once():
    """A member that starts from another one takes that one's kernels."""
    child, parent = "deeplabv3plus_resnet_1024_v1", "deeplabv3plus_resnet_512_v1"
    chains = (*planned(parent, 1).chains, *planned(child, 1).chains)
    ensemble = PlannedEnsemble(chains, 2, ThresholdsParameters(ensemble="both"), "both")
    assert [plan.experiment_name for plan in ensemble.runs] == [parent, child]
    assert list(ensemble.experiments) == [parent, child]
    kernels = graph.nodes(ensemble, {parent: (1.0,), child: (1.0,)}, 2.0, 11.5)
    first, second = ("deeplabv3plus-resnet-512-v1-s1-f", "deeplabv3plus-resnet-1024-v1-s1-f")
    every = (f"{first}0", f"{first}1", f"{second}0", f"{second}1")
    assert sources_by_slug(kernels) == {
        f"{first}0": (),
        f"{first}1": (),
        f"{second}0": (f"{first}0",),
        f"{second}1": (f"{first}1",),
        "both-thresholds": every,
        "both-inference": (*every, "both-thresholds"),
    }
    short = graph.nodes(ensemble, {parent: (1.0,), child: (1.0,)}, 2.0, 11.5, "x")
    assert [node.slug for node in short] == [
        "x-experiment1-s1-f0", "x-experiment1-s1-f1", "x-experiment2-s1-f0", "x-experiment2-s1-f1",
        "x-thresholds", "x-inference",
    ]  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_gives_kernels_that_kaggle_can_name(name: str):
    kernels = nodes(name, 3456, 4567, hours=(12, 12), folds=5)
    assert len({node.slug for node in kernels}) == len(kernels)
    done = set()
    for node in kernels:
        assert 5 <= len(node.slug) <= 50
        assert names.slugify(node.slug.replace("-", " ").capitalize()) == node.slug
        assert set(node.sources) <= done
        done.add(node.slug)


def test_all_kernels_of_a_plan_begin_with_the_run_s_name_or_the_slug_given():
    row = "demo_UNetResNet10_128_v1"
    assert [node.slug for node in nodes(row, 3456, folds=1, size=64, epochs=2)] == [
        "demo-unetresnet10-128-v1-size64-epochs2-s3456-f0",
        "demo-unetresnet10-128-v1-size64-epochs2-s3456-thr",
        "demo-unetresnet10-128-v1-size64-epochs2-s3456-inf",
    ]
    kernels = nodes("lite0_384", 1, 2, folds=1, hours=(12, 3), name="mine")
    assert [node.slug for node in kernels] == [
        *("lite0-256-s1-f0", "mine-s1-f0-p1", "mine-s1-f0-p2"),
        *("lite0-256-s2-f0", "mine-s2-f0-p1", "mine-s2-f0-p2"),
        *("mine-2seeds-thresholds", "mine-2seeds-inference"),
    ]
    given = nodes("lite0_384", 1, folds=1, prefix="all-of-it")
    assert [node.slug for node in given] == [
        *("all-of-it-parent1-s1-f0", "all-of-it-s1-f0"),
        *("all-of-it-s1-thresholds", "all-of-it-s1-inference"),
    ]
    assert dict(given[1].given)["EXPERIMENT"] == "lite0_384"
    assert "NAME" not in dict(given[1].given)  # the slug names kernels, not runs
    with pytest.raises(InputError, match="-p NAME SHORT"):
        nodes(row, 3456, size=64, epochs=2, batch_size=4, lr=0.5)


def node(name: str, hours: float, *sources: str) -> Node:
    return Node(name, "train", (), sources, gpu=hours > 0, hours=hours)


def test_a_week_holds_its_quota_and_no_session_is_cut_by_it():
    kernels = [node("a", 12), node("b", 12), node("c", 12, "a"), node("d", 6), node("e", 0, "c")]
    weeks = graph.weeks(kernels, 30)
    assert [[node.slug for node in week] for week in weeks] == [["a", "b", "d"], ["c", "e"]]


def test_what_no_week_holds_or_waits_for_ever_is_an_error():
    with pytest.raises(InputError, match=r"31\.0 GPU hours and a week has 30"):
        graph.weeks([node("a", 31)], 30)
    with pytest.raises(InputError, match="b waits for kernels that are not in the plan"):
        graph.weeks([node("b", 1, "a")], 30)


@given(st.lists(st.floats(0, 12), min_size=1, max_size=30), st.integers(0, 3))
def test_weeks_hold_every_kernel_once_in_order_and_within_the_quota(hours, back):
    kernels = [
        node(f"k{i}", h, *(f"k{j}" for j in range(max(0, i - back), i)))
        for i, h in enumerate(hours)
    ]
    weeks = graph.weeks(kernels, 30)
    order = [kernel.slug for week in weeks for kernel in week]
    assert sorted(order) == sorted(kernel.slug for kernel in kernels)
    for kernel in kernels:
        assert all(order.index(source) < order.index(kernel.slug) for source in kernel.sources)
    assert all(sum(kernel.hours for kernel in week) <= 30 + 1e-6 for week in weeks)


def test_the_graph_is_written_with_every_source_and_the_script(project: Path, tmp_path: Path):
    kernels = [
        Node("a-kernel-f0", "train", (("SEED", "7"),), (), True, 1.0),
        Node("a-kernel-thresholds", "thresholds", (), ("a-kernel-f0",), False, 0.0),
    ]
    out = tmp_path / "graph"
    sources = metadata.Sources("you/images", ("me/weights",), models=("me/nets/pyTorch/lite0/1",))
    given = (kernels, out, project, "me", "script", bundle.Inputs(sources))
    folders = graph.write(*given)
    assert sorted(path.name for path in out.iterdir()) == [
        "a-kernel-f0", "a-kernel-thresholds", "graph.json", "push_all.py",
    ]  # fmt: skip
    for folder, kernel in zip(folders, kernels, strict=True):
        meta = json.loads((folder / metadata.FILE).read_text())
        assert metadata.problems(meta) == []
        expected = {
            "id": f"me/{kernel.slug}",
            "kernel_sources": [f"me/{source}" for source in kernel.sources],
            "dataset_sources": ["you/images", "me/weights"],
            "model_sources": ["me/nets/pyTorch/lite0/1"],
            "competition_sources": [],
            "enable_gpu": kernel.gpu,
        }
        assert meta | expected == meta
        assert (folder / meta["code_file"]).is_file()
    assert "'SEED': 7" in (out / "a-kernel-f0" / "a-kernel-f0.py").read_text()
    listed = json.loads((out / "graph.json").read_text())["kernels"]
    assert [kernel["id"] for kernel in listed] == ["me/a-kernel-f0", "me/a-kernel-thresholds"]
    (out / "rehearsals" / "a-kernel-f0").mkdir(parents=True)
    assert graph.write(*given) == folders  # again, over the first
    assert (out / "rehearsals" / "a-kernel-f0").is_dir()


def test_without_a_data_set_the_competition_stays(project: Path, tmp_path: Path):
    kernels = [Node("a-kernel-f0", "train", (), (), True, 1.0)]
    (folder,) = graph.write(kernels, tmp_path / "graph", project, "me", "notebook", bundle.Inputs())
    meta = json.loads((folder / metadata.FILE).read_text())
    assert meta["competition_sources"] == ["siim-acr-pneumothorax-segmentation"]
    assert meta["code_file"] == "a-kernel-f0.ipynb"


def test_what_somebody_else_wrote_or_is_pushing_is_not_replaced(project: Path, tmp_path: Path):
    kernels = [Node("a-kernel-f0", "train", (), (), True, 1.0)]
    out, options = tmp_path / "graph", (project, "me", "script", bundle.Inputs())
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"thesis\.tex, which no plan wrote"):
        graph.write(kernels, out, *options)
    (out / "thesis.tex").unlink()
    graph.write(kernels, out, *options)
    (out / "push_state.json").write_text("{}")
    with pytest.raises(InputError, match="is being pushed"):
        graph.write(kernels, out, *options)
