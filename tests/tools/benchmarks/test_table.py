"""The table of `python -m tools.benchmarks`, and what its figures are measured against."""

from __future__ import annotations

import numpy as np
import pytest

from kernel_lib.data import rle
from tools.benchmarks import __main__ as table
from tools.benchmarks import rle as plain
from tools.benchmarks.rounds import FIGURE, Timed, figure, timed

ROW = "| a | 1 | 2 | 3 | 4 | `tools.benchmarks.{}` |\n"


def test_a_figure_is_a_line_that_the_table_reads(capsys):
    figure("an item of 512", "1.2 ms", "a plain one, decoded: 9 ms", "7.5 × faster", "5 ×")
    cells = FIGURE.match(capsys.readouterr().out.strip()).groups()
    assert cells == (
        "an item of 512",
        "1.2 ms",
        "a plain one, decoded: 9 ms",
        "7.5 × faster",
        "5 ×",
    )
    assert FIGURE.match("128²: train 9.10 images/s, bare loop 9.50: 96% (bar: 90 %)")
    assert not FIGURE.match("48 DICOMs of 217 kB, phantoms")


def test_works_run_turn_about_and_the_first_round_does_not_count():
    ran = []
    took = timed({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, rounds=2)
    assert ran == ["a", "b"] * 3
    assert "a" in took
    assert "c" not in took


def test_a_ratio_is_the_median_of_each_round_s_own():
    took = Timed({"ours": [1.0, 10.0, 1.0], "other": [2.0, 20.0, 9.0]})
    assert took.times_faster("ours", "other") == 2
    assert took.seconds("other") == 9


def test_rows_replace_those_of_the_same_benchmark_alone():
    old = f"{table.BEGIN}\n{table.HEAD}{ROW.format('rle')}{ROW.format('votes')}{table.END}"
    new = ROW.format("rle").replace("1", "9")
    joined = table.joined(f"before {old} on", [new, ROW.format("prepare")])
    block = table.HEAD + ROW.format("prepare") + new + ROW.format("votes")
    assert joined == f"before {table.BEGIN}\n{block}{table.END} on"


def test_the_competition_s_own_functions_agree_but_for_the_last_pixel(monkeypatch):
    monkeypatch.setattr(plain, "SIDE", 8)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:4] = 1
    assert plain.pixel_by_pixel(mask) == rle.encode(mask)
    for contiguous in (True, False):
        assert np.array_equal(plain.run_by_run(rle.encode(mask), contiguous), mask)
    mask[6:, 7] = 1
    lost = rle.decode(plain.pixel_by_pixel(mask), (8, 8))
    assert mask.sum() - lost.sum() == 2


@pytest.mark.parametrize("name", table.NAMES)
def test_each_benchmark_says_how_it_is_run(name):
    module = __import__(f"tools.benchmarks.{name}", fromlist=["main"])
    assert f"python -m tools.benchmarks.{name}" in module.__doc__
    assert callable(module.main)
