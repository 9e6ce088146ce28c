"""Every benchmark that needs no data from outside, and a table of what they found.

    python -m tools.benchmarks [--write] [NAME …]

Each runs in a process of its own and may be named alone. --write puts the table's rows into
docs/results.md, in place of those that the same benchmarks wrote before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from kernel_lib.storage import write_text
from tools.benchmarks.rounds import FIGURE

NAMES = ("prepare", "item", "training", "precision", "inference", "engines", "thresholds", "rle",
         "votes", "maps", "start", "kernel", "viewer", "memory")  # fmt: skip
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEAD = "| what | here | against | ratio | bar | `python -m` |\n|---|---|---|---|---|---|\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=NAMES)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    rows, failed = [], []
    for name in given.names:
        lines, status = run(name)
        rows += lines
        failed += [name] * bool(status)
    print("\n" + HEAD + "".join(rows))
    if given.write:
        write_text(RESULTS, joined(RESULTS.read_text(encoding="utf-8"), rows))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(name: str) -> tuple[list[str], int]:
    """Run a benchmark, print its output, and return its rows of the table and its status."""
    print(f"\n=== {name}", flush=True)
    rows = []
    command = [sys.executable, "-m", f"tools.benchmarks.{name}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:
        for line in child.stdout:
            print(line, end="", flush=True)
            if match := FIGURE.match(line.rstrip("\n")):
                cells = " | ".join(match.groups())
                rows.append(f"| {cells} | `tools.benchmarks.{name}` |\n")
    return rows, child.returncode


def joined(document: str, rows: list[str]) -> str:
    """Return the document with these rows, and the old ones of benchmarks that did not run."""
    before, rest = document.split(BEGIN)
    block, after = rest.split(END)
    ran = {_name(row) for row in rows}
    kept = [line for line in block.splitlines(keepends=True) if _name(line) in {*NAMES} - ran]
    order = sorted([*kept, *rows], key=lambda row: NAMES.index(_name(row)))
    return before + BEGIN + "\n" + HEAD + "".join(order) + END + after


def _name(row: str) -> str:
    return row.rstrip("| \n").rpartition(".")[2].rstrip("`")


if __name__ == "__main__":
    main()
