"""What a stage needs where it runs: progress bars, and an end with complete files on a signal.

SIGTERM and Ctrl-C end a stage with the signal's exit status once it has saved. On Ctrl-C papermill
sends its kernel SIGINT and a request to shut down, SIGTERM after 2.5 seconds and SIGKILL after 5.
ipykernel answers the request from a thread while the cell still runs: it terminates the workers of
the very step that is to be saved, and closes the sockets that the cell's reply goes through.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

RESUME_HINT = "run the same command again to go on"
STOPPED = f"stopped, finished work is saved; {RESUME_HINT}"
_REQUEST_WAIT_S = 1.0  # from an interrupt to the request that papermill sends after it
_REPLY_WAIT_S = 0.2  # in which the kernel sends a cell's reply


def bar(items: Iterable | None = None, **options: Any) -> tqdm:
    """Return a tqdm bar, redrawn often on a terminal and rarely in a log or a notebook."""
    is_terminal = sys.stderr.isatty()
    options.setdefault("mininterval", 0.2 if is_terminal else 15.0)
    options.setdefault("dynamic_ncols", is_terminal)
    return tqdm(items, **options)


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or a notebook's interrupt, in a stage; a notebook shows it as one sentence."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback."""
        return [STOPPED]


class Signals:
    """Handlers of SIGTERM and SIGINT that raise, at once or where the process is ready to end.

    SIGINT (Ctrl-C, a notebook's interrupt) raises KeyboardInterrupt, with exit status 130; SIGTERM
    raises SystemExit(143). Forked workers leave both to their parent. In a notebook's kernel a
    SIGTERM after an interrupt is papermill asking to hurry, and is ignored: saving goes on until
    its SIGKILL, 2.5 seconds later.
    """

    def __init__(self, one_of_several: bool = False) -> None:
        """Make handlers; one of several processes, which waits for the others, may get many.

        While it defers, it ignores every signal after the first.
        """
        self.pending = 0  # the signal to raise at the end of `deferred`
        self._one_of_several = one_of_several
        self._deferring = False
        self._process = os.getpid()
        self._in_notebook = kernel() is not None

    @contextmanager
    def caught(self) -> Iterator[Signals]:
        """Install the handlers meanwhile; threads other than the main one get no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        let_cells_end()
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._answer) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                # None: not set by Python, which cannot restore it.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold back the first signal until this ends; a second raises unless `one_of_several`."""
        with self._set(True):
            yield
        self.end()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a part within `deferred` be interrupted anywhere."""
        with self._set(False):
            self.end()
            yield

    def end(self) -> None:
        """Raise what the signal held back raises, if there is one."""
        if self.pending:
            raise Stopped if self.pending == signal.SIGINT else SystemExit(128 + self.pending)

    def come_to_any(self, gather: Callable[[int], Sequence[int]]) -> bool:
        """Return whether any of several processes holds a signal back; all of them then do.

        `gather` returns the values of all processes, so that the answer is the same on each.
        """
        number = max(gather(self.pending))
        if number:  # otherwise one that arrives during `gather` would be lost
            self.pending = number
        return number > 0

    @contextmanager
    def _set(self, deferring: bool) -> Iterator[None]:
        before, self._deferring = self._deferring, deferring
        try:
            yield
        finally:
            self._deferring = before

    def _answer(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        first = not self.pending
        hurries = self.pending == signal.SIGINT and number == signal.SIGTERM
        if (self._in_notebook and hurries) or (
            self._deferring and self._one_of_several and not first
        ):
            return
        self.pending = number
        if not (first and self._deferring):
            self.end()
        # Not by print, which may be what was interrupted.
        again = "" if self._one_of_several else "; once more to end at once"
        os.write(2, f"\nends after this step, and saves{again}\n".encode())


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
