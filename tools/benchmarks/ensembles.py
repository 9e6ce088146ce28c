"""How long ensembles of many runs take, and what memory: thresholds, report, viewer, test masks.

    python -m tools.benchmarks.ensembles [--images 12047] [--maps 640] [--runs 10,20]
        [--data DIR] [--root DIR] [--only mean,greedy,vote,union,label_gate,sum_gate]
        [--against TREE [--against-images 640]]

Not among those of `make bench`, since it takes hours. Needs 4 GB of disk, and with --against 5.
The maps are mixed from the released model's predictions of the radiographs in --data (a data
folder such as `stage2-512`), or from drawn ones, and made once in --root; without it in a temporary
folder. Members, weights and minimum votes are chosen and cross-fitted over 5 folds, with 2000
bootstrap samples. "masks" are those of test images by every fold of each member, from predicted
maps to RLE, in the competition's proportion to --images. Each case runs in a process of its own on
2 cores. Of each: seconds, the memory of its process tree at its peak (as `tools.benchmarks.memory`
measures it) and the seconds of its parts. Report and viewer are those of the vote or, where --only
leaves it out, of the last case.

--against runs every case on fewer images with the code of another tree too, a checkout of an
earlier version (`git worktree add TREE COMMIT`) whose archives hold PNGs. Choices and scores have
to be equal. All results are appended to ensembles.jsonl in the root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tools.benchmarks import ensembles_case, ensembles_data
from tools.benchmarks.ensembles_case import CASES
from tools.benchmarks.memory import watched
from tools.benchmarks.rounds import figure

HERE = Path(__file__).resolve().parents[2]
IMAGES = 12_047  # the competition's; for fewer the bars are in proportion
BARS_S = {("mean", 10): 120, ("greedy", 10): 900, ("greedy", 20): 2400, ("vote", 10): 600,
          ("report and viewer", 10): 60}  # fmt: skip
BAR_GB = 4.0
TEST_SHARE = 3_205 / IMAGES  # the images of the competition's second stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--maps", type=int, default=640, help="different ones of each run")
    parser.add_argument("--runs", type=_numbers, default=[10, 20])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--only", type=_cases, default=list(CASES))
    parser.add_argument("--against", type=Path, metavar="TREE")
    parser.add_argument("--against-images", type=int, default=640)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (given.root or Path(scratch)).resolve()
        source = ensembles_data.Source.made(root, given.maps, given.data)

        def work(n_images: int, write=None) -> Path:
            name = f"work-{given.maps}-{n_images}" + ("-png" if write else "")
            options = {"write": write} if write else {}
            return ensembles_data.make(root / name, source, n_images, max(given.runs), **options)

        ours = work(given.images)
        n_tests = max(1, round(TEST_SHARE * given.images))
        ensembles_data.make_test(ours, source, n_tests, max(given.runs))
        alone(ours, given)
        if given.against:
            own, theirs = (work(given.against_images, w) for w in (None, ensembles_data.write_png))
            compared(own, theirs, given)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _cases(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(CASES):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: there are {', '.join(CASES)}"
        )
    return text.split(",")


def alone(work: Path, given: argparse.Namespace) -> None:
    """Measure every case of every number of runs, then report and viewer, against the bars."""
    for n_runs in given.runs:
        took = {case: measured(case, work, n_runs) for case in given.only}
        for case, one in took.items():
            barred(case, n_runs, given.images, one["seconds"])
        shown = "vote" if "vote" in took else given.only[-1]
        views = [measured(kind, work, n_runs, of=shown) for kind in ("report", "viewer")]
        seconds = sum(one["seconds"] for one in views)
        barred("report and viewer", n_runs, given.images, seconds, of=shown)
        masks = {case: measured("masks", work, n_runs, of=case) for case in given.only}
        for case, one in masks.items():
            barred("test masks", n_runs, given.images, one["seconds"], of=case)
        most = max([*took.values(), *views, *masks.values()], key=lambda one: one["peak"])
        figure(f"memory of ensembles of {n_runs} runs, {given.images:,} images",
               f"{most['peak'] / 1e9:.2f} GB ({_title(most['case'], most['of'])})",
               f"the bar {BAR_GB:g} GB", f"{most['peak'] / 1e9 / BAR_GB:.0%}", "100 %")  # fmt: skip


def _title(case: str, of: str) -> str:
    return f"{case} of the {of}" if of else case


def barred(case: str, n_runs: int, n_images: int, seconds: float, of: str = "") -> None:
    """Print a case's figure against its bar, if it has one."""
    what = f"{_title(case, of)} of {n_runs} runs, {n_images:,} images"
    limit = BARS_S.get((case, n_runs), 0) * n_images / IMAGES
    if limit:
        figure(what, _time(seconds), f"the bar {_time(limit)}", f"{seconds / limit:.0%}", "100 %")
    else:
        figure(what, _time(seconds), "no bar", "no ratio")


def compared(own: Path, theirs: Path, given: argparse.Namespace) -> None:
    """Measure cases with this code and with the other tree's, turn about; both find the same."""
    differing = []
    for n_runs in given.runs:
        for case in given.only:
            here = measured(case, own, n_runs)
            there = measured(case, theirs, n_runs, tree=given.against.resolve())
            figure(f"{case} of {n_runs} runs, {given.against_images:,} images",
                   _time(here["seconds"]), f"the code of {given.against.name} "
                   f"{_time(there['seconds'])}, {there['peak'] / 1e9:.2f} GB",
                   f"{there['seconds'] / here['seconds']:.1f} × faster")  # fmt: skip
            if here["found"] != there["found"]:
                differing.append(f"{case} of {n_runs}: {here['found']} and {there['found']}")
    if differing:
        raise SystemExit("not the same is found:\n" + "\n".join(differing))


def measured(case: str, work: Path, n_runs: int, of: str = "", tree: Path = HERE) -> dict:
    """Run a case with a tree's code; print, keep and return its time, parts, memory and find."""
    name = f"{of or case}-{n_runs}"
    log, result = (work / f"{case}-{name}.{ending}" for ending in ("log", "json"))
    if case in CASES:  # a stopped measurement's search would go on, and take less time
        shutil.rmtree(work / "ensembles" / name, ignore_errors=True)
    # Without this file's folder on the path (-P): its modules are named like others.
    command = [sys.executable, "-P", ensembles_case.__file__, case, str(work), str(n_runs)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    peaks = watched([*command, name, str(result)], log, environment)
    row = {"case": case, "of": of, "runs": n_runs, "work": work.name, "tree": tree.name}
    row |= json.loads(result.read_text())
    row["peak"] = max(peaks["sum"], peaks["record"])
    with open(work.parent / "ensembles.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    other = row["seconds"] - sum(row["main"].values())
    print(f"{_title(case, of)} of {n_runs} runs, {work.name}, {tree.name}: "
          f"{_time(row['seconds'])}, {row['peak'] / 1e9:.2f} GB\n"
          f"  {_parts(row['main'] | {'other': other})}\n"
          f"  in workers: {_parts(row['workers'])}\n  {row['found']}", flush=True)  # fmt: skip
    return row


def _parts(seconds: dict[str, float]) -> str:
    listed = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {_time(took)}" for part, took in listed if took >= 0.05) or "none"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    main()
