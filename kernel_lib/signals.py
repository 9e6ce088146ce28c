"""SIGTERM and Ctrl-C end a stage alike: files are left whole, and the status says by what."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from kernel_lib import notebook

_TOLD = b"\nends after this step, and saves"
_MORE = b"; once more to end at once"


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or a notebook's interrupt, in a stage."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows for it: IPython asks for this instead of a traceback."""
        return [notebook.STOPPED]


class Signals:
    """What a process does on SIGTERM and SIGINT: it raises, at once or where it is ready to.

    Ctrl-C, and a notebook's interrupt, raise KeyboardInterrupt, whose status is 130; SIGTERM raises
    SystemExit(143). Both pass through what cleans up. Forked workers leave both to their parent. In
    a notebook's kernel a SIGTERM after an interrupt is papermill's, which wants it to hurry: only
    SIGKILL, 2.5 seconds later, ends what is being saved.
    """

    def __init__(self, patient: bool = False) -> None:
        """`patient` is one of several processes: each that ends them signals all, if need be again.

        While it defers, any further signal says what the first did.
        """
        self.pending = 0  # the signal that waits for the end of `deferred`
        self._patient = patient
        self._deferring = False
        self._process = os.getpid()
        self._in_notebook = notebook.kernel() is not None

    @contextmanager
    def caught(self) -> Iterator[Signals]:
        """Answer both signals meanwhile; outside the main thread, which gets none, nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        notebook.let_cells_end()
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._answer) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                # None: set by something other than Python, which cannot be set again.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """The first signal waits, as `pending`, until this ends; the second raises at once.

        Unless this process is patient.
        """
        with self._set(True):
            yield
        self.end()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`, a piece that may be cut anywhere."""
        with self._set(False):
            self.end()
            yield

    def end(self) -> None:
        """Raise what the signal that waits raises; nothing where none does."""
        if self.pending:
            raise _error(self.pending)

    def come_to_any(self, gather: Callable[[int], Sequence[int]]) -> bool:
        """Whether a signal waits in any of several processes, to each of which it then belongs.

        `gather` gives a value of each process to all of them; the answer is the same on all.
        """
        found = max(gather(self.pending))
        if found:  # else one that comes to this process in `gather` would be forgotten
            self.pending = found
        return found > 0

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
        if self._in_notebook and self.pending == signal.SIGINT and number == signal.SIGTERM:
            return
        if self._deferring and self._patient and not first:
            return
        self.pending = number
        if not (first and self._deferring):
            raise _error(number)
        # print may be what was interrupted
        os.write(2, _TOLD + (b"" if self._patient else _MORE) + b"\n")


def _error(number: int) -> BaseException:
    return Stopped() if number == signal.SIGINT else SystemExit(128 + number)
