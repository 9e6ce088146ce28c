"""One life of a stage: a forked process, warm from the start, and how it is killed.

Killed are: at a moment (by the parent's clock); at the n-th file that it opens, renames, removes or
locks (by an audit hook, which Python calls before it does so); and in the middle of a write, at
byte n of the first file that comes so far (by the limit on the size of files, whose signal ends a
process as SIGKILL does). In none of them does the process get to clean anything up.
"""

from __future__ import annotations

import faulthandler
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_S = 30.0
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock", "os.truncate")


@dataclass(frozen=True)
class Usual:
    """An undisturbed life: how long, with how many events, and its largest file."""

    seconds: float
    events: int
    bytes: int


@dataclass(frozen=True)
class Death:
    """How a life is to end; one of them is set."""

    after_s: float | None = None
    at_event: int | None = None
    at_byte: int | None = None


def drawn(chance: random.Random, usual: Usual) -> Death:
    """A death somewhere in a usual life, of any kind."""
    kind = chance.choice(("moment", "event", "byte"))
    if kind == "moment":
        return Death(after_s=chance.uniform(0, usual.seconds))
    if kind == "event":
        return Death(at_event=chance.randint(1, usual.events))
    return Death(at_byte=chance.randint(1, usual.bytes))


def was_killed(status: int) -> bool:
    return status in (-signal.SIGKILL, -signal.SIGXFSZ)


def live(work: Callable[[], None], death: Death | None = None) -> tuple[int, str]:
    """Do the work in a forked process; its exit status, -N for signal N, and what it said."""
    with tempfile.TemporaryFile("w+") as said:
        sys.stdout.flush()
        child = os.fork()
        if not child:
            _lived(work, death or Death(), said.fileno())
        if death is not None and death.after_s is not None:
            time.sleep(death.after_s)
            os.kill(child, signal.SIGKILL)  # not waited for yet, so its number is nobody else's
        status = _waited(child)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()[-3000:]


def _waited(child: int) -> int:
    """Its status; a life that hangs is ended by SIGABRT, which no `Death` is."""
    ends = time.monotonic() + LONGEST_S
    while time.monotonic() < ends:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGABRT)
    return os.waitpid(child, 0)[1]


def counted(work: Callable[[], None]) -> int:
    """How many of `EVENTS` the work has, done in a forked process."""
    reader, writer = os.pipe()

    def counting() -> None:
        events = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal events
            events += event in EVENTS

        sys.addaudithook(count)
        work()
        os.write(writer, str(events).encode())

    status, told = live(counting)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = pipe.read()
    if status:
        raise RuntimeError(told)
    return int(found)


def _lived(work: Callable[[], None], death: Death, said: int) -> None:
    """The child's whole life."""
    status = 1
    try:
        faulthandler.enable(file=said)  # a life that hangs tells where
        os.dup2(said, 1)
        os.dup2(said, 2)
        _meet(death)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _meet(death: Death) -> None:
    if death.at_event is not None:
        left = death.at_event

        def hook(event: str, arguments: tuple) -> None:
            nonlocal left
            if event in EVENTS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)  # an event too, of another name

        sys.addaudithook(hook)
    if death.at_byte is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (death.at_byte, most))
