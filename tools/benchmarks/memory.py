"""What memory the competition's 12,047 images take: prepare, predict, thresholds, inference.

    python -m tools.benchmarks.memory [--images N] [--size 512] [--data DIR]
                                      [--root DIR [--only STAGE]]

Each stage runs in a process of its own, on two folds whose tiny network nothing was taught, so that
what is left is not the model; every image is held out, and scored, once. The images are few DICOMs
under many names: phantoms of 1024², or those of --data. All are training images and, again, test
images. With --root the folder is kept, and with --only one stage is run in it.

Of each stage's whole process tree: the memory of its own, which the kernel cannot take back, and
what is mapped from files, libraries mostly (`sampled`), five times a second; and the
kernel's own record of the first process's peak (VmHWM), which misses nothing. The figure is the
larger of both sums, libraries and all, without what the network by itself takes. Pages that the
kernel keeps of files that were read, and not mapped, belong to no process.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kernel_lib.data import cache, table
from tools.benchmarks.prepare import drawn
from tools.benchmarks.rounds import figure

STAGES = ("prepare", "predict", "thresholds", "inference")
BAR_GB = 2.0
# The smallest network there is: what is measured is what is held beside it.
TINY = {"encoder": "tu-mobilenetv3_small_050", "decoder_channels": (16,), "weights": "none",
        "epochs": 1, "min_epochs": 0, "keep": 1, "tta": "none", "batch_size": 1}  # fmt: skip
N_FOLDS = 2  # the fewest; all of them, so that every image is held out once
WORKERS = 2  # of the loaders, as beside a GPU
DIFFERENT = 32  # phantoms; drawing all would take an hour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=12_047)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--only", choices=(*STAGES, "model"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        if given.only == "model":
            print(of_model(given.size))
        else:
            do(given.only, given.root, given.size)
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = given.root or Path(scratch)
        if not (root / "data").exists():
            link(given.data or drawn(Path(scratch) / "few", DIFFERENT), root / "data", given.images)
        model = int(subprocess.run(inside("model", root, given.size), check=True, text=True,
                                   stdout=subprocess.PIPE).stdout)  # fmt: skip
        print(f"the network's own weights and activations: {model / 1e9:.2f} GB")
        for stage in [given.only] if given.only else STAGES:
            predicts = stage in ("predict", "inference")
            peaks = watched(inside(stage, root, given.size), root / f"{stage}.log")
            show(stage, given, peaks, model if predicts else 0)


def inside(stage: str, root: Path, size: int) -> list[str]:
    """Return the command that is one stage, or the network, in a process of its own."""
    command = [sys.executable, "-m", "tools.benchmarks.memory", "--inside", "--only", stage]
    return [*command, "--root", str(root), "--size", str(size)]


def link(few: Path, folder: Path, n_images: int) -> None:
    """Make a data folder of n images: links to a few, with their labels, under new names."""
    known = table.discover(few).train[["path", "rle"]].itertuples(index=False, name=None)
    names = [f"image-{i:05d}" for i in range(n_images)]
    (folder / "images").mkdir(parents=True)
    labels = []
    for name, (path, text) in zip(names, itertools.cycle(list(known)), strict=False):
        target = folder / "images" / f"{name}.dcm"
        if few.is_relative_to(tempfile.gettempdir()):
            os.link(path, target)  # the few will be gone
        else:
            target.symlink_to(path)
        labels.append(f"{name},{text}\n")
    head = "ImageId,EncodedPixels\n"
    (folder / "train-rle.csv").write_text(head + "".join(labels))
    (folder / "sample_submission.csv").write_text(head + "".join(f"{n},-1\n" for n in names))


def watched(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Run a command and watch its process tree; its peaks in bytes, and the seconds it took.

    What it prints goes into the log. Raises: SystemExit with the log's end where it fails.
    """
    peaks = dict.fromkeys(("own", "files", "sum", "record", "processes"), 0)
    began = time.monotonic()
    with open(log, "w") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        while True:
            seen = sampled(child.pid)
            seen["sum"] = seen["own"] + seen["files"]
            peaks = {key: max(peaks[key], seen[key]) for key in peaks}
            try:
                if child.wait(timeout=0.2):
                    raise SystemExit(log.read_text()[-2000:])
                break
            except subprocess.TimeoutExpired:
                continue
    return peaks | {"seconds": time.monotonic() - began}


def show(stage: str, given: argparse.Namespace, peaks: dict[str, float], model: int) -> None:
    gb = {key: value / 1e9 for key, value in peaks.items()}
    print(f"{stage}: {peaks['processes']:.0f} processes at most, {peaks['seconds']:.0f} s; "
          f"of its own {gb['own']:.2f} GB, mapped files {gb['files']:.2f}, both at once "
          f"{gb['sum']:.2f}; the first one's record {gb['record']:.2f} GB")  # fmt: skip
    most = max(gb["sum"], gb["record"]) - model / 1e9
    figure(f"memory of {stage}, {given.images:,} images at {given.size}", f"{most:.2f} GB",
           f"the bar {BAR_GB:g} GB", f"{most / BAR_GB:.0%}", "100 %")  # fmt: skip


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


def do(stage: str, root: Path, size: int) -> None:
    """Run one stage in a folder that holds `data`, with what the stages before it left."""
    os.environ["KERNEL_LIB_MOUNTS"] = str(root / "no-mounts")
    where = {"data_dir": str(root / "data"), "work_dir": str(root / "work")}
    if stage == "prepare":
        source = table.discover(root / "data")
        for split, frame in (("train", source.train), ("test", source.test)):
            cache.prepare(frame, source.root, size, root / "cache", split, workers=WORKERS)
        return
    if stage == "thresholds":
        # Its own import: without torch, as on a machine that has none.
        from kernel_lib.config import ThresholdsParameters
        from kernel_lib.stages import thresholds

        thresholds.run(ThresholdsParameters(**where))
        return
    where |= {"cache_dir": str(root / "cache"), "device": "cpu", "workers": WORKERS,
              "threads": 1}  # fmt: skip
    if stage == "predict":
        from kernel_lib.config import TrainParameters
        from tools.benchmarks import untrained

        row = tiny(size)
        untrained.folds(row, TrainParameters(experiment=row.name, n_folds=N_FOLDS, **where))
        return
    from kernel_lib.config import InferenceParameters
    from kernel_lib.stages import inference

    inference.run(InferenceParameters(**where))


def tiny(size: int):
    """Return the row whose network all stages use."""
    from kernel_lib.experiments import EXPERIMENTS

    return EXPERIMENTS["UNetResNet34_512_v1"].differing(name="tiny", size=size, **TINY)


def of_model(size: int) -> int:
    """Return the bytes of the network: its weights and the prediction of one batch."""
    import torch

    from kernel_lib.engine import choose_engine
    from kernel_lib.models import networks

    row, on = tiny(size), choose_engine("cpu")
    before = fields(os.getpid(), "status")["VmRSS"]
    model = networks.build(row).eval()
    batch = torch.zeros((2 * row.batch_size, 1, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        model(on.to_device(batch))
    return fields(os.getpid(), "status")["VmHWM"] - before


if __name__ == "__main__":
    main()
