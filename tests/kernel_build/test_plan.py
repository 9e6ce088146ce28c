"""What a plan costs, by hand, and what it says to change."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kernel_build import bundle, costs, graph, metadata, plan
from kernel_build.costs import Measured, Session, Sizes
from kernel_lib.config import TrainParameters
from kernel_lib.errors import InputError

SESSION = Session(hours=12, margin=0.5, start=0.5)  # 11 usable hours
SMALL = Sizes(model=100, last=300)
ROW = "UNetResNet34_512_v1"  # 70 epochs, keep 3, hflip: 2 views


def estimate(
    experiment: str,
    measured: dict,
    *,
    seeds: int = 1,
    folds: int = 5,
    sizes: Sizes = SMALL,
    **given,
) -> costs.Estimate:
    """At 11 usable hours a session and two views an image."""
    asked = TrainParameters(experiment=experiment, n_folds=folds, **given)
    plans = plan.plans_of(asked, seeds)
    rows = [one.parameters.experiment for one in plans[3456]]
    return costs.estimate(
        plans, folds, measured, SESSION, dict.fromkeys(rows, 2), dict.fromkeys(rows, sizes)
    )


def test_a_fold_s_hours_are_its_epochs_and_predictions():
    found = estimate(ROW, {ROW: Measured(train=270, look=18)})
    (cost,) = found.costs
    assert cost.train_hours == pytest.approx(70 * 288 / 3600)  # 5.6
    # 2 views by 3 kept checkpoints, and again by the last weights: 8 looks.
    assert cost.predict_hours == pytest.approx(8 * 18 / 3600)
    assert cost.sessions == (pytest.approx(0.5 + 5.6 + 0.04),)
    # A look at 3,205 of 12,047 images is 5 · 3205 / 12047 of one at a fifth; 6 looks by 5 folds.
    look = 18 * 5 * 3205 / 12047 / 3600
    inference = found.nodes[-1].hours
    assert inference == pytest.approx(0.5 + look * 6 * 5)
    assert found.gpu_hours == pytest.approx(5 * cost.gpu_hours + inference)
    assert sum(node.gpu for node in found.nodes) == 6
    maps = 2 * 0.1 * 512**2 * 12047 / 5
    assert cost.bytes == 300 + 4 * 100 + round(maps)


def test_a_fold_beyond_a_session_is_cut_and_nothing_of_it_is_lost():
    found = estimate(ROW, {ROW: Measured(train=1188, look=108)})
    (cost,) = found.costs
    assert cost.hours == pytest.approx(70 * 1296 / 3600 + 8 * 108 / 3600)  # 25.2 + 0.24
    # 1.1 times as long would be 27.98 h: three sessions of 11.
    assert cost.sessions == (11.5, 11.5, pytest.approx(0.5 + 25.44 - 22))
    (line,) = [line for line in found.advice if "one fold" in line]
    assert "takes 25.4 h and a session leaves 11.0, a tenth of it to spare: a chain of 3" in line
    # (11 / 1.1 − 0.24) / 0.36 = 27.1 epochs; 512 · √(10 / 25.44) = 321.0, so 320.
    assert line.endswith("one would do with -p EPOCHS 27 or -p SIZE 320")


def test_the_epochs_it_names_do_fit():
    measured = {ROW: Measured(train=1188, look=108)}
    assert len(estimate(ROW, measured, epochs=27).costs[0].sessions) == 1
    assert len(estimate(ROW, measured, epochs=28).costs[0].sessions) > 1


@given(st.floats(1, 5000), st.floats(1, 500), st.floats(1.5, 12))
def test_sessions_hold_all_the_hours_and_none_is_longer_than_it_may(train, look, hours):
    session = Session(hours)
    decided = plan.plans_of(TrainParameters(experiment=ROW), 1)[3456][0]
    cost = costs.fold_cost(decided, Measured(train, look), session, 2, SMALL, 5)
    starts = len(cost.sessions) * session.start
    assert sum(cost.sessions) - starts == pytest.approx(cost.hours)
    assert max(cost.sessions) <= session.max_hours + 1e-9


def test_what_is_not_measured_is_scaled_by_pixels():
    child, parent = "deeplabv3plus_resnet_1024_v1", "deeplabv3plus_resnet_512_v1"
    found = estimate(child, {child: Measured(400, 40)})
    assert [c.experiment.name for c in found.costs] == [parent, child]
    assert found.costs[0].measured == Measured(100, 10, scaled=True)
    assert not found.costs[1].measured.scaled
    given_both = estimate(child, {child: Measured(400, 40), parent: Measured(90, 9)})
    assert given_both.costs[0].measured == Measured(90, 9)


def test_nih_s_images_count():
    child = "nih_UNetResNet34_512_v1"
    found = estimate(child, {child: Measured(100, 10)})
    assert found.costs[0].measured.train == pytest.approx(100 * 112120 / 12047)


def test_a_week_that_is_too_short_says_what_fits():
    # 5.64 + 0.5 h a fold.
    found = estimate(ROW, {ROW: Measured(270, 18)}, seeds=2)
    (line,) = found.advice
    each = 5 * found.costs[0].gpu_hours + found.nodes[-1].hours / 2
    assert each > 30
    assert line.startswith(f"{found.gpu_hours:.0f} GPU hours are more than a week's 30")
    assert "4 of 5 folds of one seed" in line
    assert "--seeds" not in line
    assert len(found.weeks) == 3
    assert "--seeds 3" in " ".join(estimate(ROW, {ROW: Measured(60, 5)}, seeds=5).advice)
    assert estimate(ROW, {ROW: Measured(60, 5)}, seeds=3).advice == ()


def test_a_week_that_holds_no_fold_says_what_would_fit():
    (*_, line) = estimate(ROW, {ROW: Measured(5000, 300)}).advice
    assert "no fold, which takes 109 h" in line


def test_what_cannot_be_cut_is_told():
    slow = estimate(ROW, {ROW: Measured(3600, 3600 * 6)}).advice
    assert any("scoring a fold" in line and "more folds" in line for line in slow)
    assert any("predicting a fold" in line and "KEEP or TTA" in line for line in slow)
    assert any("inference takes" in line and "fewer seeds" in line for line in slow)


def test_a_step_that_fills_a_session_asks_for_less_accumulation():
    # 12,047 images in batches of 8, 2,000 at a time: less than one step an epoch.
    found = estimate(ROW, {ROW: Measured(6 * 3600, 10)}, accumulate=2000)
    assert any("lower ACCUMULATE" in line for line in found.advice)
    found = estimate(ROW, {ROW: Measured(6 * 3600, 10)})
    assert not any("ACCUMULATE" in line for line in found.advice)


def test_a_disk_that_overflows_asks_for_fewer_checkpoints():
    found = estimate(ROW, {ROW: Measured(60, 5)}, sizes=Sizes(4 * 10**9, 12 * 10**9))
    assert any("leaves 28.1 GB" in line and "lower KEEP 3" in line for line in found.advice)
    found = estimate(ROW, {ROW: Measured(6, 0.5)}, seeds=13, size=1024)
    assert any("of maps" in line for line in found.advice)


def test_seeds_count_as_the_notes_do():
    assert list(plan.plans_of(TrainParameters(experiment=ROW), 3)) == [3456, 4567, 5678]


def test_a_log_is_read_by_its_median_epoch(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    lines = [{"epoch": i, "seconds": s, "val_seconds": s / 10} for i, s in enumerate([90, 10, 20])]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert costs.from_log(path, 512) == Measured(20, 2)
    (tmp_path / "config.json").write_text('{"experiment": {"size": 512}}')
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
    found = costs.from_seconds(260, 5)
    assert found.train + found.look == pytest.approx(260)
    assert found.look == pytest.approx(found.train / 12)  # a quarter of the images, at a third


def run(*arguments: str):
    return CliRunner().invoke(plan.plan, arguments)


def test_the_command_prints_a_table_and_the_weeks(monkeypatch):
    monkeypatch.setattr(plan, "sizes_of", lambda row: SMALL)
    done = run(ROW, "--seeds", "2", "--seconds-per-epoch", "288")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split() == [
        "experiment", "size", "epochs", "s/epoch", "h/fold", "sessions", "GPU", "h", "GB",
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
    found = estimate(ROW, {ROW: Measured(60, 5)})
    text = plan.as_text(found, SESSION, datetime(2026, 11, 22, 21, 0, tzinfo=UTC))
    assert "the quota is full again on Saturday 28 November, 00:00 UTC" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((ROW,), "nothing measured for UNetResNet34_512_v1"),
        ((ROW, "--seconds-per-epoch", "fast"), "number of seconds"),
        ((ROW, "--seconds-per-epoch", "-3"), "number of seconds"),
        ((ROW, "--seconds-per-epoch", "3", "--log", "UNet=x"), f"of this plan; write one of {ROW}"),
        (("UNet", "--seconds-per-epoch", "3"), "EXPERIMENT 'UNet' is unknown"),
        ((ROW, "--seconds-per-epoch", "3", "--session-hours", "0.5"), "0.5 leaves no hours"),
        ((ROW, "--seconds-per-epoch", "3", "--session-hours", "inf"), "inf leaves no hours"),
        ((ROW, "--seconds-per-epoch", "3", "--model", "a/b/c/1"), "'a/b/c/1' is not OWNER/MODEL/"),
        ((ROW, "--seconds-per-epoch", "3", "--dataset", "b"), "dataset_sources: 'b' is not OWNER"),
        ((ROW, "-p", "SEED", "3", "--seconds-per-epoch", "3"), "-p SEED is not a plan's: give --s"),
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
    plans = plan.plans_of(asked, 1)
    nodes = graph.nodes(plans, 2, {"first": (1.0,), "second": (1.0,)}, 0.1, 9.0)
    values = [dict(node.given) for node in nodes]
    trained = [json.loads(v["EXPERIMENT"]) for v in values if "EXPERIMENT" in v]
    assert trained == [rows[0], rows] * 2
    assert [v.get("NAME") for v in values] == [None, "short"] * 2 + [None] * 2
    assert values[-1] == {"ENSEMBLE": "short_seed3456"}


@pytest.mark.slow
def test_written_it_is_a_graph_of_the_project_s_own_kernels(tmp_path: Path):
    out = tmp_path / "graph"
    arguments = ("demo_UNetResNet10_128_v1", "--folds", "2", "--seconds-per-epoch", "5")
    done = run(*arguments, "--write", str(out), "--owner", "me", "--data", "you/images")
    assert done.exit_code == 0, done.output
    assert "4 kernels in" in done.output
    assert "needs ImageNet" not in done.output  # the demo starts from nothing
    assert (out / "push_all.py").is_file()
    assert len(list(out.glob("*/kernel-metadata.json"))) == 4


@pytest.mark.slow
def test_shorter_sessions_make_longer_chains_of_kernels_that_stop_in_time(tmp_path: Path):
    out = tmp_path / "graph"
    arguments = ("demo_UNetResNet10_128_v1", "--folds", "2", "-p", "EPOCHS", "10")
    arguments += ("--seconds-per-epoch", "2900")  # 9.3 h a fold
    assert "2 × 1" in run(*arguments).output.splitlines()[1]
    done = run(*arguments, "--session-hours", "9", "--write", str(out), "--owner", "me")
    assert done.exit_code == 0, done.output
    assert "2 × 2" in done.output.splitlines()[1]
    assert "assumed: sessions of 9 h with 0.5 h left over (MAX_HOURS 8.5)" in done.output
    kernels = json.loads((out / "graph.json").read_text())["kernels"]
    trains = [dict(one["given"]) for one in kernels if one["stage"] == "train"]
    assert [one["MAX_HOURS"] for one in trains] == ["8.5"] * 4


def test_what_written_kernels_will_miss_is_said_once(project_root: Path, tmp_path: Path):
    found = estimate(ROW, {ROW: Measured(60, 5)}, folds=2)
    inputs = bundle.Inputs(metadata.Sources("you/images"))
    folders = graph.write(found.nodes, tmp_path / "graph", project_root, "me", "script", inputs)
    (words,) = plan._unmet(found.nodes, folders, None)
    assert words.startswith("needs ImageNet weights of resnet34")
