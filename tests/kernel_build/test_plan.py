"""What a plan costs, by hand, and what it says to change."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kernel_build import accelerators, bundle, costs, graph, metadata, parameters, plan
from kernel_build.costs import Measured, Session, Sizes
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.config import ThresholdsParameters, TrainParameters
from kernel_lib.errors import InputError
from tests.configs import write_config

SESSION = Session(hours=12, margin=0.5, start=0.5)  # 11 usable hours
SMALL = Sizes(model=100, last=300)
ROW = "UNetResNet34_512_v1"  # 70 epochs, keep 3, hflip: 2 views


def estimate(
    train: float,
    look: float,
    *,
    experiment: str = ROW,
    others: dict | None = None,
    seeds: int = 1,
    folds: int = 5,
    sizes: Sizes = SMALL,
    choose: str | None = None,
    **given,
) -> costs.Estimate:
    """At 11 usable hours a session and two views an image; `others` are measured besides."""
    asked = TrainParameters(experiment=experiment, n_folds=folds, **given)
    ensemble = plan.from_seeds(asked, seeds, choose=choose)
    measured = {experiment: Measured(train, look)} | (others or {})
    return costs.estimate(ensemble, measured, SESSION, dict.fromkeys(ensemble.experiments, sizes))


def test_a_fold_s_hours_are_its_epochs_and_predictions():
    result = estimate(270, 18)
    (cost,) = result.costs
    assert cost.train_hours == pytest.approx(70 * 288 / 3600)  # 5.6
    # 2 views by 3 kept checkpoints, and again by the last weights: 8 looks.
    assert cost.predict_hours == pytest.approx(8 * 18 / 3600)
    assert cost.sessions == (pytest.approx(0.5 + 5.6 + 0.04),)
    # A look at 3,205 of 12,047 images is 5 · 3205 / 12047 of one at a fifth; 6 looks by 5 folds.
    look = 18 * 5 * 3205 / 12047 / 3600
    inference = result.nodes[-1].hours
    masks = 3205 * (5 * 0.6e-3 + 4e-3) / 2 / 3600  # five maps and a mask an image
    assert inference == pytest.approx(0.5 + look * 6 * 5 + masks)
    assert result.gpu_hours == pytest.approx(5 * cost.gpu_hours + inference)
    assert sum(node.gpu for node in result.nodes) == 6
    maps = 2 * 0.04 * 512**2 * 12047 / 5
    assert cost.bytes == 300 + 4 * 100 + round(maps)


def test_a_fold_beyond_a_session_is_cut_and_nothing_of_it_is_lost():
    result = estimate(1188, 108)
    (cost,) = result.costs
    assert cost.hours == pytest.approx(70 * 1296 / 3600 + 8 * 108 / 3600)  # 25.2 + 0.24
    # 1.1 times as long would be 27.98 h: three sessions of 11.
    assert cost.sessions == (11.5, 11.5, pytest.approx(0.5 + 25.44 - 22))
    (line,) = [line for line in result.advice if "one fold" in line]
    assert "takes 25.4 h and a session leaves 11.0, a tenth of it to spare: a chain of 3" in line
    # (11 / 1.1 − 0.24) / 0.36 = 27.1 epochs; 512 · √(10 / 25.44) = 321.0, so 320.
    assert line.endswith("one would do with -p EPOCHS 27 or -p SIZE 320")
    assert len(estimate(1188, 108, epochs=27).costs[0].sessions) == 1
    assert len(estimate(1188, 108, epochs=28).costs[0].sessions) > 1


@given(st.floats(1, 5000), st.floats(1, 500), st.floats(1.5, 12))
def test_sessions_hold_all_the_hours_and_none_is_longer_than_it_may(train, look, hours):
    session = Session(hours)
    (one,) = plan.from_seeds(TrainParameters(experiment=ROW), 1).runs
    cost = costs.fold_cost(one, Measured(train, look), session, SMALL, 5)
    starts = len(cost.sessions) * session.start
    assert sum(cost.sessions) - starts == pytest.approx(cost.hours)
    assert max(cost.sessions) <= session.max_hours + 1e-9


def test_what_is_not_measured_is_scaled_by_pixels_and_images():
    child, parent = "deeplabv3plus_resnet_1024_v1", "deeplabv3plus_resnet_512_v1"
    costs_of = estimate(400, 40, experiment=child).costs
    assert [cost.experiment.name for cost in costs_of] == [parent, child]
    assert costs_of[0].measured == Measured(100, 10, scaled=True)
    assert not costs_of[1].measured.scaled
    both = estimate(400, 40, experiment=child, others={parent: Measured(90, 9)})
    assert both.costs[0].measured == Measured(90, 9)
    nih = estimate(100, 10, experiment="nih_UNetResNet34_512_v1")
    assert nih.costs[0].measured.train == pytest.approx(100 * 112120 / 12047)


def test_a_week_that_is_too_short_says_what_fits():
    # 5.64 + 0.5 h a fold.
    result = estimate(270, 18, seeds=2)
    (line,) = result.advice
    each = 5 * result.costs[0].gpu_hours + result.nodes[-1].hours / 2
    assert each > 30
    assert line.startswith(f"{result.gpu_hours:.0f} GPU hours are more than a week's 30")
    assert "4 of 5 folds of one seed" in line
    assert "--seeds" not in line
    assert len(result.weeks) == 3


@pytest.mark.parametrize(
    ("train", "look", "changes", "words"),
    [
        (60, 5, {"seeds": 5}, "--seeds 3"),
        (60, 5, {"seeds": 3}, None),
        (5000, 300, {}, "no fold, which takes 109 h"),
        (3600, 3600 * 6, {}, "scoring a fold .* more folds"),
        (3600, 3600 * 6, {}, "predicting a fold .* KEEP or TTA"),
        (3600, 3600 * 6, {}, "inference takes .* KEEP or TTA"),
        # 12,047 images in batches of 8, 2,000 at a time: less than one step an epoch.
        (6 * 3600, 10, {"accumulate": 2000}, "lower ACCUMULATE"),
        (60, 5, {"sizes": Sizes(4 * 10**9, 12 * 10**9)}, r"leaves 28\.1 GB, .* lower KEEP 3"),
        # Networks take 0.665 h a seed.
        (600, 60, {"seeds": 18}, "inference takes .*: --seeds 16 or a lower KEEP or TTA"),
        # 0.04 · 1024² · 3,205 · 5 folds: 0.67 GB a seed.
        (
            0.6,
            0.05,
            {"seeds": 30, "size": 1024},
            "inference leaves .*: --seeds 29 or a smaller SIZE",
        ),
    ],
)
def test_what_does_not_fit_is_advised_to_change(train, look, changes: dict, words: str | None):
    advice = "\n".join(estimate(train, look, **changes).advice)
    assert advice == "" if words is None else re.search(words, advice)
    if "accumulate" in changes:
        assert "ACCUMULATE" not in "\n".join(estimate(train, look).advice)


def test_seeds_are_numbered_as_in_the_reference_solution():
    ensemble = plan.from_seeds(TrainParameters(experiment=ROW), 3)
    assert [member.parameters.seed for member in ensemble.members] == [3456, 4567, 5678]


def test_a_log_is_read_by_its_median_epoch(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    lines = [{"epoch": i, "seconds": s, "val_seconds": s / 10} for i, s in enumerate([90, 10, 20])]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert costs.from_log(path, 512) == Measured(20, 2)
    write_config(FoldRun("run", 0, tmp_path), size=512)
    assert costs.from_log(path, 512) == Measured(20, 2)
    assert costs.from_log(path, 1024) == Measured(80, 8, scaled=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no epoch"),
        ("{}\n", "log of a training"),
        ("epoch,seconds\n", "log of a training"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_log_is_said_to_be_none(tmp_path: Path, text: str | None, words: str):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        costs.from_log(tmp_path / "log.jsonl", 512)


def test_seconds_of_an_epoch_are_divided():
    measured = costs.from_seconds(260, 5)
    assert measured.train + measured.look == pytest.approx(260)
    assert measured.look == pytest.approx(measured.train / 12)  # a quarter at a third


def run(*arguments: str, path: str = ""):
    """Run the command, without any `kaggle` unless one is on `path`."""
    return CliRunner(env={"PATH": path}).invoke(plan.plan, arguments)


def test_the_command_prints_a_table_and_the_weeks(monkeypatch):
    monkeypatch.setattr(plan, "sizes_of", lambda row: SMALL)
    done = run(ROW, "--seeds", "2", "--seconds-per-epoch", "288")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split() == [
        "experiment", "size", "epochs", "s/epoch", "h", "each", "sessions", "GPU", "h", "GB",
        "memory",
    ]  # fmt: skip
    assert lines[1].split()[:4] == [ROW, "512", "70", "288"]
    assert "10 × 1" in lines[1]
    assert any(line.startswith("week 2:") for line in lines)
    assert any(line.startswith("change: ") for line in lines)
    assert "2 seeds (3456, 4567) × 5 folds" in done.output


def test_every_parameter_of_a_training_is_carried_or_the_plan_s_own():
    known = {*graph.CARRIED, *plan._OWN}
    assert known == set(TrainParameters.model_fields)
    assert not set(graph.CARRIED) & set(plan._OWN)


def test_it_says_when_the_quota_is_full_again():
    text = plan.as_text(estimate(60, 5), SESSION, datetime(2026, 11, 22, 21, 0, tzinfo=UTC))
    assert "the quota is full again on Saturday 28 November, 00:00 UTC" in text


def week_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("week", "quota"))]


def test_the_first_week_has_what_kaggle_quota_leaves_of_it(fake_kaggle, tmp_path: Path):
    arguments = (ROW, "--seconds-per-epoch", "288", "-p", "EPOCHS", "60")  # 5 h a fold
    header = "resource,used,remaining,total,refreshAt\n"
    fake_kaggle(header + "GPU,20.00h,15.00h,35.00h,2026-11-29T06:30:00+00:00\n")
    done = run(*arguments, path=str(tmp_path / "bin"))
    assert done.exit_code == 0, done.output
    said, first, second = week_lines(done.output)
    assert said == "quota: 15 of 35 GPU hours left, by kaggle quota"
    assert re.match(r"week 1: \d+\.\d h in 2 kernels, ", first)
    assert second.startswith("week 2: ")
    assert "the quota is full again on Sunday 29 November, 06:30 UTC" in done.output
    given = run(*arguments, "--quota-left", "6", path=str(tmp_path / "bin"))
    said, first, *_ = week_lines(given.output)
    assert said == "quota: 6 of 30 GPU hours left, as given"
    assert " h in 1 kernel, " in first


def test_with_nothing_left_the_first_week_is_empty(fake_kaggle, tmp_path: Path):
    header = "resource,used,remaining,total,refreshAt\n"
    fake_kaggle(header + "GPU,30.00h,0.00h,30.00h,2026-11-28T00:00:00+00:00\n")
    done = run(ROW, "--seconds-per-epoch", "288", path=str(tmp_path / "bin"))
    said, first, second, *_ = week_lines(done.output)
    assert said == "quota: 0 of 30 GPU hours left, by kaggle quota"
    assert first == "week 1: no kernel fits in what is left of it"
    assert second.startswith("week 2: ")


def test_without_kaggle_a_line_says_that_the_week_is_assumed_full():
    done = run(ROW, "--seconds-per-epoch", "60")
    said, _ = week_lines(done.output)
    assert said.startswith("quota: 30 of 30 GPU hours assumed to be left, because there is no")


def test_another_accelerator_s_hours_follow_its_speed():
    default = run(ROW, "--seconds-per-epoch", "288")
    assert "estimated:" not in default.output
    done = run(ROW, "--seconds-per-epoch", "288", "--accelerator", "NvidiaH100")
    speed = accelerators.ACCELERATORS["NvidiaH100"].speed
    assert done.output.splitlines()[1].split()[3] == f"~{288 / speed:.0f}"
    assert f"estimated: NvidiaH100 (1 × 80 GB) {speed:.1f} times as fast as NvidiaT" in done.output
    measured = run(ROW, "--seconds-per-epoch", "288", "--accelerator", "NvidiaH100",
                   "--measured-on", "NvidiaH100")  # fmt: skip
    assert measured.output == default.output


def test_a_p100_is_planned_as_what_kaggle_gives():
    done = run(ROW, "--seconds-per-epoch", "288", "--accelerator", "NvidiaTeslaP100")
    first, rest = done.output.split("\n", 1)
    assert first == (
        "--accelerator NvidiaTeslaP100 is retired, and Kaggle gives NvidiaTeslaT4, two T4, in its "
        "place without an error; the kernels name NvidiaTeslaT4"
    )
    assert rest == run(ROW, "--seconds-per-epoch", "288").output


def test_a_log_s_memory_is_held_against_the_gpu_s(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    line = {"epoch": 1, "seconds": 60, "val_seconds": 5, "gpu_memory_mb": 20000.0}
    path.write_text(json.dumps(line) + "\n")
    small = run(ROW, "--log", str(path))
    assert (
        f"change: {ROW} needs about 20.0 GB of GPU memory (by its log), and a GPU of NvidiaTeslaT4 "
        "leaves 15.0: -p BATCH_SIZE 4 -p ACCUMULATE 4"
    ) in small.output
    assert "GPU memory" not in run(ROW, "--log", str(path), "--accelerator", "NvidiaL4").output
    # One GPU takes alone what two divided.
    one = run(ROW, "--log", str(path), "--accelerator", "NvidiaL4X1")
    assert "needs about 40.0 GB" in one.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ROW,), "nothing measured for UNetResNet34_512_v1"),
        ((ROW, "--seconds-per-epoch", "fast"), "number of seconds"),
        ((ROW, "--seconds-per-epoch", "-3"), "number of seconds"),
        ((ROW, "--seconds-per-epoch", "3", "--log", "UNet=x"), f"of this plan; write one of {ROW}"),
        (("UNet", "--seconds-per-epoch", "3"), "experiment or recipe 'UNet' is unknown"),
        ((ROW, "--seconds-per-epoch", "3", "--session-hours", "0.5"), "0.5 leaves no hours"),
        ((ROW, "--seconds-per-epoch", "3", "--session-hours", "inf"), "inf leaves no hours"),
        (
            (ROW, "--seconds-per-epoch", "3", "--quota-left", "-1"),
            "--quota-left -1 is not a number",
        ),
        ((ROW, "--seconds-per-epoch", "3", "--accelerator", "A100"), "nearest: NvidiaTeslaA100"),
        (
            (ROW, "--seconds-per-epoch", "3", "--measured-on", "V100"),
            "accelerator 'V100' is unknown",
        ),
        ((ROW, "--seconds-per-epoch", "3", "--accelerator", "TpuV5E8"), "TpuV5E8 is a TPU, and"),
        ((ROW, "--seconds-per-epoch", "3", "--model", "a/b/c/1"), "'a/b/c/1' is not OWNER/MODEL/"),
        ((ROW, "--seconds-per-epoch", "3", "--dataset", "b"), "dataset_sources: 'b' is not OWNER"),
        ((ROW, "-p", "SEED", "3", "--seconds-per-epoch", "3"), "-p SEED is not a plan's: give --s"),
        ((ROW, "--combine", "member_vote"), "combine member_vote of 1 members: name two"),
        ((ROW, "--seeds", "2", "--combine", "vote", "--choose", "greedy"), "does not fit combine"),
        ((ROW, "--at-least", "0"), "AT_LEAST"),
        ((ROW, "-p", "SIZES", "3", "--seconds-per-epoch", "3"), "unknown parameter SIZES"),
    ],
)
def test_a_mistake_is_one_clear_error(arguments: tuple[str, ...], words: str):
    done = run(*arguments)
    assert done.exit_code == 1
    assert words in done.output


def test_a_file_of_experiments_is_planned_by_their_names(tmp_path: Path):
    rows = [{"name": "first", "weights": "none"}, {"name": "second", "weights": "first"}]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    mine = str(tmp_path / "mine.json")
    done = run(mine, "--seconds-per-epoch", "60")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()[1:3]] == ["first", "second"]
    assert "-p EXPERIMENT FILE.json" in run(mine).output
    asked = TrainParameters(experiment=json.dumps(rows), name="short")
    ensemble = plan.from_seeds(asked.model_copy(update={"n_folds": 2}), 1)
    nodes = graph.nodes(ensemble, {"first": (1.0,), "second": (1.0,)}, 0.1, 9.0)
    values = [dict(node.given) for node in nodes]
    trained = [json.loads(v["EXPERIMENT"]) for v in values if "EXPERIMENT" in v]
    assert trained == [rows[0], rows] * 2
    assert [v.get("NAME") for v in values] == [None, "short"] * 2 + [None] * 2
    assert values[-1] == {"ENSEMBLE": "short_seed3456"}


@pytest.mark.slow
def test_written_it_is_a_graph_of_kernels_that_stop_in_time(tmp_path: Path):
    out = tmp_path / "graph"
    arguments = ("demo_UNetResNet10_128_v1", "--folds", "2", "-p", "EPOCHS", "10")
    arguments += ("--seconds-per-epoch", "2900")  # 9.3 h a fold
    assert "2 × 1" in run(*arguments).output.splitlines()[1]
    done = run(*arguments, "--session-hours", "9", "--write", str(out), "--owner", "me",
               "--data", "you/images", "--accelerator", "NvidiaL4X1",
               "--measured-on", "NvidiaL4X1")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "2 × 2" in done.output.splitlines()[1]
    assert "assumed: sessions of 9 h with 0.5 h left over (MAX_HOURS 8.5)" in done.output
    assert "6 kernels in" in done.output
    assert "machine_shape NvidiaL4X1 is only for participants" in done.output
    assert "needs ImageNet" not in done.output  # the demo starts from nothing
    assert (out / "push_all.py").is_file()
    metas = [json.loads(file.read_text()) for file in out.glob("*/kernel-metadata.json")]
    assert sorted(meta["machine_shape"] for meta in metas) == ["", *["NvidiaL4X1"] * 5]
    kernels = json.loads((out / "graph.json").read_text())["kernels"]
    trains = [dict(node["given"]) for node in kernels if node["stage"] == "train"]
    assert [given["MAX_HOURS"] for given in trains] == ["8.5"] * 4


def test_what_written_kernels_will_miss_is_said_once(project_root: Path, tmp_path: Path):
    kernels = estimate(60, 5, folds=2).nodes
    inputs = bundle.Inputs(metadata.Sources("you/images"))
    folders = graph.write(kernels, tmp_path / "graph", project_root, "me", "script", inputs)
    (words,) = plan._unmet(kernels, folders, None)
    assert words.startswith("needs ImageNet weights of resnet34")


def test_how_the_seeds_are_combined_reaches_the_thresholds():
    arguments = (ROW, "--seeds", "3", "--seconds-per-epoch", "60")
    mean, greedy = (run(*arguments, *more) for more in ((), ("--choose", "greedy")))
    rows = {}
    for name, done in (("mean", mean), ("greedy", greedy)):
        assert done.exit_code == 0, done.output
        (row,) = [line for line in done.output.splitlines() if line.startswith("thresholds (no")]
        rows[name] = row.split()[3:]  # hours, kernels, GPU hours, GB, memory
    assert rows["mean"][1:3] == rows["greedy"][1:3] == ["1", "0.0"]
    assert float(rows["mean"][0]) < float(rows["greedy"][0])
    assert float(rows["mean"][-1]) < float(rows["greedy"][-1])
    # 13,000 bytes a map, 3 seeds.
    assert "write up to 0.5 GB" in greedy.output
    assert "write up to" not in mean.output
    assert week_lines(mean.output) == week_lines(greedy.output)
    for choose in (None, "greedy"):
        *_, thresholds, inference = estimate(60, 5, seeds=3, choose=choose).nodes
        assert dict(thresholds.given).get("CHOOSE") == choose
        assert set(dict(inference.given)) == {"ENSEMBLE"}


def test_a_vote_s_parameters_are_those_of_its_kernel(project_root: Path, tmp_path: Path):
    asked = TrainParameters(experiment="demo_UNetResNet10_128_v1", n_folds=2)
    ensemble = plan.from_seeds(asked, 3, combine="member_vote", choose=None, at_least=2)
    nodes = graph.nodes(ensemble, {"demo_UNetResNet10_128_v1": (1.0,)}, 1.0, 9.0)
    inputs = bundle.Inputs(metadata.Sources("you/images"))
    (folder,) = graph.write(nodes[-2:-1], tmp_path / "graph", project_root, "me", "script", inputs)
    code = (folder / f"{folder.name}.py").read_text()
    values = parameters.baked(code, "script", folder.name)
    assert (values["COMBINE"], values["CHOOSE"], values["AT_LEAST"]) == ("member_vote", None, 2)


def test_a_recipe_is_planned_by_its_members():
    seconds = ("--seconds-per-epoch", "deeplabv3plus_resnet_1024_v2=300",
               "--seconds-per-epoch", "UNetResNet34_1024_v1=200")  # fmt: skip
    done = run("notes_best", *seconds, "--folds", "2")
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split() for line in done.output.splitlines() if line}
    deeplab, unet = rows["deeplabv3plus_resnet_1024_v2"], rows["UNetResNet34_1024_v1"]
    assert (deeplab[3], unet[3]) == ("300", "200")
    assert (deeplab[5:8], unet[5:8]) == (["2", "×", "1"], ["2", "×", "1"])
    assert "2 members (notes_best, seeds 5678, 3456) × 2 folds" in done.output
    week = " ".join(week_lines(done.output))
    assert "deeplabv3plus-resnet-1024-v2-s5678-f0" in week
    assert "notes-best-inference" in week


def test_a_recipe_s_inference_is_all_its_members():
    asked = TrainParameters(n_folds=5)
    ensemble = plan.from_recipe("notes_best", asked)
    deeplab, unet = (member.experiment for member in ensemble.members)
    measured = {deeplab.name: Measured(300, 20), unet.name: Measured(200, 10)}
    sizes = dict.fromkeys(ensemble.experiments, SMALL)
    result = costs.estimate(ensemble, measured, SESSION, sizes)
    # 2 views by 3 kept checkpoints by 5 folds; a look is at a fifth of 12,047 images.
    assert (deeplab.keep, deeplab.tta, unet.keep, unet.tta) == (3, "hflip", 3, "hflip")
    looks = (20 + 10) * 5 * 3205 / 12047 / 3600 * 6 * 5
    ten = costs.ensemble_costs.inference(
        costs.Runs(2, 5, 1024, ensemble.thresholds), SESSION.start, looks / 2
    )
    assert result.nodes[-1].hours == pytest.approx(ten.hours)
    thresholds, inference = (dict(node.given) for node in result.nodes[-2:])
    assert thresholds == {"ENSEMBLE": "notes_best", "COMBINE": "mean", "CHOOSE": "none"}
    assert inference == {"ENSEMBLE": "notes_best"}
    (line,) = [line for line in result.advice if "GPU hours" in line]
    assert "one week holds 4 of 5 folds of the first member" in line


@pytest.mark.parametrize("shipped", [True, False])
def test_a_recipe_s_kernels_combine_its_runs(project_root: Path, tmp_path: Path, shipped: bool):
    path = tmp_path / "mine.json"
    members = [{"experiment": ROW, "seed": seed} for seed in (1, 2, 3)]
    path.write_text(json.dumps({"members": members, "combine": "member_vote", "at_least": 2}))
    name = "notes_512_five_seeds" if shipped else str(path)
    assert plan.is_recipe(name)
    ensemble = plan.from_recipe(name, TrainParameters(n_folds=2))
    nodes = graph.nodes(ensemble, {ROW: (1.0,)}, 1.0, 9.0)
    inputs = bundle.Inputs(metadata.Sources("you/images"))
    folders = graph.write(nodes[-2:], tmp_path / "graph", project_root, "me", "script", inputs)
    codes = [(folder / f"{folder.name}.py").read_text() for folder in folders]
    thresholds, inference = (
        parameters.baked(code, "script", folder.name)
        for code, folder in zip(codes, folders, strict=True)
    )
    runs = None if shipped else f"{ROW}_seed1,{ROW}_seed2,{ROW}_seed3"
    combined = ("mean", None) if shipped else ("member_vote", 2)
    assert thresholds["ENSEMBLE"] == inference["ENSEMBLE"] == Path(name).stem
    assert thresholds["RUNS"] == runs
    assert (thresholds["COMBINE"], thresholds["AT_LEAST"]) == combined


@pytest.mark.parametrize(
    ("members", "arguments", "words"),
    [
        ([{"run": "mine_seed1"}], (), "member mine_seed1 is given by its run"),
        (
            [{"experiment": ROW, "seed": 1, "weight": 2}, {"experiment": ROW, "seed": 2}],
            (),
            "would not know the weights",
        ),
        ([{"experiment": ROW, "seed": 1}], ("-p", "LR", "0.1"), "-p LR is not for a recipe"),
        ([{"experiment": ROW, "seed": 1}], ("--seeds", "2"), "--seeds is not for a recipe"),
        ([{"experiment": ROW, "seed": 1}], (), f"nothing measured for {ROW}"),
        (
            [{"experiment": ROW, "seed": 1}, {"experiment": "two_step", "seed": 1}],
            ("--log", "log.jsonl"),
            f"log.jsonl: of which experiment? write {ROW}=, two_step=",
        ),
        ([{"experiment": "two_step_classifier_512_v1", "seed": 1}], (), "predicts no masks"),
        ([{"experiment": ROW}], (), 'a member is {"experiment": name, "seed": n}'),
        (
            [{"experiment": ROW, "seed": 1}],
            ("--combine", "member_vote"),
            "name two or more",
        ),
    ],
)
def test_a_recipe_that_cannot_be_planned_is_refused(tmp_path, members, arguments, words):
    (tmp_path / "mine.json").write_text(json.dumps({"members": members}))
    done = run(str(tmp_path / "mine.json"), *arguments)
    assert done.exit_code == 1
    assert words in done.output


def test_a_recipe_whose_gate_or_name_its_kernels_would_refuse_is_refused(tmp_path: Path):
    recipe = {"members": [{"experiment": ROW, "seed": 1}]}
    (tmp_path / "gated.json").write_text(json.dumps(recipe | {"gate": "label"}))
    (tmp_path / "2026.json").write_text(json.dumps(recipe))
    for name, words in (("gated", "has no label head"), ("2026", "rename the file")):
        done = run(str(tmp_path / f"{name}.json"), "--seconds-per-epoch", "60")
        assert done.exit_code == 1
        assert words in done.output


@pytest.mark.parametrize("text", ["3", "null", "[" * 100_000, '"members"', "{"])
def test_what_is_no_recipe_is_read_as_an_experiment(tmp_path: Path, text: str):
    (tmp_path / "mine.json").write_text(text)
    done = run(str(tmp_path / "mine.json"))
    assert done.exit_code == 1
    assert "EXPERIMENT" in done.output


def test_an_unknown_name_is_sought_among_recipes_too():
    assert "nearest: notes_best" in run("notes_bets").output


def test_what_two_members_need_is_scaled_from_the_nearest_size():
    near, far, parent = (f"deeplabv3plus_resnet_{rest}" for rest in ("512_v2", "1024_v1", "512_v1"))
    measured = {near: Measured(90, 9), far: Measured(400, 40)}
    for names in ((near, far), (far, near)):
        chains = plan._chains(TrainParameters(n_folds=2), [(name, 1) for name in names])
        ensemble = graph.PlannedEnsemble(chains, 2, ThresholdsParameters(), "both")
        sizes = dict.fromkeys(ensemble.experiments, SMALL)
        costs_of = costs.estimate(ensemble, measured, SESSION, sizes).costs
        (cost,) = [cost for cost in costs_of if cost.experiment.name == parent]
        assert cost.measured == Measured(90, 9, scaled=True)
