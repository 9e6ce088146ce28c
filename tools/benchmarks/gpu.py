"""What only a GPU can show, in one command of at most nine minutes.

    python -m tools.benchmarks.gpu --out OUT [--limit-s 540] [--data DIR] [--weights-dir DIR]
                             [--device cuda|cpu]

Runs the parts of `PARTS` in order: what the machine has, the tests that need a GPU, speed and
memory (`benchmarks.gpu_parts`), and a training on DATA with its honest score. Each part is a
process of its own that is killed at its limit, a share of the time left, so that a hang or a CUDA
error, after which a process is of no use, costs that part alone. A part that crashed goes on after
the measurement that crashed it. OUT/gpu.json and OUT/gpu.md, rows for docs/results.md, are written
after every part; each measurement stands in OUT/<part>.log as soon as it is made.

DIR is any folder that the train stage takes (about 2,000 images of 512 px fit); without it
synthetic radiographs are drawn. If WEIGHTS_DIR holds `timm-tf_efficientnet_lite0.pth`, in float32
or float16, the training is of `lite0_256` at 512 px, else of `UNetResNet34_512_v1` from scratch.
With `--device cpu` the same code runs at toy size, which is how it is tested.

Beyond torch, torchvision, timm, numpy, pandas, scipy, OpenCV, Pillow, safetensors, click and tqdm
the machine needs, about 10 MB of wheels: albucore, albumentations, annotated-types, pydantic,
pydantic-core, pydicom, segmentation-models-pytorch, simsimd, stringzilla, typing-extensions,
typing-inspection; and for the tests hypothesis, iniconfig, packaging, pluggy, pygments, pytest,
sortedcontainers. No matplotlib, papermill or Jupyter. torch.compile needs Triton and a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kernel_lib.artifacts import fold_run

ROOT = Path(__file__).resolve().parents[2]
# Each part's share of the time left when it begins; the last leaves a moment to write.
PARTS = {"machine": 0.2, "tests": 0.35, "speed": 0.5, "training": 0.97}
TESTS = ("tests/training/test_gpu.py", "tests/tools/ablation/test_gpu.py")
TESTED = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", re.MULTILINE)
MEASURED = "measured: "
REASON_LINES = 15
HEAD = "| what | here | against | ratio |\n|---|---|---|---|\n"


def main() -> None:
    parser = arguments()
    parser.add_argument("--out", type=absolute, required=True)
    given = parser.parse_args()
    ends = time.monotonic() + given.limit_s
    given.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, share in PARTS.items():
            left = share * max(0.0, ends - time.monotonic())
            print(f"=== {name}, at most {left:.0f} s", flush=True)
            parts[name] = run(name, left, given, Path(scratch))
            print(f"{name}: {parts[name].get('reason', 'ok')}", flush=True)
            write(given.out, parts)
    print((given.out / "gpu.md").read_text(encoding="utf-8"))


def arguments() -> argparse.ArgumentParser:
    """Return the options that this command shares with `benchmarks.gpu_parts`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit-s", type=float, default=540)
    parser.add_argument("--data", type=absolute)
    parser.add_argument("--weights-dir", type=absolute)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser


def absolute(text: str) -> Path:
    """Return the path of an option, for processes that start in another folder."""
    return Path(text).resolve()


def run(name: str, limit_s: float, given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run one part within its limit; what it measured, and the reason where it is not all."""
    began = time.monotonic()
    log = given.out / f"{name}.log"
    log.write_bytes(b"")
    status: int | None = 1
    attempts = 0
    while status not in (0, None):
        before = measured(log)
        left = limit_s - (time.monotonic() - began)
        done = ",".join(row["name"] for row in before)
        status = limited(command(name, left, given, scratch, done), left, log, given.device)
        attempts += 1
        if len(measured(log)) == len(before):  # it would only end in the same way
            break
    rows = list(tested(log)) if name == "tests" else measured(log)
    part = {"ok": status == 0, "seconds": round(time.monotonic() - began, 1), "rows": rows}
    if name == "training":
        part["logs"] = logged(scratch / "work")
    faults = [row["name"] for row in rows if "failed" in row]
    if status is None:
        part["reason"] = f"stopped at its limit of {limit_s:.0f} s"
    elif status:
        part["reason"] = f"ended with {status}"
    elif faults:
        part |= {"ok": False, "reason": f"failed: {', '.join(faults)}"}
    elif attempts > 1:
        part["reason"] = f"crashed {attempts - 1} times, and went on"
    if "reason" in part:
        text = log.read_text(encoding="utf-8", errors="replace")
        part["last_lines"] = text.splitlines()[-REASON_LINES:]
    return part


def command(
    name: str, limit_s: float, given: argparse.Namespace, scratch: Path, done: str
) -> list[str]:
    """Return the command of a part, which leaves out the measurements that are done."""
    if name == "tests":
        # -v: a line as each test ends, so that a killed run shows what came of the others.
        how = ["-p", "no:cacheprovider", "-m", "", "-vv", "--durations=10"]
        return [sys.executable, "-m", "pytest", *TESTS, *how]
    start = [sys.executable, "-m", "tools.benchmarks.gpu_parts", name, "--scratch", str(scratch)]
    start += ["--limit-s", f"{limit_s:.1f}", "--device", given.device, "--done", done]
    for option, value in (("--data", given.data), ("--weights-dir", given.weights_dir)):
        start += [option, str(value)] if value else []
    return start


def limited(command: list[str], limit_s: float, log: Path, device: str) -> int | None:
    """Run a command, its output added to a file; its status, None where it was killed."""
    environment = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "HF_HUB_OFFLINE": "1",
        "GPU_TESTS_ON": device,
        # Read once, at the first matrix product: before a part turns to deterministic algorithms.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            return child.wait(max(limit_s, 0.1))
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Also what it started and left behind, which would slow the parts that follow.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def emit(row: dict[str, Any]) -> None:
    """Print a measurement for `measured`, on a line of its own whatever a bar has printed."""
    print(f"\n{MEASURED}{json.dumps(row)}", flush=True)


def measured(log: Path) -> list[dict[str, Any]]:
    """Return the measurements in a part's log, without a last line that was cut.

    One that was begun and did not end is there as failed.
    """
    by_name: dict[str, list[dict]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith(MEASURED):
            continue
        try:
            row = json.loads(line.removeprefix(MEASURED))
        except ValueError:
            continue
        by_name.setdefault(row["name"], []).append(row)
    rows: list[dict] = []
    for begun, *ended in by_name.values():
        rows += ended or [begun | {"failed": "did not end"}]
    return rows


def tested(log: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each outcome of the tests, as pytest's log has them."""
    outcomes: dict[str, list[str]] = {}
    for name, outcome in TESTED.findall(log.read_text(encoding="utf-8", errors="replace")):
        outcomes.setdefault(outcome.lower(), []).append(name.rpartition("/")[2])
    for outcome, names in outcomes.items():
        row = {"name": f"tests {outcome}", "what": f"tests {outcome}", "here": str(len(names))}
        yield row | {"tests": names}


def logged(work: Path) -> dict[str, list[dict]]:
    """Return the log of each fold that a training left, also of one that was killed."""
    folders = fold_run.folds_with_training(work)
    return {folder.name: folder.read_log() for folder in folders if folder.log.exists()}


def write(out: Path, results: dict[str, dict[str, Any]]) -> None:
    """Write gpu.json and gpu.md of the parts that have ended."""
    (out / "gpu.json").write_text(json.dumps({"parts": results}, indent=1), encoding="utf-8")
    (out / "gpu.md").write_text("".join(document(results)), encoding="utf-8")


def document(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the text of gpu.md: the machine, a table for each part, and what failed."""
    for name, part in results.items():
        state = "ok" if part["ok"] else "not all of it"
        reason = f": {part['reason']}" if "reason" in part else ""
        yield f"## {name}: {state} in {part['seconds']:.0f} s{reason}\n\n"
        if shown := list(table_rows(part["rows"])):
            yield HEAD + "".join(shown) + "\n"
        for run, log in part.get("logs", {}).items():
            yield f"- {run}: {len(log)} epochs; {epochs(log)}\n"
        for line in part.get("last_lines", []):
            yield f"    {line}\n"
        yield "\n"


def table_rows(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table."""
    for row in rows:
        cells = [row.get("what", row["name"]), *(row.get(k, "–") for k in ("here", "against"))]
        cells.append(row.get("ratio", "–"))
        if "failed" in row:
            cells[1] = f"failed: {row['failed']}"
        yield "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |\n"


def epochs(log: list[dict[str, Any]]) -> str:
    """Return the course of a training in a line."""
    if not log:
        return "none ended"
    best = max(log, key=lambda line: line.get("dice", 0))
    return (
        f"validation dice, best threshold and area in sample, {log[0].get('dice', 0):.4f} → "
        f"{log[-1].get('dice', 0):.4f}, best {best.get('dice', 0):.4f} in epoch {best['epoch']}; "
        f"{log[-1]['images_per_second']:.0f} images/s"
    )


if __name__ == "__main__":
    main()
