"""Python's record of what a rehearsed kernel tried; each of its processes loads this first.

It is copied to a folder of its own as `sitecustomize.py`, beside its settings, `watch.json`, and
imports nothing of this project. It sees Python only: other programs are stopped by the mounts and
the network namespace.
"""

import json
import os
import sys
from _thread import get_ident

_HERE = os.path.dirname(os.path.abspath(__file__))
# Of an audit event, which arguments are paths that it changes.
_CHANGES = {
    "os.mkdir": (0,), "os.remove": (0,), "os.rmdir": (0,), "os.rename": (0, 1), "os.link": (1,),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "shutil.move": (0, 1),
}  # fmt: skip
_CALLS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _below(path: object, folders: list) -> bool:
    try:
        real = os.path.realpath(os.fsdecode(path))
    except (TypeError, ValueError):  # a file descriptor, or no path at all
        return False
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


def _is_local(host: object) -> bool:
    if not isinstance(host, (str, bytes)):  # of netlink and its like
        return True
    name = os.fsdecode(host)
    # An empty host listens everywhere and calls nobody.
    here = ("", "localhost", "::1", "0.0.0.0", "::", os.uname().nodename)
    return name in here or name.startswith("127.")


def _watch(settings: dict):
    """Return the hook, which writes what it sees to a file and refuses calls outside."""
    busy = set()  # threads that are in the hook: what it opens itself is not watched

    def note(kind: str, what: object) -> None:
        line = json.dumps({"kind": kind, "what": str(what)}) + "\n"
        handle = os.open(os.path.join(_HERE, "seen.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

    def look(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            written = flags & _WRITES if isinstance(flags, int) else set(mode or "") & set("wax+")
            if written and _below(path, settings["inputs"]):
                note("input", path)
            elif (
                settings["project"]
                and _below(path, settings["project"])
                and not _below(path, settings["allowed"])
            ):
                note("project", path)
        elif event in _CHANGES:
            for position in _CHANGES[event]:
                if _below(arguments[position], settings["inputs"]):
                    note("input", arguments[position])
        elif event in _CALLS:
            address = arguments[1] if event in _CALLS[:2] else arguments
            if isinstance(address, tuple) and not _is_local(address[0]):
                note("network", os.fsdecode(address[0]))
                raise OSError(101, "Network is unreachable: a rehearsal has none")

    def hook(event: str, arguments: tuple) -> None:
        if event != "open" and event not in _CHANGES and event not in _CALLS:
            return
        thread = get_ident()
        if thread in busy:
            return
        busy.add(thread)
        try:
            look(event, arguments)
        finally:
            busy.discard(thread)

    return hook


def start() -> None:
    """Begin to watch, where a rehearsal put settings."""
    path = os.path.join(_HERE, "watch.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            settings = json.load(file)
        sys.addaudithook(_watch(settings))


start()
