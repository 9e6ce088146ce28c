"""Time to build a kernel, beside reading its sources, and its size.

    python -m tools.benchmarks.kernel

Every stage as a notebook and as a script. The baseline reads every file of the library and the
stage's notebook, and nothing more. A wheel that kernels carry along is left out, since fetching it
is the registry's time; its size counts, as given, against the same 1 MB.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from kernel_build import bundle, metadata
from kernel_build.sources import LIBRARY
from kernel_lib.stages.table import STAGES
from tools.benchmarks.rounds import figure, timed

ROOT = Path(__file__).resolve().parents[2]
WHEEL_KB = 99  # segmentation-models-pytorch as kernels carry it, where a stage needs it
ROUNDS = 5


def main() -> None:
    began = time.perf_counter()
    import jupytext  # noqa: F401 (a build's first act, and most of a first build's time)

    print(f"import jupytext: {time.perf_counter() - began:.2f} s, once a process")
    with tempfile.TemporaryDirectory() as scratch:
        out, built = Path(scratch), {}
        for stage in STAGES:
            for kind in metadata.KINDS:
                works = {
                    "read": lambda stage=stage: read(stage),
                    "build": lambda stage=stage, kind=kind: built.update(
                        {(stage, kind): bundle.build(ROOT, stage, kind, owner="me", out=out)}
                    ),
                }
                show(f"{kind} kernel of {stage}", timed(works, ROUNDS), built, (stage, kind))


def read(stage: str) -> None:
    for path in (ROOT / LIBRARY).rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            path.read_bytes()
    (ROOT / "notebooks" / f"{stage}.py").read_bytes()


def show(title: str, took, built: dict, key: tuple[str, str]) -> None:
    size = built[key].size_bytes
    size += 1000 * WHEEL_KB if STAGES[key[0]].needs_gpu else 0
    figure(
        title, f"{1e3 * took.seconds('build'):.0f} ms and {size / 1e3:.0f} kB",
        f"reading its sources {1e3 * took.seconds('read'):.0f} ms",
        f"{took.times_faster('read', 'build'):.0f} × as long", "1 s and 1000 kB",
    )  # fmt: skip


if __name__ == "__main__":
    main()
