"""Signals sent to a real process: it saves, and its status says what ended it."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from kernel_lib.signals import Signals

BOTH = pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)


def test_outside_a_stage_signals_are_as_they_were():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Signals().caught():
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@BOTH
def test_it_raises_at_once_and_the_status_is_the_signal_s(number, error):
    def stage() -> None:
        with Signals().caught():
            signal.raise_signal(number)
            raise AssertionError("it should not have come here")

    with pytest.raises(error) as caught:
        stage()
    if error is SystemExit:
        assert caught.value.code == 143


@BOTH
@pytest.mark.parametrize("times", [1, 2])
def test_deferred_it_waits_for_the_end_and_a_second_does_not(number, error, times):
    done = []

    def stage() -> None:
        with Signals().caught() as signals, signals.deferred():
            signal.raise_signal(number)
            assert signals.pending == number
            done.append("first")
            if times == 2:
                signal.raise_signal(number)
                done.append("second")

    with pytest.raises(error):
        stage()
    assert done == ["first"]


@BOTH
def test_one_of_several_processes_is_signalled_more_than_once_and_saves(number, error):
    """By the user, by the launcher, and because who started it ended."""
    done = []

    def stage() -> None:
        with Signals(patient=True).caught() as signals, signals.deferred():
            for again in (number, signal.SIGTERM, signal.SIGINT):
                signal.raise_signal(again)
            assert signals.pending == number
            done.append("saved")

    with pytest.raises(error):
        stage()
    assert done == ["saved"]


def test_a_signal_that_comes_while_processes_ask_each_other_waits_for_the_next_time():
    signals = Signals(patient=True)

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
    other = Signals(patient=True)
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
