"""One life of a stage: forked processes, warm from the start, and how one of them is killed.

Killed are: at a moment (by the parent's clock); at the n-th file that it opens, renames, removes or
locks (by an audit hook, which Python calls before it does so); and in the middle of a write, at
byte n of the first file that comes so far (by the limit on the size of files, whose signal ends a
process as SIGKILL does). In none of them does the process get to clean anything up. Or it is asked
to end, by SIGTERM or Ctrl-C, at a moment. Of several processes of one training one is met so, or at
a moment all of them; the others are then asked to end, as torch's launcher does.
"""

from __future__ import annotations

import faulthandler
import math
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from kernel_lib.errors import InputError

LONGEST_S = 60.0
OTHERS_S = 5.0  # for the others of a life, once one has ended; torch's launcher gives them 30
REFUSED, BROKEN = 1, 2  # statuses of a life that an InputError ended, and of one that another did
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "fcntl.flock", "os.truncate")


@dataclass(frozen=True)
class Usual:
    """An undisturbed life: how long, with how many events, and its largest file."""

    seconds: float
    events: int
    bytes: int


@dataclass(frozen=True)
class Death:
    """How a life is to end; one of the first three is set."""

    after_s: float | None = None
    at_event: int | None = None
    at_byte: int | None = None
    number: signal.Signals = signal.SIGKILL  # the signal at a moment
    rank: int | None = 0  # of several processes the one that is met; None: all, at a moment

    def has_met(self, status: int) -> bool:
        """Return whether a life that ended with this status ended of it."""
        asked = {signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}  # before it can answer: -N
        ends = asked.get(self.number, (-signal.SIGKILL, -signal.SIGXFSZ))
        return status in ends


def drawn(chance: random.Random, usual: Usual, processes: int = 1) -> Death:
    """Return a death somewhere in a usual life, of any kind."""
    kind = chance.choice(("moment", "asked", "event", "byte"))
    rank = chance.randrange(processes)
    if kind in ("moment", "asked"):
        number = signal.SIGKILL
        if kind == "asked":
            number = chance.choice((signal.SIGTERM, signal.SIGINT))
        all_of_them = processes > 1 and chance.random() < 0.5
        moment = chance.uniform(0, usual.seconds)
        return Death(moment, number=number, rank=None if all_of_them else rank)
    if kind == "event":
        return Death(at_event=chance.randint(1, usual.events), rank=rank)
    return Death(at_byte=chance.randint(1, usual.bytes), rank=rank)


def live(
    work: Callable[[], None], death: Death | None = None, processes: int = 1
) -> tuple[int, str]:
    """Do the work in forked processes; an exit status, -N for signal N, and what they said.

    The status is that of the first that ended otherwise than well, or 0.
    """
    death, port = death or Death(), _free_port() if processes > 1 else 0
    with tempfile.TemporaryFile("w+") as said:
        sys.stdout.flush()
        children = []
        for rank in range(processes):
            child = os.fork()
            if not child:
                if processes > 1:
                    os.environ |= _rank_variables(rank, processes, port)
                _lived(work, death if rank == death.rank else Death(), said.fileno())
            children.append(child)
        if death.after_s is not None:
            time.sleep(death.after_s)
            for child in children if death.rank is None else [children[death.rank]]:
                os.kill(child, death.number)  # not waited for yet, so its pid is no other's
        status = _waited(children, death)
        said.seek(0)
        return status, said.read()[-6000:]


def _waited(children: list[int], death: Death) -> int:
    """Return the first process that failed, and ask the others to end.

    Those that do not are killed: before all have met they wait for another without an end. A life
    that hangs is ended by SIGABRT, which no `Death` is.
    """
    left, first, ends = list(children), 0, time.monotonic() + LONGEST_S
    while left:
        ended = {child: status for child in left if (status := _ended(child)) is not None}
        left = [child for child in left if child not in ended]
        broken = sorted(filter(None, ended.values()), key=death.has_met)
        if broken and not first:  # the one that was met before those that ended because of it
            first, ends = broken[-1], time.monotonic() + OTHERS_S
            for other in left:
                os.kill(other, signal.SIGTERM)
        if left and time.monotonic() > ends:
            for child in left:
                os.kill(child, signal.SIGKILL if first else signal.SIGABRT)
            first, ends = first or -signal.SIGABRT, math.inf
        time.sleep(0.005)
    return first


def _ended(child: int) -> int | None:
    """Return its status, if it has one."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _rank_variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the environment that torch's launcher gives a rank."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def counted(work: Callable[[], None], processes: int = 1) -> int:
    """Return the number of `EVENTS` of the work in forked processes, counted in the first."""
    reader, writer = os.pipe()

    def counting() -> None:
        events = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal events
            events += event in EVENTS

        sys.addaudithook(count)
        work()
        if os.environ.get("RANK", "0") == "0":
            os.write(writer, str(events).encode())

    status, output = live(counting, processes=processes)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    if status:
        raise RuntimeError(output)
    return int(text)


def _lived(work: Callable[[], None], death: Death, said: int) -> None:
    """Run the work in the child, with its death."""
    status = REFUSED
    try:
        faulthandler.enable(file=said)  # a life that hangs prints where
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a process that was not forked
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(said, 1)
        os.dup2(said, 2)
        _meet(death)
        work()
        status = 0
    except InputError as error:  # as the command line says it
        print(f"Error: {error}", file=sys.stderr)
    except SystemExit as error:
        status = error.code
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        status = BROKEN
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _meet(death: Death) -> None:
    if death.at_event is not None:
        at_event(death.at_event, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if death.at_byte is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (death.at_byte, most))


def at_event(number: int, do: Callable[[], None]) -> None:
    """Do something once, before this process's n-th of `EVENTS` from now on."""
    left = number

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in EVENTS:
            left -= 1
            if left == 0:
                do()  # whose own events count on below 0

    sys.addaudithook(hook)
