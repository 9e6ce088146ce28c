"""Every target for a moment, the same in texts that hypothesis finds, and the runner itself."""

from __future__ import annotations

import os
import random
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernel_lib.errors import InputError
from tools.fuzz import corpus, pictures, runner, runs, tables
from tools.fuzz.__main__ import _shared, main
from tools.fuzz.case import Case, Desk, Outcome, Target, desk_of, judge
from tools.fuzz.targets import TARGETS

QUICK = {"rle-real": 20, "dicom": 60, "dicom-real": 3}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> corpus.Corpus:
    return corpus.gather(tmp_path_factory.mktemp("none"))  # hence phantoms


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_no_input_of_a_target_is_a_fault(name, files, tmp_path):
    outcomes = []
    for index in range(QUICK.get(name, 150)):
        case = TARGETS[name].make(desk_of(name, 7, index, files, tmp_path))
        outcome, what = judge(case)
        assert outcome is not Outcome.FAULT, (index, what, case.data[:300])
        outcomes.append(outcome)
    if len(outcomes) > 50:
        assert set(outcomes) == {Outcome.REFUSED, Outcome.RIGHT}


def test_the_shares_are_of_all_cases():
    assert sum(target.share for target in TARGETS.values()) == pytest.approx(1, abs=0.05)
    assert sum(_shared(100_000, tuple(TARGETS)).values()) == 100_000
    assert min(_shared(1, tuple(TARGETS)).values()) == 1


@settings(max_examples=300)
@given(
    st.text(st.sampled_from("0123456789 -+.,\t\n\x00\u00a0\u0663e"), max_size=30),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
@example("18446744073709551615 1", (3, 3))
@example("-1 -1", (3, 3))
def test_any_text_is_an_rle_or_refused(text, shape):
    outcome, what = judge(runs.decode(text, shape))
    assert outcome is not Outcome.FAULT, what


@settings(max_examples=200)
@given(st.text(st.sampled_from('a1,"\n\r -\x00\ufeff\u2028'), max_size=25))
@example('a,"1 2\nb,"3 4')
@example("a\n")
def test_any_table_of_labels_is_read_as_the_csv_module_reads_it(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("table")
    desk = Desk(random.Random(0), None, folder)
    data = f"ImageId,EncodedPixels\n{text}".encode("utf-8", "surrogatepass")
    outcome, what = judge(tables.read_labels(desk, data))
    assert outcome is not Outcome.FAULT, what


def _refused():
    raise InputError("a cause")


def _case(attempt, wrong=lambda result: None) -> Target:
    return Target(lambda desk: Case(b"input", attempt, wrong), 1.0)


@pytest.mark.parametrize(
    ("attempt", "counts", "fault"),
    [
        (lambda: 1, (0, 3, 0), None),
        (_refused, (3, 0, 0), None),
        (lambda: [][0], (0, 0, 3), "0: IndexError: list index out of range"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), (0, 0, 3), "0: the process died (-9)"),
    ],
)
def test_a_tally_counts_what_became_of_each_case(tmp_path, files, attempt, counts, fault):
    tally = runner.run("it", _case(attempt), range(3), 5, files, tmp_path / "kept")
    assert (tally.refused, tally.right, len(tally.faults)) == counts
    assert tally.cases == 3
    if fault is None:
        assert not (tmp_path / "kept").exists()
        return
    assert tally.faults[0] == fault
    assert (tmp_path / "kept" / "it-5-2.bin").read_bytes() == b"input"
    assert "--target it --seed 5 --case 2" in (tmp_path / "kept" / "it-5-2.txt").read_text()


def _exhausted():
    try:
        raise MemoryError
    except MemoryError as error:
        raise InputError("too large") from error


def _endless():
    while True:
        try:
            signal.pause()
        except Exception:
            continue


@pytest.mark.parametrize(
    ("attempt", "fault"),
    [
        (lambda: 3, "wrong: it is 3"),
        (_exhausted, "memory ran out: too large"),  # though it was refused
        (_endless, "not done after 0.05 s"),  # though everything is caught
    ],
)
def test_a_wrong_result_is_a_fault_and_so_are_hangs_and_lost_memory(monkeypatch, attempt, fault):
    monkeypatch.setattr("tools.fuzz.case.LIMIT_SECONDS", 0.05)
    assert judge(Case(b"", attempt, lambda result: f"it is {result}")) == (Outcome.FAULT, fault)


def test_decoders_may_differ_in_one_block_of_a_damaged_jpeg_and_not_in_two():
    differs = np.zeros((33, 17), bool)
    differs[8:16, 0:8] = True
    assert pictures._in_few_blocks(differs)
    differs[32, 16] = True  # of the last, narrower block
    assert not pictures._in_few_blocks(differs)


def test_the_same_seed_makes_the_same_case(files, tmp_path):
    first, again, other = (
        TARGETS["dicom"].make(desk_of("dicom", seed, 4, files, tmp_path)).data for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_command_prints_a_table_and_ends_with_1_at_a_fault(tmp_path, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpus, "gather", lambda: files)
    monkeypatch.setattr(
        "tools.fuzz.__main__.TARGETS", {"rle": TARGETS["rle"], "bad": _case(lambda: 1 / 0)}
    )
    done = CliRunner().invoke(main, ["--cases", "20", "--target", "rle"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[2].split()[:2] == ["rle", "20"]
    done = CliRunner().invoke(main, ["--cases", "20"])
    assert done.exit_code == 1
    assert "bad 0: ZeroDivisionError: division by zero" in done.output


def test_no_warning_is_silenced_for_good(files, tmp_path):
    before = list(warnings.filters)
    runner.run("it", _case(lambda: 1), range(1), 0, files, Path(tmp_path))
    assert list(warnings.filters) == before
