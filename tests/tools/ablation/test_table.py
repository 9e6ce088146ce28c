from pathlib import Path

import pytest

from kernel_lib.errors import InputError
from tools.ablation import runner, setting, table
from tools.ablation.claims import Claim, Explained, OnGpu, Spread
from tools.ablation.paired import Difference
from tools.ablation.table import BEGIN, END, Results, verdict

IMAGES = {
    "key": "i", "arm": runner.IMAGES, "seed": 0, "groups": ["a", "b", "c", "d"],
    "columns": {"true_area_px": [0.0, 10.0, 20.0, 30.0], "dice": [1.0, 0.0, 0.0, 0.0]},
}  # fmt: skip
CLAIM = Claim("bigger helps", "big | small", "big:dice", "small:dice", "more", "because", "not so")


def line(arm: str, seed: int, dice: list[float]) -> dict:
    return {"key": f"{arm}{seed}", "arm": arm, "seed": seed, "columns": {"dice": dice}}


def results(gap: float, n_seeds: int) -> Results:
    low = [0.125, 0.25, 0.375, 0.5]
    lines = [IMAGES]
    for seed in range(n_seeds):
        lines += [line("small", seed, low), line("big", seed, [d + gap for d in low])]
    return Results(lines, n_bootstrap=50)


def row(found: Results, claim=CLAIM) -> list[str]:
    text = table.render(found, setting.QUICK, {"Section": [claim]})
    (line,) = [t for t in text.splitlines() if t.startswith(f"| {claim.says} ")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_three_seeds_decide_and_two_do_not():
    assert row(results(0.25, 3)) == [
        "bigger helps", r"big \| small", "3", "+0.2500 [+0.2500, +0.2500]", "holds", "because"
    ]  # fmt: skip
    assert row(results(0.25, 2))[2:5] == ["2", "+0.2500 [+0.2500, +0.2500]", "undecided (n = 2)"]
    assert row(results(0.25, 0))[2:5] == ["0", "–", "undecided (n = 0)"]


def test_what_does_not_hold_is_written_down_with_its_own_reason():
    assert row(results(-0.125, 3))[3:] == [
        "-0.1250 [-0.1250, -0.1250]", "does not hold", "not so"
    ]  # fmt: skip
    assert row(results(0.0, 3))[3:] == ["+0.0000 [+0.0000, +0.0000]", "undecided", "because"]
    assert "nan" not in table.render(results(0.25, 3), setting.QUICK)


@pytest.mark.parametrize(
    ("low", "high", "expects", "said"),
    [
        (0.001, 0.2, "more", "holds"),
        (-0.2, -0.001, "more", "does not hold"),
        (-0.001, 0.2, "more", "undecided"),
        (0.0, 0.2, "more", "undecided"),
        (-0.2, -0.001, "less", "holds"),
        (0.001, 0.2, "less", "does not hold"),
        (0.001, 0.2, "open", "better"),
        (-0.2, -0.001, "open", "worse"),
        (-0.2, 0.001, "open", "undecided"),
        (-0.009, 0.01, "same", "holds"),
        (0.001, 0.009, "same", "holds"),
        (-0.011, 0.01, "same", "undecided"),
        (0.001, 0.02, "same", "does not hold"),
        (-0.02, -0.001, "same", "does not hold"),
        (-0.5, 0.01, "no gain", "holds"),
        (-0.5, 0.02, "no gain", "undecided"),
        (0.001, 0.02, "no gain", "does not hold"),
    ],
)
def test_verdicts(low, high, expects, said):
    assert verdict(Difference((low + high) / 2, low, high, 3), expects, 0.01) == said
    assert verdict(Difference(0.0, low, high, 2), expects, 0.01) == "undecided (n = 2)"


def test_only_seeds_that_both_sides_have_are_compared():
    lines = [line("big", 1, [1.0] * 4), line("big", 2, [0.5] * 4), line("small", 2, [0.25] * 4)]
    assert Results([IMAGES, *lines]).difference(CLAIM)[:] == (0.25, 0.25, 0.25, 1)
    learns = Claim("learns", "", "big:dice", "all_empty:dice", "more", "")  # which has every seed
    assert results(0.25, 3).difference(learns).value == pytest.approx(0.5625 - 0.25)


def test_the_better_of_two_is_that_over_all_seeds():
    lines = [IMAGES]
    for seed, (a, b) in enumerate([(0.25, 0.5), (0.5, 0.375), (0.25, 0.5)]):
        lines += [line(*arm) for arm in (("a", seed, [a] * 4), ("b", seed, [b] * 4))]
        lines += [line("both", seed, [0.625] * 4)]
    claim = Claim("together", "", "both:dice", "a|b:dice", "more", "")
    assert Results(lines, 20).difference(claim).value == pytest.approx(0.625 - 1.375 / 3)


def test_spread_names_the_seeds_that_lie_apart():
    """The notes' five: 0.8548 is 0.0055 from the median, whose MAD is 0.0011: 3.37, below 3.5."""
    theirs = dict(enumerate([0.8614, 0.8597, 0.8603, 0.8632, 0.8548]))
    assert table.outliers(theirs) == []
    assert table.outliers(theirs | {4: 0.8540}) == [4]
    assert table.outliers({0: 0.1, 1: 0.9, 2: 0.9, 3: 0.9}) == []  # too few to tell
    spread = Spread("seeds", "big", "why")
    lines = [IMAGES, *(line("big", s, [v] * 4) for s, v in enumerate([0.5, 0.5, 0.5, 0.5, 0.25]))]
    cells = row(Results(lines, 10), spread)
    assert cells[2] == "5"
    assert cells[3].endswith("4: 0.2500; standard deviation 0.1118")
    assert cells[4] == "outlier: 4"
    assert row(results(0.0, 2), spread)[4] == "undecided (n = 2)"
    assert row(results(0.0, 3), spread)[4] == "5 seeds are needed to call one an outlier"


def test_determinism_is_measured_or_said_to_be_unmeasured():
    asked = OnGpu("slower?", "a GPU", "why")
    assert row(results(0.0, 1), asked)[2:5] == ["–", "–", "unmeasured: no GPU here"]
    speeds = {"free": [100.0, 200.0], "deterministic": [90.0, 160.0]}
    found = Results([IMAGES, {"key": "g", "arm": "gpu", "seed": 0, "columns": speeds}], 10)
    assert row(found, asked)[2:5] == ["2 rounds", "125 against 150: × 0.85 (0.80 to 0.90)", "holds"]


def test_what_is_explained_and_what_failed_is_listed():
    failed = {"key": "f", "arm": "big", "seed": 7, "error": "ValueError: broken"}
    explained = {"S": [Explained("split", "arithmetic", "0.67")]}
    text = table.render(Results([IMAGES, failed], 10), setting.QUICK, explained)
    assert "| split | arithmetic | – | – | explained | 0.67 |" in text
    assert "- failed: big, seed 7: ValueError: broken" in text
    assert "Phantoms are not patients" in text


def test_only_lines_whose_arms_are_there_are_known():
    spread, explained = Spread("seeds", "other", ""), Explained("", "", "")
    sections = {"A": [CLAIM, spread, explained], "B": [spread]}
    assert table.known(sections, {"big", "small"}) == {"A": [CLAIM]}


def test_the_section_replaces_what_stood_between_its_markers(tmp_path: Path):
    path = tmp_path / "results.md"
    path.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    table.write(path, "new\n")
    assert path.read_text() == f"before\n\n{BEGIN}\nnew\n{END}\n\nafter\n"
    path.write_text("before\n")
    table.write(path, "new\n")
    table.write(path, "newer\n")
    assert path.read_text() == f"before\n\n{BEGIN}\nnewer\n{END}\n"


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}\n{BEGIN}"])
def test_half_a_pair_of_markers_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "results.md"
    path.write_text(text)
    with pytest.raises(InputError, match="restore both"):
        table.write(path, "new\n")
    assert path.read_text() == text


def test_without_results_the_error_says_how_to_make_them():
    with pytest.raises(InputError, match=r"python -m tools\.ablation run"):
        Results([])
