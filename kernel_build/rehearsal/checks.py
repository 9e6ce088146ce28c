"""Kaggle's rules and this project's, checked on a kernel that has run."""

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
from kernel_lib.artifacts.filenames import OOF
from kernel_lib.kaggle import quota
from kernel_lib.stages.table import FOLD_FILES, Stage

# What Kaggle itself leaves beside a kernel's own outputs.
KAGGLES_OWN = ("__notebook__.ipynb", "__results__.html", "__results___files/*", "__output__.json",
               "custom.css")  # fmt: skip
_GOES_ON = "run the same command again to go on"  # printed by a training that the clock stopped
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Check:
    """A line of the verdict."""

    name: str
    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:<12} {self.text}"


def of_metadata(meta: Mapping, code_file: Path) -> Check:
    """Check that Kaggle would take the kernel, and run it without internet."""
    faults = metadata.problems(dict(meta))
    if meta.get("enable_internet") is not False:
        faults.append("enable_internet is not false: submission runs have no internet")
    kind = "notebook" if code_file.suffix == ".ipynb" else "script"
    n_bytes = sent_bytes(code_file.read_text(encoding="utf-8"), kind)
    if n_bytes >= MAX_BYTES:
        faults.append(f"{code_file.name} has {n_bytes:,} bytes, Kaggle refuses {MAX_BYTES:,}")
    return Check("metadata", not faults, "; ".join(faults) or f"valid; {n_bytes:,} bytes of code")


def of_end(ended: Ended, limit_seconds: float) -> list[Check]:
    """Check the exit status and the time."""
    taken = f"{ended.seconds:.0f} s of {limit_seconds:.0f} s"
    if ended.stopped:
        return [
            Check("exit status", False, "none: the time limit stopped it"),
            Check("time", False, f"stopped at the limit, {taken}: lower MAX_HOURS, or the work"),
        ]
    return [Check("exit status", ended.status == 0, str(ended.status)), Check("time", True, taken)]


def of_log(log: str, notebook: Path | None = None) -> Check:
    """Check that neither log nor executed notebook holds an error."""
    plain = _COLOUR.sub("", log)
    traceback = _TRACEBACK.search(plain)
    if traceback:
        tail = plain[traceback.start() :].splitlines()
        # The last one: papermill ends with what the cell raised.
        errors = [x for x in tail if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", x)]
        last = errors[-1] if errors else ""
        line = plain[: traceback.start()].count("\n") + 1
        return Check("log", False, f"a traceback at line {line}: {last[:200]}".rstrip(": "))
    if notebook is not None and notebook.is_file():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells, 1):
            for output in cell.get("outputs", []):
                if output.get("output_type") == "error":
                    return Check("log", False, f"cell {number} of the notebook: {output['ename']}")
    return Check("log", True, "no traceback")


def of_watch(kind: str, seen: Iterable[Mapping], changed: Iterable[str] = ()) -> Check:
    """Check what was seen of a kind: `input` (writes), `network` (calls) or `project` (reads)."""
    name, good, bad = {
        "input": ("inputs", "nothing tried to write to them", "tried to write to"),
        "network": ("network", "no call seen", "tried to call"),
        "project": ("project", "not read", "read"),
    }[kind]
    what = sorted({*(event["what"] for event in seen if event["kind"] == kind), *changed})
    more = f" and {len(what) - 3} more" if len(what) > 3 else ""
    return Check(name, not what, f"{bad} {', '.join(what[:3])}{more}" if what else good)


def of_outputs(files: list[str], stage: Stage | None, log: str) -> Check:
    """Check that the stage left what the next one reads."""
    own = [name for name in files if not _any(name, KAGGLES_OWN)]
    if stage is None:
        return Check("outputs", bool(own), f"{len(own)} files; of an unknown stage")
    absent = [p for p in stage.outputs if not any(fnmatchcase(name, p) for name in files)]
    if absent:
        return Check("outputs", False, f"{stage.name} left no {', '.join(absent)}")
    folds = {name.rpartition("/")[0] for name in files if fnmatchcase(name, FOLD_FILES[0])}
    unfinished = sorted(fold for fold in folds if f"{fold}/{OOF}" not in files)
    if stage.per_fold and unfinished:
        if _GOES_ON in log:
            text = f"{', '.join(unfinished)} unfinished: the next session goes on"
            return Check("outputs", True, text)
        text = f"{unfinished[0]} has no {OOF}, and the log does not say that it goes on"
        return Check("outputs", False, text)
    return Check("outputs", True, f"all that {stage.name} leaves: {', '.join(stage.outputs)}")


def of_litter(files: list[str], stage: Stage | None) -> Check:
    """Check that nothing but artefacts lies in the working folder."""
    own = (*stage.artefacts, f"{stage.name}.ipynb") if stage else ("[!.]*",)
    allowed = KAGGLES_OWN + own
    litter = [
        name
        for name in files
        if not _any(name, allowed) or name.endswith((".part", ".pyc", ".tmp")) or "/." in name
    ]
    more = f" and {len(litter) - 5} more" if len(litter) > 5 else ""
    text = f"{', '.join(litter[:5])}{more}: not artefacts" if litter else "none"
    return Check("litter", not litter, text)


def of_size(used: quota.Usage) -> Check:
    """Check that the outputs' bytes are within Kaggle's limit."""
    text = f"{used.bytes / 1e9:.3f} of 20 GB (files: {used.files})"
    return Check("size", used.bytes <= quota.OUTPUT_BYTES, text)


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
