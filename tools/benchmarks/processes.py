"""What memory a process and its descendants hold, as Linux tells it under /proc."""

from __future__ import annotations

from pathlib import Path


def sampled(pid: int) -> dict[str, int]:
    """What the process and all that descend from it hold at this moment, in bytes.

    `own` is memory that the kernel cannot take back, pages that forked processes share counted
    once; `files` what is mapped from files, of the process that maps most, since the others map
    the same libraries; `record` the most that the first process itself ever held of both.
    """
    pids = descendants(pid)
    every = [fields(one, "smaps_rollup") for one in pids]
    status = [fields(one, "status") for one in pids]
    return {
        "own": sum(one.get("Pss_Anon", 0) + one.get("Pss_Shmem", 0) for one in every),
        "files": max(one.get("RssFile", 0) for one in status),
        "record": status[0].get("VmHWM", 0),
        "processes": len(pids),
    }


def descendants(pid: int) -> list[int]:
    """The process first, then its children, theirs, and so on."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def fields(pid: int, name: str) -> dict[str, int]:
    """Fields of a file under /proc that are given in kB, in bytes; none where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split() for line in lines]
    return {p[0].rstrip(":"): 1024 * int(p[1]) for p in parts if len(p) == 3 and p[2] == "kB"}
