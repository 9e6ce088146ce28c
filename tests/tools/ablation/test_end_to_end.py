"""Tiny arms, trained and shown in a table, and one of every kind."""

from pathlib import Path

import pytest

from kernel_lib.errors import InputError
from tools.ablation import arms, runner, table
from tools.ablation.setting import Phantoms, Place, Setting

pytestmark = pytest.mark.slow

HOW = Setting(
    own=Phantoms(24, 20, 64, difficulty=0.0, positives=0.5, seed=1),
    other=Phantoms(20, 2, 64, difficulty=0.0, positives=0.5, seed=2),
    n_folds=2,
)
TINY = arms.BASELINE.differing(name="unet", size=64, epochs=1, min_epochs=0)
NAMES = (
    "unet", "unet_hflip", "nonempty", "classifier", "two_step", "classifier_of_others",
    "pretrained",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(scratch) -> Place:
    return Place(scratch)


def chosen(*names: str) -> dict:
    every = arms.build(TINY, (32, 64, 96))
    return {name: every[name] for name in names}


def run(place: Place, *names: str, how: Setting = HOW) -> list[dict]:
    runner.settle(chosen(*names), how, place)
    return runner.run(chosen(*names), runner.seeds(1), how, place, say=lambda text: None)


def test_two_arms_become_a_table_and_a_second_call_trains_nothing(place):
    lines = run(place, "unet", "lovasz")
    by_arm = {line["arm"]: line for line in lines}
    assert set(by_arm) == {"unet", "lovasz", "all_empty"}
    assert not [line for line in lines if "error" in line]
    assert len(by_arm["unet"]["columns"]["dice"]) == len(by_arm["all_empty"]["groups"]) == 20
    before = place.results.read_bytes()
    assert run(place, "unet", "lovasz") == lines
    assert place.results.read_bytes() == before
    page = table.render(table.Results(lines, 20), HOW)
    (lovasz,) = [row for row in page.splitlines() if "Lovász against BCE" in row]
    assert "| 1 |" in lovasz
    assert "undecided (n = 1)" in lovasz
    assert str(place.folder) not in page


def test_every_kind_of_arm_comes_to_numbers(place):
    lines = run(place, *NAMES)
    assert not [line for line in lines if "error" in line]
    assert len(lines) == 1 + len(NAMES)
    found = {(line["arm"], line["seed"]): line["columns"] for line in lines}
    (first,) = runner.seeds(1)
    assert set(found["classifier", first]) == {"label"}
    said = place.log("pretrained", first).read_text()
    assert f"encoder starts from {place.weights('classifier_of_others', first)}" in said
    # Only what others start from keeps its checkpoints, and nothing the optimiser's state.
    kept = {path.parent.parent.name for path in place.folder.rglob("best_epoch*.pt")}
    assert kept == {f"unet_seed{first}", f"classifier_of_others_seed{first}"}
    assert not list(place.folder.rglob("last.pt"))


def test_an_arm_that_fails_is_recorded_without_the_machines_paths(place):
    """ImageNet weights of this encoder are nowhere, and the error says where they were sought."""
    lost = arms.Trained(TINY.differing(name="lost", weights="imagenet"))
    lines = runner.run(
        {"lost": lost}, runner.seeds(1), HOW, place, at_once=1, say=lambda text: None
    )
    (error,) = [line["error"] for line in lines if line["arm"] == "lost"]
    assert "ImageNet" in error
    assert str(Path.home()) not in error
    assert str(place.folder) not in error


def test_other_phantoms_in_the_same_folder_are_refused(place):
    other = Setting(own=HOW.other, other=HOW.own, n_folds=2)
    with pytest.raises(InputError, match="holds other phantoms"):
        run(place, "unet", how=other)
