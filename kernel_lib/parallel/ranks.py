"""What a rank owes the process that had it started: it ends with that, and says what ended it."""

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

ENDED = 60.0  # seconds that a rank has to save in, once it is asked to end
# Set for ranks whose input is a pipe that only the process which started their launcher holds.
STARTED = "KERNEL_LIB_STARTED"


def of(run: Callable, result: Path | None) -> Callable:
    """A stage's `run` as one of several processes, in the words of torch's launcher.

    `result` is where the first rank writes what it came to; how each rank ended is told beside it.
    """

    def ranked(parameters: Any) -> Any:
        _end_with_starter()
        try:
            done = run(parameters)
        except BaseException as error:
            _tell(result, error)
            raise
        _tell(result, None)
        return done

    return record(ranked)


def first_end(result: Path, n_ranks: int) -> BaseException | None:
    """What ended the first rank that did not end well, if that was a signal or an InputError.

    The others then end because it did: by a closed connection, or as the launcher asks them to. A
    rank that was killed tells nothing, and the launcher's SIGTERM to the others is not what began
    it.
    """
    told = []
    for path in result.parent.glob(f"{result.name}.rank*"):
        with contextlib.suppress(ValueError):  # killed as it told
            told.append(json.loads(path.read_text(encoding="utf-8")))
    ended = [one for one in told if not one.get("well")]
    first = min(ended, key=lambda one: one["at"], default={})
    if status := first.get("status"):
        if status == 128 + signal.SIGTERM and len(told) < n_ranks:
            return None
        return KeyboardInterrupt() if status == 128 + signal.SIGINT else SystemExit(status)
    return InputError(first["refused"]) if first.get("refused") else None


def _tell(result: Path | None, error: BaseException | None) -> None:
    """Leave word of how this rank ended, where somebody waits for it; None is well."""
    if result is None:
        return
    said: dict[str, Any] = {"at": time.time_ns(), "well": error is None}
    if isinstance(error, KeyboardInterrupt):
        said["status"] = 128 + signal.SIGINT
    elif isinstance(error, SystemExit):
        said["status"] = error.code
    elif isinstance(error, InputError):
        said["refused"] = str(error)
    with contextlib.suppress(OSError, InputError):  # no room: then nobody is told
        storage.write_json(result.with_name(f"{result.name}.rank{os.environ['RANK']}"), said)


def _end_with_starter() -> None:
    """End as if by SIGTERM, all saved, once the launcher, or who started that, is no more.

    A killed process tells nobody, and its ranks would train on, and keep their folder, unseen.
    """
    launcher, started = os.getppid(), STARTED in os.environ

    def follow() -> None:
        while os.getppid() == launcher:
            if not started:
                time.sleep(1)
            elif select.select([0], [], [], 1)[0] and not os.read(0, 1):
                break
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ENDED)
        os._exit(128 + signal.SIGTERM)  # it hangs, or waits for a rank that does

    threading.Thread(target=follow, daemon=True).start()
