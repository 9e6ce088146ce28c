"""Work shared among worker processes: order, errors, and the end of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from kernel_lib import workers
from kernel_lib.errors import InputError
from kernel_lib.notebook import Signals

N = 300  # items; MIN_FORK_ITEMS of them are shared among processes


@pytest.mark.parametrize("n", [0, 1, N])
def test_results_come_in_the_order_of_the_items(n: int) -> None:
    squares = list(workers.each(lambda x: np.int64(x) ** 2, range(n)))
    assert squares == [x**2 for x in range(n)]


def test_many_items_are_shared_among_processes_and_few_are_not() -> None:
    of_many = set(workers.each(lambda x: os.getpid(), range(workers.MIN_FORK_ITEMS)))
    assert 1 <= len(of_many) <= min(max(workers.n_cores(), 2), workers.MOST_WORKERS)
    assert os.getpid() not in of_many
    assert set(workers.each(lambda x: os.getpid(), range(workers.MIN_FORK_ITEMS - 1))) == {
        os.getpid()
    }


def test_an_error_of_one_item_is_raised_as_it_is() -> None:
    def work(x: int) -> int:
        if x == N // 2:
            raise InputError(f"item {x} is damaged")
        return x

    done = []
    with pytest.raises(InputError, match=f"item {N // 2}"):
        done.extend(workers.each(work, range(N)))


def test_a_worker_that_dies_is_an_error_and_does_not_hang() -> None:
    def work(x: int) -> None:
        if x == 20:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match="memory"):
        list(workers.each(work, range(N)))
    with Signals().caught(), pytest.raises(InputError, match="memory"):
        list(workers.each(work, range(N)))


def test_threads_do_the_work_where_there_are_no_semaphores(monkeypatch) -> None:
    def refused(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refused)
    assert set(workers.each(lambda x: os.getpid(), range(N))) == {os.getpid()}


SCRIPT = """
import os, signal, sys
from kernel_lib import workers

def work(x):
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
    signal.pause()

list(workers.each(work, range(300)))
"""


def test_workers_end_with_their_killed_parent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.touch()
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(pids)])
    try:
        while len(set(pids.read_text().split())) < 2:
            assert parent.poll() is None
    finally:
        parent.kill()
        parent.wait()
    for pid in map(int, pids.read_text().split()):
        while _is_running(pid):
            os.sched_yield()  # until the suite's own time limit


def _is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
