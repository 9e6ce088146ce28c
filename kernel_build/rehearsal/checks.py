"""What Kaggle's rules and this project's ask of a kernel that has run, each a pass or a fail."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from kernel_build import metadata
from kernel_build.bundle import MAX_BYTES, sent_bytes
from kernel_build.rehearsal.sandbox import Ended
from kernel_lib.kaggle import quota

# What Kaggle itself leaves beside a kernel's own outputs.
KAGGLES_OWN = ("__notebook__.ipynb", "__results__.html", "__results___files/*", "__output__.json",
               "custom.css")  # fmt: skip
# Per stage: what may lie in the working folder, and what must.
_RUNS = ("runs/*/fold*/config.json", "runs/*/fold*/log.jsonl", "runs/*/fold*/last.pt")
_TABLES = ("folds.csv", "left_out.json", "nih_*.csv", "nih_*.json")
ARTEFACTS = {
    "train": (*_RUNS, "runs/*/fold*/best_epoch*.pt", "runs/*/fold*/oof*.zip", *_TABLES),
    "thresholds": ("ensembles/*/*",),
    "inference": ("runs/*/fold*/test.zip", "ensembles/*/*", "submission.csv"),
}
OUTPUTS = {
    "train": ("folds.csv", *_RUNS),
    "thresholds": ("ensembles/*/members.json", "ensembles/*/thresholds.json",
                   "ensembles/*/oof.csv", "ensembles/*/report.html"),
    "inference": ("*submission.csv", "ensembles/*/test.json", "ensembles/*/report.html"),
}  # fmt: skip
_GOES_ON = "run the same command again to go on"  # what a train stage says that the clock stopped
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    name: str
    passed: bool
    says: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:<12} {self.says}"


def stage_of(code: str) -> str | None:
    """The stage of a built kernel's code, by its first line; None for a kernel built elsewhere."""
    found = re.search(r"# (\w+): (?:script kernel|the library) of notebooks/\1\.py", code)
    return found[1] if found and found[1] in OUTPUTS else None


def of_metadata(meta: Mapping, code_file: Path) -> Check:
    """Whether Kaggle would take the kernel, and run it without internet."""
    faults = metadata.problems(dict(meta))
    if meta.get("enable_internet") is not False:
        faults.append("enable_internet is not false: submission runs have no internet")
    kind = "notebook" if code_file.suffix == ".ipynb" else "script"
    n_bytes = sent_bytes(code_file.read_text(encoding="utf-8"), kind)
    if n_bytes >= MAX_BYTES:
        faults.append(f"{code_file.name} has {n_bytes:,} bytes, Kaggle refuses {MAX_BYTES:,}")
    return Check("metadata", not faults, "; ".join(faults) or f"valid; {n_bytes:,} bytes of code")


def of_end(ended: Ended, limit_seconds: float) -> list[Check]:
    """The exit status and the time, each a check."""
    taken = f"{ended.seconds:.0f} s of {limit_seconds:.0f} s"
    if ended.stopped:
        return [
            Check("exit status", False, "none: the time limit stopped it"),
            Check("time", False, f"stopped at the limit, {taken}: lower MAX_HOURS, or the work"),
        ]
    return [
        Check("exit status", ended.status == 0, str(ended.status)),
        Check("time", True, taken),
    ]


def of_log(log: str, notebook: Path | None = None) -> Check:
    """No traceback in the log, and no error among the outputs of the executed notebook."""
    plain = _COLOUR.sub("", log)
    found = _TRACEBACK.search(plain)
    if found:
        tail = plain[found.start() :].splitlines()
        # The last one: papermill ends with what the cell raised.
        errors = [x for x in tail if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", x)]
        last = errors[-1] if errors else ""
        line = plain[: found.start()].count("\n") + 1
        return Check("log", False, f"a traceback at line {line}: {last[:200]}".rstrip(": "))
    if notebook is not None and notebook.is_file():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells, 1):
            for output in cell.get("outputs", []):
                if output.get("output_type") == "error":
                    return Check("log", False, f"cell {number} of the notebook: {output['ename']}")
    return Check("log", True, "no traceback")


def of_watch(kind: str, seen: Iterable[Mapping], changed: Iterable[str] = ()) -> Check:
    """What was seen of one kind: `input` (writes), `network` (calls) or `project` (reads)."""
    name, good, bad = {
        "input": ("inputs", "nothing tried to write to them", "tried to write to"),
        "network": ("network", "no call seen", "tried to call"),
        "project": ("project", "not read", "read"),
    }[kind]
    what = sorted({*(one["what"] for one in seen if one["kind"] == kind), *changed})
    more = f" and {len(what) - 3} more" if len(what) > 3 else ""
    return Check(name, not what, f"{bad} {', '.join(what[:3])}{more}" if what else good)


def of_outputs(files: list[str], stage: str | None, log: str) -> Check:
    """Whether the stage left what the next one reads."""
    own = [name for name in files if not _any(name, KAGGLES_OWN)]
    if stage is None:
        return Check("outputs", bool(own), f"{len(own)} files; stage unknown, not told apart")
    absent = [p for p in OUTPUTS[stage] if not any(fnmatchcase(name, p) for name in files)]
    if absent:
        return Check("outputs", False, f"{stage} left no {', '.join(absent)}")
    if stage == "train":
        folds = {name.rpartition("/")[0] for name in files if fnmatchcase(name, _RUNS[0])}
        open_ = sorted(fold for fold in folds if f"{fold}/oof.zip" not in files)
        if open_ and _GOES_ON not in log:
            return Check("outputs", False, f"{open_[0]} has no oof.zip, and the log does not say "
                         "that it goes on")  # fmt: skip
        if open_:
            return Check(
                "outputs", True, f"{', '.join(open_)} unfinished: the next session goes on"
            )
    return Check("outputs", True, f"all that {stage} leaves: {', '.join(OUTPUTS[stage])}")


def of_litter(files: list[str], stage: str | None) -> Check:
    """Nothing but artefacts in the working folder."""
    allowed = KAGGLES_OWN + ((*ARTEFACTS[stage], f"{stage}.ipynb") if stage else ("[!.]*",))
    found = [
        name
        for name in files
        if not _any(name, allowed) or name.endswith((".part", ".pyc", ".tmp")) or "/." in name
    ]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    says = f"{', '.join(found[:5])}{more}: no artefacts" if found else "none"
    return Check("litter", not found, says)


def of_size(used: quota.Usage) -> Check:
    """Bytes under Kaggle's limit."""
    says = f"{used.bytes / 1e9:.3f} of 20 GB (files: {used.files})"
    return Check("size", used.bytes <= quota.OUTPUT_BYTES, says)


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
