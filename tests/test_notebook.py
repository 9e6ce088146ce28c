"""Signals to a stage, alone and under papermill: it saves, and its status says what ended it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
import time

import nbformat
import pytest

from kernel_lib import notebook
from kernel_lib.notebook import Signals

BOTH = pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
STAGE = """\
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, {root!r})
from kernel_lib.notebook import Signals

with Signals().caught() as signals:
    leaves_signals = signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    signal.signal(signal.SIGINT, leaves_signals)
    with signals.{how}:
        Path("began").touch()
        while not signals.pending:
            time.sleep(0.01)
        worker.communicate(b"\\n")
        Path("saved").write_text(str(worker.returncode))
"""


@pytest.mark.parametrize("how", ["deferred()", "at_once()"])
def test_ctrl_c_to_papermill_saves_and_says_so(project_root, tmp_path, how):
    cells = [nbformat.v4.new_code_cell(STAGE.format(root=str(project_root), how=how))]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    written = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": python})
    nbformat.write(written, tmp_path / "in.ipynb")
    papermill = subprocess.Popen(
        [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--no-progress-bar"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # Ignored where the tests run in a shell's background, and inherited.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (tmp_path / "began").exists():
        assert papermill.poll() is None, papermill.stderr.read()
        time.sleep(0.05)
    os.killpg(papermill.pid, signal.SIGINT)
    shown = papermill.communicate(timeout=300)[1]
    assert papermill.returncode == 1
    assert shown.count(f"\n{notebook.STOPPED}\n") == 1, shown
    assert "Error" not in shown
    assert "Traceback" not in shown
    if how == "deferred()":  # its worker was left alone
        assert (tmp_path / "saved").read_text() == "0"


def test_outside_a_notebook_nothing_is_changed():
    assert notebook.kernel() is None
    notebook.let_cells_end()


def test_outside_a_stage_signals_are_as_they_were():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Signals().caught():
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@BOTH
def test_it_raises_at_once_and_the_status_is_the_signal_s(number, error):
    with pytest.raises(error) as caught, Signals().caught():
        signal.raise_signal(number)
    assert getattr(caught.value, "code", 143) == 143


@BOTH
@pytest.mark.parametrize(
    ("one_of_several", "more", "saves"),
    [
        (False, (), True),
        (False, (signal.SIGTERM,), False),
        (False, (signal.SIGINT,), False),
        # By the user, by the launcher, and because who started it ended.
        (True, (signal.SIGTERM, signal.SIGINT), True),
    ],
)
def test_deferred_it_waits_for_the_end_and_of_a_single_process_a_second_does_not(
    number, error, one_of_several, more, saves
):
    done = []

    def stage() -> None:
        with Signals(one_of_several).caught() as signals, signals.deferred():
            for sent in (number, *more):
                signal.raise_signal(sent)
                assert signals.pending == number
            done.append("saved")

    with pytest.raises(error if saves else (KeyboardInterrupt, SystemExit)):
        stage()
    assert done == ["saved"] * saves


def test_a_signal_that_comes_while_processes_ask_each_other_waits_for_the_next_time():
    signals = Signals(one_of_several=True)

    def gather(mine: int) -> list[int]:
        """Two processes; this one is signalled once it has given its value."""
        if not signals.pending:
            signal.raise_signal(signal.SIGTERM)
        return [0, mine]

    def stage() -> None:
        with signals.caught(), signals.deferred():
            assert not signals.come_to_any(gather)
            assert signals.come_to_any(gather)

    with pytest.raises(SystemExit):
        stage()
    other = Signals(one_of_several=True)
    assert other.come_to_any(lambda mine: [mine, int(signal.SIGINT)])
    assert other.pending == signal.SIGINT


@BOTH
@pytest.mark.parametrize("before", [False, True])
def test_a_piece_within_may_be_cut(number, error, before):
    done = []

    def stage() -> None:
        with Signals().caught() as signals, signals.deferred():
            if before:
                signal.raise_signal(number)
            try:
                with signals.at_once():
                    done.append("in the piece")
                    signal.raise_signal(number)
                    done.append("after it")
            finally:
                done.append("cleaned up")

    with pytest.raises(error):
        stage()
    assert done == (["cleaned up"] if before else ["in the piece", "cleaned up"])


def test_in_a_thread_there_is_nothing_to_catch():
    pending = []

    def work() -> None:
        with Signals().caught() as signals, signals.deferred():
            pending.append(signals.pending)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert pending == [0]


def test_a_forked_worker_leaves_signals_to_its_parent():
    with Signals().caught():
        worker = os.fork()
        if not worker:
            signal.raise_signal(signal.SIGINT)
            os._exit(7)
        _, status = os.waitpid(worker, 0)
    assert os.waitstatus_to_exitcode(status) == 7
