"""Several processes of one command, started by torch's launcher from one that touches no GPU.

The first rank's lines are printed here, in a terminal or a notebook's cell; the other ranks print
only the traceback with which one of them ends all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch

import kernel_lib
from kernel_lib import storage
from kernel_lib.config import Parameters
from kernel_lib.errors import InputError
from kernel_lib.parallel import ranks


def n_processes(asked: int | None, device: str) -> int:
    """Return how many processes a command starts; 1 is this one, and so it is for a rank.

    Where none is asked for, it is one for each visible GPU unless `device` names one. They are
    counted without a context on any of them.
    """
    if "RANK" in os.environ:
        return 1
    if asked is None:
        return max(1, torch.cuda.device_count()) if device in ("auto", "cuda") else 1
    check(asked, device)
    return asked


def check(asked: int | None, device: str) -> None:
    """Raise InputError for several processes on a device that is one card."""
    if (asked or 1) > 1 and device not in ("auto", "cuda", "cpu"):
        raise InputError(
            f"PROCESSES {asked}, but DEVICE {device} is one card; -p DEVICE cuda, or 1 process"
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
                status = _shown(child)
            except BaseException:
                _end(child)
                raise
        if status:
            # Where the launcher was killed, its ranks report no more than that they followed.
            cause = ranks.first_end(result, n) if status > 0 else None
            raise cause or RuntimeError(
                f"{command} in {n} processes ended with status {status}; why stands above. The "
                "same call goes on from what was saved; -p PROCESSES 1 takes one process"
            )
        return json.loads(result.read_text(encoding="utf-8"))


def _shown(child: subprocess.Popen) -> int:
    """Print the lines of the launcher and its ranks until all have ended; return the status."""
    for line in child.stdout:
        print(line, end="", flush=True)
    return child.wait()


def _end(child: subprocess.Popen) -> None:
    """Ask the launcher and its ranks to end, and wait for it.

    A launcher that does not end, or a second interrupt, has it killed; its ranks then end too.
    """
    child.send_signal(signal.SIGTERM)
    killer = threading.Timer(ranks.SHUTDOWN_S, child.kill)
    killer.start()
    try:
        _shown(child)
    except BaseException:  # asked again
        child.kill()
        raise
    finally:
        killer.cancel()


def _environment() -> dict[str, str]:
    """Return this process's environment, with this copy of the library first on the path."""
    root = str(Path(kernel_lib.__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [root, *(entry for entry in inherited if entry and entry != root)]
    own = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", ranks.STARTED: "1"}
    return os.environ | own | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(round(ranks.SHUTDOWN_S))}
