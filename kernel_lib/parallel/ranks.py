"""Ranks end with the process that started them, and report to it what ended them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import record

from kernel_lib import storage
from kernel_lib.errors import InputError

SHUTDOWN_S = 60.0  # in which a rank has to save, once it is asked to end
# Set for ranks whose input is a pipe that only the process which started their launcher holds.
STARTED = "KERNEL_LIB_STARTED"


def of(run: Callable, result: Path | None) -> Callable:
    """Wrap a stage's `run` as one of several processes, with an error report for torch's launcher.

    `result` is the file that the first rank writes; how each rank ended is written beside it.
    """

    def ranked(parameters: Any) -> Any:
        _end_with_starter()
        try:
            done = run(parameters)
        except BaseException as error:
            _report(result, error)
            raise
        _report(result, None)
        return done

    return record(ranked)


def first_end(result: Path, n_ranks: int) -> BaseException | None:
    """Return the signal or InputError that ended the first rank to fail; None for other causes.

    The other ranks end because it did: by a closed connection, or by the launcher's SIGTERM. A rank
    that was killed reports nothing, and the SIGTERM to the others is then not the cause.
    """
    reports = []
    for path in result.parent.glob(f"{result.name}.rank*"):
        with contextlib.suppress(ValueError):  # killed as it wrote
            reports.append(json.loads(path.read_text(encoding="utf-8")))
    failed = [report for report in reports if not report.get("well")]
    first = min(failed, key=lambda report: report["at"], default={})
    if status := first.get("status"):
        if status == 128 + signal.SIGTERM and len(reports) < n_ranks:
            return None
        return KeyboardInterrupt() if status == 128 + signal.SIGINT else SystemExit(status)
    return InputError(first["refused"]) if first.get("refused") else None


def _report(result: Path | None, error: BaseException | None) -> None:
    """Write how this rank ended, where a process waits for it; None is success."""
    if result is None:
        return
    report: dict[str, Any] = {"at": time.time_ns(), "well": error is None}
    if isinstance(error, KeyboardInterrupt):
        report["status"] = 128 + signal.SIGINT
    elif isinstance(error, SystemExit):
        report["status"] = error.code
    elif isinstance(error, InputError):
        report["refused"] = str(error)
    with contextlib.suppress(OSError, InputError):  # a full disk
        storage.write_json(result.with_name(f"{result.name}.rank{os.environ['RANK']}"), report)


def _end_with_starter() -> None:
    """End as by SIGTERM, all saved, once the launcher, or the process that started it, has ended.

    Of a kill nothing else tells: the ranks would train on and keep their folder. A thread watches,
    since torch's launcher sets no PR_SET_PDEATHSIG, which is of Linux alone, follows the thread
    that started a process, not its grandparent, and ends no rank that hangs.
    """
    launcher, started = os.getppid(), STARTED in os.environ

    def follow() -> None:
        while os.getppid() == launcher:
            if not started:
                time.sleep(1)
            elif select.select([0], [], [], 1)[0] and not os.read(0, 1):
                break
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SHUTDOWN_S)
        os._exit(128 + signal.SIGTERM)  # it hangs, or waits for a rank that hangs

    threading.Thread(target=follow, daemon=True).start()
