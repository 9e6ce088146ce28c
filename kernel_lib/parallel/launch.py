"""Several processes of one command, started by torch's launcher from one that touches no GPU.

The first rank's lines are printed here, in a terminal or a notebook's cell; the other ranks print
only the traceback with which one of them ends all. Ranks end with the process that started them,
and report to it what ended them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

import kernel_lib
from kernel_lib import storage
from kernel_lib.config import Parameters
from kernel_lib.errors import InputError

SHUTDOWN_S = 60.0  # in which a rank has to save, once it is asked to end
# Set for ranks whose input is a pipe that only the process which started their launcher holds.
STARTED = "KERNEL_LIB_STARTED"


def n_processes(asked: int | None, device: str) -> int:
    """Return how many processes a command starts; 1 is this one, and so it is for a rank.

    By default it is one for each visible GPU, unless `device` names one. They are counted without a
    context on any of them.
    """
    if "RANK" in os.environ:
        return 1
    if asked is None:
        return max(1, torch.cuda.device_count()) if device in ("auto", "cuda") else 1
    check(asked, device)
    return asked


def check(asked: int | None, device: str) -> None:
    """Raise InputError for several processes on a device that is one GPU."""
    if (asked or 1) > 1 and device not in ("auto", "cuda", "cpu"):
        raise InputError(
            f"PROCESSES {asked}, but DEVICE {device} is one GPU; -p DEVICE cuda, or 1 process"
        )


def run(command: str, parameters: Parameters, n: int) -> dict:
    """Run `python -m kernel_lib COMMAND CONFIG.json` in n processes and return its result.

    Interrupted, it asks them to end and waits until they have saved; they also end where this
    process is killed.

    Raises:
        KeyboardInterrupt, SystemExit, InputError: What ended the first of them to fail.
        RuntimeError: Another error ended one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        config, result = Path(folder) / f"{command}.json", Path(folder) / "result.json"
        storage.write_json(config, parameters.model_dump(mode="json"))
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc_per_node", str(n), "-m", "kernel_lib", command, str(config)]
        start += ["--result", str(result)]
        print(f"{n} processes, each with its share of every batch", flush=True)
        child = subprocess.Popen(
            start, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
            start_new_session=True,
        )  # fmt: skip
        with child.stdin:  # the ranks end once it closes
            try:
                status = _print_lines(child)
            except BaseException:
                _end(child)
                raise
        if status:
            # Where the launcher was killed, its ranks report no more than that they followed.
            cause = first_end(result, n) if status > 0 else None
            raise cause or RuntimeError(
                f"{command} in {n} processes ended with status {status}; why stands above. The "
                "same call goes on from what was saved; -p PROCESSES 1 takes one process"
            )
        return json.loads(result.read_text(encoding="utf-8"))


def _print_lines(child: subprocess.Popen) -> int:
    """Print the lines of the launcher and its ranks until all have ended; return the status."""
    for line in child.stdout:
        print(line, end="", flush=True)
    return child.wait()


def _end(child: subprocess.Popen) -> None:
    """Ask the launcher and its ranks to end, and wait for it.

    A launcher that does not end, or a second interrupt, has it killed; its ranks then end too.
    """
    child.send_signal(signal.SIGTERM)
    killer = threading.Timer(SHUTDOWN_S, child.kill)
    killer.start()
    try:
        _print_lines(child)
    except BaseException:  # a second interrupt
        child.kill()
        raise
    finally:
        killer.cancel()


def _environment() -> dict[str, str]:
    """Return this process's environment, with this copy of the library first on the path."""
    root = str(Path(kernel_lib.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [root, *(entry for entry in inherited if entry and entry != root)]
    own = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", STARTED: "1"}
    return os.environ | own | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(round(SHUTDOWN_S))}


def as_rank(run: Callable, result: Path | None) -> Callable:
    """Wrap a stage's `run` as one of several processes, with an error report for torch's launcher.

    `result` is the file that the first rank writes; how each rank ended is written beside it.
    """

    def ranked(parameters: Parameters) -> Any:
        _end_with_starter()
        try:
            outcome = run(parameters)
        except BaseException as error:
            _report(result, error)
            raise
        _report(result, None)
        return outcome

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

    After a kill the ranks would otherwise train on and keep their folder locked. A thread watches,
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
