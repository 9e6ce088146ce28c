"""How soon the command line answers, beside Python and click alone.

    python -m tools.benchmarks.start

Each command is a process of its own, from its start to its end, turn and turn about; medians. The
small files are a submission of four images and its sample.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tools.benchmarks.rounds import figure, timed

ROUNDS = 9
LIMIT_S = 0.3
ROWS = ("a,-1", "b,1024 20 1004 30", "c,-1", "d,5 5")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "table.csv"
        table.write_text("\n".join(["ImageId,EncodedPixels", *ROWS, ""]), encoding="utf-8")
        ours = {
            "--help": ["--help"],
            "validate": ["validate", str(table), "--sample", str(table)],
            "score": ["score", str(table), str(table)],
        }
        others = {"pass": "pass", "click": "import click", "pandas": "import click, pandas, cv2"}
        commands = {name: ["-m", "kernel_lib", *rest] for name, rest in ours.items()}
        commands |= {name: ["-c", code] for name, code in others.items()}
        took = timed({name: started(rest) for name, rest in commands.items()}, ROUNDS)
    print(f"python -c pass: {1e3 * took.seconds('pass'):.0f} ms")
    bars = {"--help": ("click", f"{LIMIT_S:g} s"), "validate": ("pandas", "none")}
    for name, (against, bar) in (bars | {"score": ("pandas", "none")}).items():
        figure(
            f"python -m kernel_lib {name}", f"{1e3 * took.seconds(name):.0f} ms",
            f"python -c '{others[against]}' {1e3 * took.seconds(against):.0f} ms",
            f"{took.times_faster(against, name):.2f} × as long", bar,
        )  # fmt: skip


def started(arguments: list[str]):
    """Return a call that runs Python with these arguments to its end."""

    def run() -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    return run


if __name__ == "__main__":
    main()
