"""Worker processes of one machine: how they start and end, and work shared among forked ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import connection
from typing import Any

import cv2

from kernel_lib.errors import InputError

MOST_WORKERS = 8  # more would wait for the process that collects their results
MIN_FORK_ITEMS = 200  # fewer do not repay starting processes, some 0.1 s
_CHUNK = 16  # items, a few milliseconds each, handed over together

# Of a forked worker: what it was started for, inherited rather than sent.
_work: Callable[[Any], Any]
_items: Sequence[Any]


def start_worker() -> None:
    """Prepare this worker process: no threads of OpenCV, and an end if the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent answers it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which a pool ends when a worker has died
    # The processes are the parallelism. 0, because 1 joins OpenCV's threads first, which a forked
    # process does not have: it would wait for ever.
    cv2.setNumThreads(0)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        # Workers of a killed parent would wait for tasks for ever.
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yield what `work` returns for each item, in their order, computed by a worker per core.

    Workers are forked, so that `work` may be any function; what it changes stays in its worker. Few
    items, and all where processes cannot be forked, are shared among threads instead.
    Raises: what `work` raises; InputError where a worker dies.
    """
    pool = _forked(work, items)
    try:
        if pool is None:
            pool = ThreadPoolExecutor(_n_workers())
            results = pool.map(work, items)
        else:
            with warnings.catch_warnings():
                # Of other threads at the fork: workers use no lock that these may hold.
                warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
                results = pool.map(_of_item, range(len(items)), chunksize=_CHUNK)
        yield from results
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process died, most likely for lack of memory: free some, and run it again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _forked(work: Callable[[Any], Any], items: Sequence[Any]) -> ProcessPoolExecutor | None:
    """Return a pool of processes; None for few items, and where there can be none."""
    if sys.platform != "linux" or len(items) < MIN_FORK_ITEMS:
        return None
    context = multiprocessing.get_context("fork")
    with suppress(OSError):  # of its semaphores in /dev/shm
        return ProcessPoolExecutor(_n_workers(), context, _start_forked, (work, items))
    return None


def _n_workers() -> int:
    return min(max(n_cores(), 2), MOST_WORKERS)  # two even on one core: one computes, one reads


def _start_forked(work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    global _work, _items
    _work, _items = work, items
    start_worker()


def _of_item(at: int) -> Any:
    return _work(_items[at])
