"""What a notebook needs: progress bars that do not flood it, and time to save where it is stopped.

On Ctrl-C papermill sends its kernel SIGINT and a request to shut down, SIGTERM after 2.5 seconds
and SIGKILL after 5. ipykernel answers the request from a thread while the cell still runs: it
terminates the workers of the very step that is to be saved, and closes the sockets that the cell's
reply goes through.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

GOES_ON = "run the same command again to go on"
STOPPED = f"stopped, finished work is saved; {GOES_ON}"
_REQUEST_WAIT_S = 1.0  # from an interrupt to the request that papermill sends after it
_REPLY_WAIT_S = 0.2  # in which the kernel sends a cell's reply


def kernel() -> Any | None:
    """Return this process's notebook kernel, or None."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None)


def let_cells_end() -> None:
    """Make a request to shut down this kernel wait for the end of the running cell."""
    running = kernel()
    if running is not None:
        handlers = running.control_handlers
        if not isinstance(handlers["shutdown_request"], _Shutdown):
            handlers["shutdown_request"] = _Shutdown(running)


class _Shutdown:
    """A kernel's handler of requests to shut down, installed while a cell runs."""

    def __init__(self, running: Any) -> None:
        self._shut_down = running.control_handlers["shutdown_request"]
        self._asked, self._idle = threading.Event(), threading.Event()
        running.shell.events.register("pre_run_cell", lambda info: self._idle.clear())
        running.shell.events.register("post_run_cell", self._cell_ended)

    async def __call__(self, stream: Any, ident: Any, parent: Any) -> None:
        import asyncio

        self._asked.set()
        while not self._idle.is_set():
            await asyncio.sleep(0.05)
        await asyncio.sleep(_REPLY_WAIT_S)
        await self._shut_down(stream, ident, parent)

    def _cell_ended(self, result: Any) -> None:
        interrupted = isinstance(result.error_in_exec, KeyboardInterrupt)
        if interrupted and self._asked.wait(_REQUEST_WAIT_S):
            os.write(2, f"{STOPPED}\n".encode())  # to the terminal: papermill has left
            # papermill awaits no reply: of an error it would print a traceback.
            result.error_in_exec = None
        self._idle.set()


def bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar, redrawn often on a terminal and rarely in a log or a notebook."""
    is_terminal = sys.stderr.isatty()
    options.setdefault("mininterval", 0.2 if is_terminal else 15.0)
    options.setdefault("dynamic_ncols", is_terminal)
    return tqdm(items, **options)
