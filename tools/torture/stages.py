"""The stages on a few phantoms of 64 px, each on what the undisturbed ones before it left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Collection
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from kernel_lib import checkpoints, storage
from kernel_lib.artifacts import filenames
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.data import cache, fingerprint, table
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.stages import gather, inference, report, thresholds, train
from tools.phantoms import competition
from tools.torture import lives

SIZE = 64
# The smallest network there is: a life is short, and its checkpoint is not most of it.
ROW = EXPERIMENTS["demo_UNetResNet10_128_v1"].differing(
    name="torture", encoder="tu-test_efficientnet", decoder_channels=(16,) * 5, weights="none",
    size=SIZE, epochs=2, min_epochs=0,
)  # fmt: skip
# Batch norm that more than normalises cannot be synchronised.
ROW_2 = ROW.differing(name="torture2", encoder="tu-test_resnet")
# Written in one go: all of them old, or all new.
AT_ONCE = {
    "thresholds": (filenames.MEMBERS, filenames.PER_IMAGE, filenames.STATISTICS,
                   filenames.DISTANCES, filenames.THRESHOLDS),
    "inference": (filenames.SUBMISSION, filenames.TEST_RUN),
}  # fmt: skip
# What each stage makes, which a trial begins without.
STAGES = {
    "prepare": ("cache/**/*",),
    "train": ("work/runs/**/*.json*", "work/runs/**/*.pt", "work/runs/**/oof*.zip", "work/*.csv",
              "work/*.json"),
    "predict": ("work/runs/**/oof*.zip",),
    "thresholds": tuple(f"work/ensembles/*/{name}" for name in AT_ONCE["thresholds"]),
    "inference": (f"work/runs/**/{filenames.TEST_MAPS}",
                  *(f"work/ensembles/*/{name}" for name in AT_ONCE["inference"])),
    # All but what a training that has just begun leaves, which further folds then replace.
    "gather": ("gathered/*.*", "gathered/runs/**/*.pt", "gathered/runs/**/*.zip",
               f"gathered/runs/**/{filenames.LOG}"),
    "train2": ("work2/**/*",),
}  # fmt: skip
PROCESSES = {"train2": 2}  # that share a stage
# How long things took, and the order in which a cache was filled, are each life's own.
TIMED = ("seconds", "val_seconds", "images_per_second", "memory_mb")
UNORDERED = ("rows.jsonl",)
REPORT = "drawn from what is compared\n" * 5000


class Place:
    """A folder with the phantoms, the undisturbed run, and one trial at a time."""

    def __init__(self, root: Path, names: Collection[str] = tuple(STAGES)) -> None:
        """Make the place of the stages `names`, and run those that they need."""
        self.data, self.whole, self.trial = root / "data", root / "whole", root / "trial"
        self._usual: dict[str, lives.Usual] = {}
        os.environ["KERNEL_LIB_MOUNTS"] = str(root / "no-mounts")
        torch.set_num_threads(1)  # forked processes may not wait for threads that are not theirs
        cv2.setNumThreads(0)
        tqdm.monitor_interval = 0
        tqdm.set_lock(threading.RLock())  # its own is all processes', also of one killed with it
        # Drawn from what is compared, and slower than all of it.
        report.write = _drawn
        competition.write_competition(
            self.data, 20, 6, size=SIZE, seed=1, difficulty=0.1, positives=0.4, workers=1,
        )  # fmt: skip
        for name in STAGES:
            if name not in PROCESSES:  # here, so that what a life imports is there to be forked
                self.do(name, self.whole)
            elif name in names:
                self._lived(name, self.whole)

    def fresh(self, name: str) -> Path:
        """Return a copy of the undisturbed run without what the stage makes."""
        self.copy(self.whole)
        for path in made(name, self.trial):
            path.unlink()
        return self.trial

    def copy(self, source: Path) -> None:
        """Make the trial's folder, which may be a disk of its own, a copy of another."""
        shutil.rmtree(self.trial, ignore_errors=True)
        shutil.copytree(source, self.trial, dirs_exist_ok=True)

    def differences(self, name: str) -> list[str]:
        """Return the files in which a trial of the stage differs from the undisturbed run."""
        wanted = {p.relative_to(self.whole) for p in made(name, self.whole)}
        left = {p.relative_to(self.trial) for p in self.trial.rglob("*") if p.is_file()}
        known = {p.relative_to(self.whole) for p in self.whole.rglob("*") if p.is_file()}
        faults = [f"{path} is left behind" for path in left - known]
        faults += [f"{path} is missing" for path in wanted - left]
        faults += [
            f"{path} differs"
            for path in wanted & left
            if content(self.whole / path) != content(self.trial / path)
        ]
        return sorted(faults)

    def do(self, name: str, folder: Path, otherwise: bool = False) -> None:
        """Run a stage in this process; `otherwise` with a setting that makes other results."""
        places = {"data_dir": str(self.data), "work_dir": str(folder / "work")}
        caches = {"cache_dir": str(folder / "cache"), "threads": 1, "device": "cpu"}
        if name == "prepare":
            source = table.discover(self.data)
            for split, frame in (("train", source.train), ("test", source.test)):
                done = cache.prepare(frame, source.root, SIZE, folder / "cache", split, workers=1)
                fingerprint.codes(done)
        elif name in ("train", "predict"):
            parameters = TrainParameters(
                experiment=ROW.name, n_folds=2, save_minutes=1e-6, **places, **caches
            )
            train.run(parameters, {ROW.name: ROW})
        elif name == "train2":
            alone = {"fold": 0, "work_dir": str(folder / "work2")}
            parameters = TrainParameters(
                experiment=ROW_2.name, n_folds=2, save_minutes=1e-6, **(places | alone), **caches
            )
            train.run(parameters, {ROW_2.name: ROW_2})
        elif name == "thresholds":
            thresholds.run(ThresholdsParameters(bootstrap=200 if otherwise else 100, **places))
        elif name == "gather":
            gather.run([folder / "work"], folder / "gathered")
        else:
            views = {"tta": "none"} if otherwise else {}
            inference.run(InferenceParameters(**places, **caches, **views))

    def live(
        self, name: str, death: lives.Death | None = None, otherwise: bool = False
    ) -> tuple[int, str]:
        """Return a life of the stage on the trial's folder; how it ended, and what it said."""
        processes = PROCESSES.get(name, 1)
        return lives.live(lambda: self.do(name, self.trial, otherwise), death, processes)

    def usual(self, name: str) -> lives.Usual:
        """Return an undisturbed life of the stage, lived where it was not yet."""
        if name not in self._usual:
            self.fresh(name)
            seconds = self._lived(name, self.trial)
            if differs := self.differences(name):
                raise RuntimeError(f"{name} differs even undisturbed: {', '.join(differs)}")
            largest = max(path.stat().st_size for path in made(name, self.trial))
            folder = self.fresh(name)
            events = lives.counted(lambda: self.do(name, folder), PROCESSES.get(name, 1))
            self._usual[name] = lives.Usual(seconds, events, largest)
        return self._usual[name]

    def _lived(self, name: str, folder: Path) -> float:
        """Return the seconds of an undisturbed life."""
        began = time.monotonic()
        status, said = lives.live(lambda: self.do(name, folder), None, PROCESSES.get(name, 1))
        if status:
            raise RuntimeError(f"{name} does not even end undisturbed:\n{said}")
        return time.monotonic() - began


def made(name: str, folder: Path) -> list[Path]:
    """Return what the stage has made in a folder."""
    return [p for pattern in STAGES[name] for p in folder.glob(pattern) if p.is_file()]


def _drawn(folder: Path, *_, **__) -> None:
    """Stand in for a report."""
    storage.write_text(folder / filenames.REPORT, REPORT)


def content(path: Path) -> str:
    """Return a digest of what in a file may not depend on how often it was killed."""
    if path.name in UNORDERED:
        return ""
    if path.suffix == ".pt":
        state, _ = checkpoints.load(path)
        position = _untimed(state.get("position", {}))
        position["history"] = [_untimed(line) for line in position.get("history", [])]
        return checkpoints.digest(path) + json.dumps(position)
    if path.name == filenames.LOG:
        lines = path.read_text(encoding="utf-8").splitlines()
        return json.dumps([_untimed(json.loads(line)) for line in lines])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _untimed(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in TIMED}
