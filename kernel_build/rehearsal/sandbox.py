"""A sandbox like Kaggle's for a process: its paths, read-only inputs, no network, no project.

bubblewrap gives all of it. Where it is missing or not allowed, `unshare` still removes the network,
and without that Python alone is kept from it; `LEVELS` states what each does not do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LEVELS = {
    "bwrap": "bubblewrap: Kaggle's own paths, inputs read-only, no network, the project hidden",
    "unshare": "unshare: no network; paths lie in a scratch folder, and what is written to inputs "
    "or read of the project is reported, not stopped (install bubblewrap for that)",
    "python": "no namespaces here: the network is kept from Python only, other programs reach it, "
    "and paths lie in a scratch folder (install bubblewrap)",
}
# Brings loopback up in a new network namespace, without which Jupyter's kernels hang, then becomes
# the command. SIOCSIFFLAGS 0x8914; IFF_UP | IFF_RUNNING 0x41.
_LOOPBACK = (
    "import fcntl, os, socket, struct, sys\n"
    "with socket.socket() as s:\n"
    "    fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'lo', 0x41))\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
_KEPT_PREFIXES = ("OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_")


@dataclass(frozen=True)
class Place:
    """The paths of a rehearsal, on the host and as the kernel sees them."""

    level: str
    scratch: Path  # holds tmp, watch and, without bubblewrap, the tree `kaggle`
    working: Path
    source: Path  # the built kernel's folder
    inputs: Mapping[str, Path]  # path below the mounts → folder
    project: Path  # to be hidden

    def seen(self, name: str) -> str:
        """Return a path below /kaggle as the kernel sees it."""
        if self.level == "bwrap":
            return f"/kaggle/{name}"
        return str(self.working if name == "working" else self.scratch / "kaggle" / name)

    @property
    def watch(self) -> Path:
        return self.scratch / "watch"

    @property
    def watch_seen(self) -> str:
        return "/rehearsal" if self.level == "bwrap" else str(self.watch)

    @property
    def tmp_seen(self) -> str:
        return "/tmp" if self.level == "bwrap" else str(self.scratch / "tmp")


@dataclass(frozen=True)
class Ended:
    """The end of a process: its status, whether the limit stopped it, the seconds it took."""

    status: int
    stopped: bool
    seconds: float


def works(level: str) -> bool:
    """Try whether this machine allows a level."""
    if level == "python":
        return True
    command = _bwrap_probe() if level == "bwrap" else [*_unshare(), "true"]
    if shutil.which(command[0]) is None:
        return False
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def best_level() -> str:
    """Return the strictest level that works on this machine."""
    return next(level for level in LEVELS if works(level))


def prepare(place: Place) -> None:
    """Make the folders that `run` needs; without bubblewrap, link inputs into the scratch."""
    for folder in (place.scratch / "tmp" / "home", place.watch, place.working):
        folder.mkdir(parents=True, exist_ok=True)
    if place.level == "bwrap":
        return
    for name, folder in place.inputs.items():
        link = place.scratch / "kaggle" / "input" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder.resolve())
    shutil.copytree(place.source, place.scratch / "kaggle" / "src")


def variables(place: Place, environ: Mapping[str, str]) -> dict[str, str]:
    """Return a kernel's environment: Kaggle's variables, and none of the caller's own."""
    kept = {
        k: v for k, v in environ.items() if k in _KEPT_VARIABLES or k.startswith(_KEPT_PREFIXES)
    }
    # The kernel's `python` is the one that runs this.
    kept["PATH"] = f"{interpreter().parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    if place.level != "bwrap":
        kept["KERNEL_LIB_MOUNTS"] = place.seen("input")
    return kept | {
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "KAGGLE_IS_COMPETITION_RERUN": "",
        "KAGGLE_URL_BASE": "https://www.kaggle.com",
        "HOME": f"{place.tmp_seen}/home",
        "TMPDIR": place.tmp_seen,
        "PYTHONPATH": place.watch_seen,  # holds the watch and nothing else
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_ALBUMENTATIONS_UPDATE": environ.get("NO_ALBUMENTATIONS_UPDATE", "1"),
    }


def interpreter() -> Path:
    """Return this Python by a path that the sandbox keeps, links to the environment followed."""
    return Path(sys.prefix).resolve() / "bin" / Path(sys.executable).name


def environments() -> tuple[Path, ...]:
    """Return the folders of this Python and its packages, which may lie in the project."""
    return tuple(dict.fromkeys(Path(p).resolve() for p in (sys.prefix, sys.base_prefix)))


def run(
    place: Place, command: Sequence[str], log: Path, seconds: float, environ: Mapping[str, str]
) -> Ended:
    """Run a command in the place, append its output to a log, and kill all of it at the limit."""
    if place.level == "bwrap":
        enclosed = [*_bwrap(place), "--chdir", "/kaggle/working", "--", *command]
    elif place.level == "unshare":
        enclosed = [*_unshare(), *command]
    else:
        enclosed = list(command)
    began = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(
            enclosed,
            cwd=place.working,
            env=variables(place, environ),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stopped = False
        try:
            process.wait(timeout=max(seconds, 0.01))
        except subprocess.TimeoutExpired:
            stopped = True
        finally:
            # Also what the kernel left running: a session ends with all of its processes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Ended(process.returncode, stopped, time.monotonic() - began)


def _unshare() -> list[str]:
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--net", *root, "--", str(interpreter()), "-I", "-c", _LOOPBACK]


def _bwrap_probe() -> list[str]:
    return ["bwrap", "--ro-bind", "/", "/", "--unshare-net", "--unshare-pid", "--proc", "/proc",
            "--dev", "/dev", "true"]  # fmt: skip


def _bwrap(place: Place) -> list[str]:
    """Return the command: the machine read-only, Kaggle's folders, and the project hidden."""
    words = ["bwrap", "--die-with-parent", "--new-session", "--unshare-net", "--unshare-pid",
             "--unshare-ipc", "--tmpfs", "/"]  # fmt: skip
    for entry in sorted(Path("/").iterdir()):
        if entry.name in ("dev", "proc", "sys", "tmp", "kaggle", "rehearsal"):
            continue
        if entry.is_symlink():
            words += ["--symlink", os.readlink(entry), str(entry)]
        else:
            words += ["--ro-bind", str(entry), str(entry)]
    words += ["--proc", "/proc", "--dev", "/dev", "--ro-bind-try", "/sys", "/sys"]
    for device in sorted(Path("/dev").glob("nvidia*")):
        words += ["--dev-bind", str(device), str(device)]
    words += ["--bind", str(place.scratch / "tmp"), "/tmp"]
    # The project is hidden, but not the environment or the interpreter that lie in it.
    words += ["--tmpfs", str(place.project)]
    for needed in environments():
        words += ["--ro-bind", str(needed), str(needed)]
    words += ["--ro-bind", str(place.source.resolve()), "/kaggle/src"]
    for name, folder in place.inputs.items():
        words += ["--ro-bind", str(folder.resolve()), f"/kaggle/input/{name}"]
    words += ["--bind", str(place.working.resolve()), "/kaggle/working"]
    return [*words, "--bind", str(place.watch.resolve()), "/rehearsal"]
