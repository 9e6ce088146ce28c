"""SIGTERM and Ctrl-C end a stage with complete files and the signal's exit status."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from kernel_lib import notebook

_SAVES = b"\nends after this step, and saves"
_AGAIN = b"; once more to end at once"


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or a notebook's interrupt, in a stage; a notebook shows it as one sentence."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback."""
        return [notebook.STOPPED]


class Signals:
    """Handlers of SIGTERM and SIGINT that raise, at once or where the process is ready to end.

    SIGINT (Ctrl-C, a notebook's interrupt) raises KeyboardInterrupt, with exit status 130; SIGTERM
    raises SystemExit(143). Forked workers leave both to their parent. In a notebook's kernel a
    SIGTERM after an interrupt is papermill asking to hurry, and is ignored: saving goes on until
    its SIGKILL, 2.5 seconds later.
    """

    def __init__(self, patient: bool = False) -> None:
        """Make handlers; a `patient` process, one of several, may be signalled by each of them.

        While it defers, it ignores every signal after the first.
        """
        self.pending = 0  # the signal to raise at the end of `deferred`
        self._patient = patient
        self._deferring = False
        self._process = os.getpid()
        self._in_notebook = notebook.kernel() is not None

    @contextmanager
    def caught(self) -> Iterator[Signals]:
        """Install the handlers meanwhile; threads other than the main one get no signals."""
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
                # None: not set by Python, which cannot restore it.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold back the first signal until this ends; the second raises at once if not patient."""
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
            raise _error(self.pending)

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
        if self._in_notebook and self.pending == signal.SIGINT and number == signal.SIGTERM:
            return
        if self._deferring and self._patient and not first:
            return
        self.pending = number
        if not (first and self._deferring):
            raise _error(number)
        # Not by print, which may be what was interrupted.
        os.write(2, _SAVES + (b"" if self._patient else _AGAIN) + b"\n")


def _error(number: int) -> BaseException:
    return Stopped() if number == signal.SIGINT else SystemExit(128 + number)
