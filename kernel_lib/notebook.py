"""Within a notebook's kernel: time to save, and a sentence, where the notebook is stopped.

On Ctrl-C papermill sends its kernel SIGINT and a request to shut down, SIGTERM after 2.5 seconds
and SIGKILL after 5. ipykernel answers the request from a thread while the cell still runs: it
terminates the workers of the very step that is to be saved, and closes the sockets that the cell's
reply would go through.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

GOES_ON = "run the same command again to go on"
STOPPED = f"stopped, finished work is saved; {GOES_ON}"
_MOST_WAITED = 1.0  # seconds from an interrupt to the request that papermill sends after it
_REPLIED = 0.2  # seconds in which the kernel sends a cell's reply


def kernel() -> Any | None:
    """Return the notebook kernel that this process is, None where it is none."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None)


def let_cells_end() -> None:
    """From here on a request to shut down this kernel waits for the end of the running cell."""
    here = kernel()
    if here is not None and not isinstance(here.control_handlers["shutdown_request"], _Shutdown):
        here.control_handlers["shutdown_request"] = _Shutdown(here)


class _Shutdown:
    """A kernel's handler of requests to shut down, installed while a cell runs."""

    def __init__(self, here: Any) -> None:
        self._answer = here.control_handlers["shutdown_request"]
        self._asked, self._idle = threading.Event(), threading.Event()
        here.shell.events.register("pre_run_cell", self._cell_starts)
        here.shell.events.register("post_run_cell", self._cell_ended)

    async def __call__(self, stream: Any, ident: Any, parent: Any) -> None:
        import asyncio

        self._asked.set()
        while not self._idle.is_set():
            await asyncio.sleep(0.05)
        await asyncio.sleep(_REPLIED)
        await self._answer(stream, ident, parent)

    def _cell_starts(self, _info: Any) -> None:
        self._idle.clear()

    def _cell_ended(self, result: Any) -> None:
        interrupted = isinstance(result.error_in_exec, KeyboardInterrupt)
        if interrupted and self._asked.wait(_MOST_WAITED):
            os.write(2, f"{STOPPED}\n".encode())  # the terminal's, which papermill left by now
            # Nobody in papermill awaits the reply: of an error it would print a traceback.
            result.error_in_exec = None
        self._idle.set()
