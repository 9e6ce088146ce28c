"""What memory a process and its descendants hold, as Linux tells it under /proc."""

from __future__ import annotations

from pathlib import Path


def sampled(pid: int) -> dict[str, int]:
    """Return the memory of the process and its descendants at this moment, in bytes.

    `own` is memory that the kernel cannot take back, pages that forked processes share counted
    once; `files` what is mapped from files, of the process that maps most, since the others map
    the same libraries; `record` the most that the first process itself ever held of both.
    """
    pids = descendants(pid)
    every = [fields(each, "smaps_rollup") for each in pids]
    status = [fields(each, "status") for each in pids]
    return {
        "own": sum(x.get("Pss_Anon", 0) + x.get("Pss_Shmem", 0) for x in every),
        "files": max(x.get("RssFile", 0) for x in status),
        "record": status[0].get("VmHWM", 0),
        "processes": len(pids),
    }


def descendants(pid: int) -> list[int]:
    """Return the process first, then its children, theirs, and so on."""
    tree = [pid]
    for each in tree:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                tree += map(int, task.read_text().split())
            except OSError:  # it has ended
                continue
    return tree


def fields(pid: int, name: str) -> dict[str, int]:
    """Return the fields of a file under /proc that are in kB, in bytes; none of an ended one."""
    try:
        lines = Path(f"/proc/{pid}/{name}").read_text().splitlines()
    except OSError:
        return {}
    parts = [line.split() for line in lines]
    return {p[0].rstrip(":"): 1024 * int(p[1]) for p in parts if len(p) == 3 and p[2] == "kB"}
