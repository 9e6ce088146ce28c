"""One case of `tools.benchmarks.ensembles`, in a process of its own.

It imports nothing of the benchmark, and of the library only what earlier versions have too: with
PYTHONPATH it measures another tree. Written to the result's file: seconds, seconds of each part in
the main thread and in worker threads and processes, and what was found.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path

# Functions by the part that their own time counts for, without that of others called in them.
PARTS = {
    "opening": ["inference.from_statistics:predictions"],
    "maps": ["inference.out_of_fold:OutOfFold._computed"],
    "votes": ["inference.out_of_fold:OutOfFold.vote_counts"],
    "boundaries": ["inference.out_of_fold:OutOfFold.distances"],
    "search": ["postprocess.strategies:search", "postprocess.strategies:best_score"],
    "score and bootstrap": ["postprocess.nested_cv:_report"],
    "calibration": ["postprocess.calibration:best_curve"],
    "files": ["stages.thresholds:_save", "stages.report:load"],
    "report": ["stages.report:write"],
    "viewer's numbers": ["viewer.document:load_viewer_data"],
    "viewer's pictures": ["viewer.document:render"],
    "read": ["artifacts.maps:Maps.__getitem__"],
    "pack": ["inference.weightings:pack"],
    "count": ["inference.weightings:histograms", "artifacts.maps:statistics"],
    "mean": ["artifacts.maps:mean"],
    "vote": ["postprocess.votes:at_least", "postprocess.votes:union_of_agreeing"],
    "runs": ["data.rle:runs_of", "data.rle:shared_px", "data.rle:parse", "data.rle:decode"],
    "distances": ["inference.out_of_fold:surface_distance"],
}
EARLIER = {  # of an earlier version
    "opening": ["stages.thresholds:out_of_fold"],
    "maps": ["inference.out_of_fold:OutOfFold.statistics"],
}
CASES = {
    "mean": {},
    "greedy": {"choose": "greedy"},
    "vote": {"combine": "member_vote"},
    "union": {"combine": "member_union"},
    "label_gate": {"gate": "label"},
    "sum_gate": {"gate": "sum"},
}
CORES = 2
COUNT = 60  # pictures of the viewer


class Parts:
    """Seconds of each part, of the main thread and of all other threads and processes together."""

    def __init__(self, folder: Path | None = None) -> None:
        """Worker processes leave their seconds in the folder, if there is one."""
        self.main: dict[str, float] = defaultdict(float)
        self.workers: dict[str, float] = defaultdict(float)
        self._within = threading.local()  # seconds of parts inside the one that runs
        self._lock = threading.Lock()
        self._folder = folder
        if folder is not None:
            util.register_after_fork(self, Parts._in_worker)

    def _in_worker(self) -> None:
        self.main.clear()  # those of the parent
        self.workers.clear()
        util.Finalize(None, self._leave, exitpriority=0)

    def _leave(self) -> None:
        name = f"{os.getpid()}-{time.monotonic_ns()}.json"
        (self._folder / name).write_text(json.dumps(self.main))

    def gather(self) -> None:
        """Add the seconds that worker processes have left."""
        for path in self._folder.iterdir():
            for part, seconds in json.loads(path.read_text()).items():
                self.workers[part] += seconds

    def watch(self, target: str, part: str) -> bool:
        """Time a function from now on, "module:name"; return whether there is one."""
        module, _, path = target.partition(":")
        owner = importlib.import_module(f"kernel_lib.{module}")
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each, None)
        function = getattr(owner, name, None)
        if function is not None:
            setattr(owner, name, self._timed(function, part))
        return function is not None

    def _timed(self, function: Callable, part: str) -> Callable:
        def timed(*args, **kwargs):
            outer, self._within.seconds = getattr(self._within, "seconds", 0.0), 0.0
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self._add(part, took - self._within.seconds)
                self._within.seconds = outer + took

        return timed

    def _add(self, part: str, seconds: float) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        with self._lock:
            (self.main if is_main else self.workers)[part] += seconds


def watched(folder: Path) -> Parts:
    """Return the parts of this process, timed from now on."""
    parts = Parts(folder)
    for table in (PARTS, EARLIER):
        for part, targets in table.items():
            for target in targets:
                try:
                    parts.watch(target, part)
                except ModuleNotFoundError:  # of another version
                    continue
    return parts


def searched(case: str, work: Path, n_runs: int, folder: Path) -> dict:
    """Run the thresholds stage, and return what it chose and its scores."""
    from kernel_lib.artifacts import fold_run
    from kernel_lib.config import ThresholdsParameters
    from kernel_lib.stages import thresholds

    runs = fold_run.run_names([work])[:n_runs]
    result = thresholds.run(
        ThresholdsParameters(
            work_dir=str(work), runs=",".join(runs), ensemble=folder.name, **CASES[case]
        )
    )
    scores = {
        name: [getattr(one, field).dice for field in ("honest", "in_sample", "in_sample_peak")]
        for name, one in (("kept", result.scores.kept), ("last", result.scores.last))
    }
    return {
        "choice": dataclasses.asdict(result.choice),
        "by_fold": [[each.fold, each.n_scored, each.score.dice] for each in result.honest.rules],
        "scores": scores,
        "interval": list(result.honest.interval),
    }


def reported(folder: Path) -> dict:
    from kernel_lib.stages import report

    return {"bytes": report.write(folder, report.load(folder, [folder.parents[1]])).stat().st_size}


def viewed(folder: Path) -> dict:
    from kernel_lib.viewer.document import viewer

    page = viewer(folder, count=COUNT, max_mb=1000)
    return {"bytes": page.save(folder / "viewer.html").stat().st_size}


def masked(folder: Path) -> dict:
    """Make the masks of the test images, as the inference stage does once all are predicted."""
    import pandas as pd

    from kernel_lib.artifacts import fold_run
    from kernel_lib.artifacts.decision import Decision
    from kernel_lib.artifacts.maps import Maps
    from kernel_lib.data import rle
    from kernel_lib.inference.ensemble_maps import test_masks

    decision, work = Decision.load(folder), folder.parents[1]
    run = decision.ensemble.members[0].run
    ids = Maps(fold_run.fold_folder(work, run, 0).test).ids
    images = pd.DataFrame({"image_id": ids, "height": 1024, "width": 1024})
    masks = test_masks(decision.ensemble, [work], images, decision.choice)
    rles = [rle.encode(mask) for _, mask in masks]
    return {"images": len(rles), "with a mask": sum(one != rle.EMPTY for one in rles)}


OF_A_CASE = {"report": reported, "viewer": viewed, "masks": masked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", choices=(*CASES, *OF_A_CASE))
    parser.add_argument("work", type=Path)
    parser.add_argument("runs", type=int)
    parser.add_argument("ensemble", help="the name of its folder")
    parser.add_argument("result", type=Path)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # of Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["KERNEL_LIB_MOUNTS"] = str(given.work / "no-mounts")
    folder = given.work / "ensembles" / given.ensemble
    with tempfile.TemporaryDirectory() as scratch:
        parts, began = watched(Path(scratch)), time.perf_counter()
        if given.case in CASES:
            found = searched(given.case, given.work, given.runs, folder)
        else:
            found = OF_A_CASE[given.case](folder)
        seconds = time.perf_counter() - began
        parts.gather()
    result = {"seconds": seconds, "main": parts.main, "workers": parts.workers, "found": found}
    given.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
