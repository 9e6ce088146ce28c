"""The order of work and the results file, with a stub in the trainer's place."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from kernel_lib.errors import InputError
from tools.ablation import arms, runner, setting
from tools.ablation.arms import Joined, Trained, Viewed
from tools.ablation.setting import Place

BASE = arms.BASELINE
UNET = Trained(BASE)
CHILD = Trained(BASE.differing(name="child", weights="unet", epochs=2, min_epochs=1))
LARGE = Trained(BASE.differing(name="large", size=192))
ARMS = {
    arm.name: arm
    for arm in (
        LARGE, CHILD, UNET, Viewed("view", UNET, "hflip"),
        Joined("pair", (("unet", 0), ("child", 1))),
        Joined("all", (("unet", 0),), every_seed=True),
    )
}  # fmt: skip
SEEDS = runner.seeds(2)


class Stub:
    """Writes down what it was asked to do; fails on request."""

    def __init__(self, failing: set = frozenset()) -> None:
        self.failing, self.did = failing, []

    def __call__(self, job, place, how, rows) -> dict:
        self.did.append((job.arm.name, job.seed))
        line = {"key": job.key, "arm": job.arm.name, "seed": job.seed, "seconds": 1.0}
        if (job.arm.name, job.seed) in self.failing:
            return line | {"error": "ValueError: broken"}
        return line | {"columns": {"dice": [0.5]}}


def run(place: Place, do: Stub, chosen=ARMS, seeds=SEEDS, how=setting.QUICK, **more) -> list[dict]:
    options = {"pool": ThreadPoolExecutor, "at_once": 1, "say": lambda text: None} | more
    return runner.run(chosen, seeds, how, place, do=do, **options)


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path / "results")


def test_seeds_are_numbered_as_in_the_reference_solution():
    assert runner.seeds(5) == (3456, 4567, 5678, 6789, 7900)
    with pytest.raises(InputError, match="SEEDS 0"):
        runner.seeds(0)


def test_seed_by_seed_parents_first_the_cheaper_before_the_dearer(place):
    do = Stub()
    run(place, do)
    first, second = SEEDS
    assert do.did == [
        ("unet", first), ("large", first), ("view", first), ("child", first),
        # The joined ones wait for the second seed, which goes on meanwhile.
        ("unet", second), ("all", first), ("large", second), ("all", second), ("view", second),
        ("child", second), ("pair", first), ("pair", second),
    ]  # fmt: skip


def test_it_goes_on_where_it_was_stopped(place):
    class KilledError(Exception):
        pass

    class Stopping(Stub):
        def __call__(self, job, **rest):
            if len(self.did) == 3:
                raise KilledError
            return super().__call__(job, **rest)

    before = Stopping()
    with pytest.raises(KilledError):
        run(place, before)
    with place.results.open("a") as file:
        file.write('{"key": "torn')  # the kill came while a line was written
    after = Stub()
    lines = run(place, after)
    assert len(before.did) == 3
    assert not set(before.did) & set(after.did)
    assert len(lines) == 12 == len(before.did) + len(after.did)
    again = Stub()
    assert run(place, again) == lines
    assert again.did == []


def test_a_failed_arm_is_recorded_what_needs_it_left_out_and_the_rest_goes_on(place):
    first, second = SEEDS
    do = Stub({("unet", first)})
    lines = {(line["arm"], line["seed"]): line for line in run(place, do)}
    assert lines["unet", first]["error"] == "ValueError: broken"
    assert lines["child", first]["error"] == f"it needs unet of seed {first}, which failed"
    broken = {at for at, line in lines.items() if "error" in line}
    assert broken == {
        ("unet", first), ("child", first), ("view", first), ("pair", first), ("pair", second),
        ("all", first), ("all", second),
    }  # fmt: skip
    assert ("large", first) in do.did
    again = Stub()
    lines = run(place, again)
    assert set(again.did) == broken
    assert not any("error" in line for line in lines)


def unet(**changes) -> dict:
    """All arms, with another baseline."""
    changed = Trained(BASE.model_copy(update=changes))
    return ARMS | {"unet": changed, "view": Viewed("view", changed, "hflip")}


OTHER = replace(setting.QUICK, own=replace(setting.QUICK.own, difficulty=0.25))


@pytest.mark.parametrize(
    ("again", "names"),
    [
        (
            {"chosen": ARMS | {"large": Trained(LARGE.row.model_copy(update={"lr": 0.5}))}},
            {"large"},
        ),
        ({"chosen": unet(says="prose is no number")}, set()),
        ({"chosen": unet(lr=0.5)}, {"unet", "view", "child", "pair", "all"}),  # its children, too
        ({"how": OTHER}, set(ARMS)),
    ],
)
def test_what_changed_is_made_again_and_nothing_else(place, again: dict, names: set):
    run(place, Stub())
    do = Stub()
    run(place, do, **again)
    assert set(do.did) == {(name, seed) for name in names for seed in SEEDS}


def test_a_third_seed_keeps_what_two_had_made(place):
    run(place, Stub())
    do = Stub()
    run(place, do, seeds=runner.seeds(3))
    third = runner.seeds(3)[2]
    # Of all seeds there are now more, and the second is followed by the third.
    again = {("all", SEEDS[0]), ("all", SEEDS[1]), ("pair", SEEDS[1])}
    assert {job for job in do.did if job[1] != third} == again


def test_one_seed_has_nothing_to_join_across():
    planned = runner.plan(ARMS, SEEDS[:1], setting.QUICK)
    assert [job.arm.name for job in planned] == ["unet", "large", "view", "child"]


def test_an_arm_is_made_again_once_others_start_from_it(place):
    run(place, Stub(), {"unet": UNET, "large": LARGE})
    do = Stub()
    run(place, do, {"unet": UNET, "large": LARGE, "child": CHILD})
    assert {name for name, _ in do.did} == {"unet", "child"}


def test_checkpoints_stay_for_those_who_start_from_them():
    keep = {job.arm.name: job.keep for job in runner.plan(ARMS, SEEDS, setting.QUICK)}
    assert {name for name, kept in keep.items() if kept} == {"unet"}


def test_progress_says_what_is_left(place):
    lines = []
    run(place, Stub(), say=lines.append)
    assert lines[0] == "12 arms and seeds, 0 of them done"
    assert lines[1].startswith(f"1/12 unet seed {SEEDS[0]}: 1 s; about ")
    assert lines[-1].startswith("12/12 pair")


def test_lines_are_json_and_the_last_of_a_key_counts(tmp_path):
    path = tmp_path / "results.jsonl"
    for error in (True, False):
        runner._append(path, {"key": "k"} | ({"error": "broken"} if error else {"columns": {}}))
    assert [json.loads(text)["key"] for text in path.read_text().splitlines()] == ["k", "k"]
    assert runner.read(path) == [{"key": "k", "columns": {}}]
