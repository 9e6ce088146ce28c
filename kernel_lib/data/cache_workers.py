"""Processes that fill many slots at once, with few images in flight."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

import cv2

from kernel_lib.data.cache_store import Row, Store, Task, fill
from kernel_lib.errors import InputError

BATCH = 8
# Processes take seconds to start: they are used where this process, after a second of work, would
# need several more. How long an image takes (3 ms or 300) is not known before.
TRIAL_S = 1.0
WORTH_S = 4.0
BATCHES_AHEAD = 4

Outcome = tuple[Task, Row | InputError]


def outcomes(store: Store, tasks: list[Task], workers: int) -> Iterator[Outcome]:
    """Fill the tasks' slots and yield the outcome of each, in no fixed order.

    Raises: OSError where the cache can't be written; RuntimeError where a worker dies.
    """
    start = time.monotonic()
    for n_done, task in enumerate(tasks, 1):
        yield from _fill_batch(store, [task])
        spent_s = time.monotonic() - start
        left_s = spent_s / n_done * (len(tasks) - n_done)
        if workers > 1 and spent_s >= TRIAL_S and left_s > WORTH_S:
            yield from _by_processes(store, tasks[n_done:], workers)
            return


def _by_processes(store: Store, tasks: list[Task], workers: int) -> Iterator[Outcome]:
    # Forked processes would inherit the threads' locks (OpenCV's, torch's) of this one.
    context = multiprocessing.get_context("spawn")
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    except OSError as error:  # of its semaphores in /dev/shm, not of the cache's own disk
        print(f"note: images are decoded by one process: {error.strerror or error} in /dev/shm")
        for task in tasks:
            yield from _fill_batch(store, [task])
        return
    try:
        yield from _in_flight(pool, store, tasks, workers)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker of `prepare` died (out of memory, or the calling script lacks "
            '`if __name__ == "__main__":`); what is done is kept: call again, with workers=1'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_flight(
    pool: ProcessPoolExecutor, store: Store, tasks: list[Task], workers: int
) -> Iterator[Outcome]:
    waiting: set[Future] = set()
    for start in range(0, len(tasks), BATCH):
        if len(waiting) >= BATCHES_AHEAD * workers:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
        waiting.add(pool.submit(_fill_batch, store, tasks[start : start + BATCH]))
    for future in waiting:
        yield from future.result()


def _fill_batch(store: Store, tasks: list[Task]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for task in tasks:
        try:
            outcomes.append((task, fill(store, task)))
        except InputError as error:
            outcomes.append((task, error))
    return outcomes


def _start() -> None:
    """Prepare a worker: one thread, and an end with its parent."""
    cv2.setNumThreads(1)  # the processes are the parallelism
    parent = multiprocessing.parent_process()

    def follow() -> None:
        # Workers of a killed parent would wait for tasks for ever.
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
