"""The stages on a few phantoms of 64 px, each on what the undisturbed ones before it left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from kernel_lib import checkpoints
from kernel_lib.config import InferenceParameters, ThresholdsParameters, TrainParameters
from kernel_lib.data import cache, phantom, table
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.stages import inference, report, thresholds, train
from torture import lives

SIZE = 64
# The smallest network there is: a life is short, and its checkpoint is not most of it.
ROW = EXPERIMENTS["demo_UNetResNet10_128_v1"].differing(
    name="torture", encoder="tu-mobilenetv3_small_050", decoder_channels=(16,) * 5, weights="none",
    size=SIZE, epochs=2, min_epochs=0,
)  # fmt: skip
# What each stage makes, which a trial begins without.
STAGES = {
    "prepare": ("cache/**/*",),
    "train": ("work/runs/**/*.json*", "work/runs/**/*.pt", "work/runs/**/oof*.zip", "work/*.csv",
              "work/*.json"),
    "predict": ("work/runs/**/oof*.zip",),
    "thresholds": tuple(
        f"work/ensembles/*/{name}"
        for name in ("members.json", "oof.csv", "oof_statistics.npz", "thresholds.json")
    ),
    "inference": ("work/runs/**/test.zip", "work/ensembles/*/submission.csv",
                  "work/ensembles/*/test.json"),
}  # fmt: skip
# How long things took, and the order in which a cache was filled, are each life's own.
TIMED = ("seconds", "val_seconds", "images_per_second", "memory_mb")
UNORDERED = ("rows.jsonl",)


class Place:
    """A folder with the phantoms, the undisturbed run, and one trial at a time."""

    def __init__(self, root: Path) -> None:
        self.data, self.whole, self.trial = root / "data", root / "whole", root / "trial"
        self.usual: dict[str, lives.Usual] = {}
        os.environ["KERNEL_LIB_MOUNTS"] = str(root / "no-mounts")
        torch.set_num_threads(1)  # forked processes may not wait for threads that are not theirs
        cv2.setNumThreads(0)
        tqdm.monitor_interval = 0
        tqdm.set_lock(threading.RLock())  # its own is all processes', also of one killed with it
        # Drawn from what is compared, and slower than all of it.
        report.write = lambda *_, **__: None
        phantom.write_competition(
            self.data, 20, 6, size=SIZE, seed=1, difficulty=0.1, positives=0.4, workers=1,
            progress=False,
        )  # fmt: skip
        for name in STAGES:  # here, so that all that a life imports is loaded before it is forked
            self.do(name, self.whole)
        for name in STAGES:
            self.usual[name] = self._usual(name)

    def fresh(self, name: str) -> Path:
        """A copy of the undisturbed run without what the stage makes."""
        shutil.rmtree(self.trial, ignore_errors=True)
        shutil.copytree(self.whole, self.trial)
        for path in _made(name, self.trial):
            path.unlink()
        return self.trial

    def differences(self, name: str) -> list[str]:
        """What a trial of the stage left otherwise than the undisturbed run, or beside it."""
        wanted = {p.relative_to(self.whole) for p in _made(name, self.whole)}
        there = {p.relative_to(self.trial) for p in self.trial.rglob("*") if p.is_file()}
        known = {p.relative_to(self.whole) for p in self.whole.rglob("*") if p.is_file()}
        found = [f"{one} is left behind" for one in there - known]
        found += [f"{one} is missing" for one in wanted - there]
        found += [
            f"{one} differs"
            for one in wanted & there
            if content(self.whole / one) != content(self.trial / one)
        ]
        return sorted(found)

    def do(self, name: str, folder: Path) -> None:
        """Run a stage in this process."""
        places = {"data_dir": str(self.data), "work_dir": str(folder / "work")}
        caches = {"cache_dir": str(folder / "cache"), "threads": 1, "device": "cpu"}
        if name == "prepare":
            source = table.discover(self.data)
            for split, frame in (("train", source.train), ("test", source.test)):
                cache.prepare(frame, source.root, SIZE, folder / "cache", split, workers=1)
        elif name in ("train", "predict"):
            parameters = TrainParameters(
                experiment=ROW.name, n_folds=2, save_minutes=1e-6, **places, **caches
            )
            train.run(parameters, {ROW.name: ROW})
        elif name == "thresholds":
            thresholds.run(ThresholdsParameters(bootstrap=100, **places))
        else:
            inference.run(InferenceParameters(**places, **caches))

    def _usual(self, name: str) -> lives.Usual:
        folder, began = self.fresh(name), time.monotonic()
        status, said = lives.live(lambda: self.do(name, folder))
        seconds = time.monotonic() - began
        if status:
            raise RuntimeError(f"{name} does not even end undisturbed:\n{said}")
        if differs := self.differences(name):
            raise RuntimeError(f"{name} differs even undisturbed: {', '.join(differs)}")
        largest = max(path.stat().st_size for path in _made(name, self.trial))
        folder = self.fresh(name)
        return lives.Usual(seconds, lives.counted(lambda: self.do(name, folder)), largest)


def _made(name: str, folder: Path) -> list[Path]:
    return [p for pattern in STAGES[name] for p in folder.glob(pattern) if p.is_file()]


def content(path: Path) -> str:
    """A digest of what in a file may not depend on how often it was killed."""
    if path.name in UNORDERED:
        return ""
    if path.suffix == ".pt":
        state, _ = checkpoints.load(path)
        position = _untimed(state.get("position", {}))
        position["history"] = [_untimed(line) for line in position.get("history", [])]
        return checkpoints.digest(path) + json.dumps(position)
    if path.name == "log.jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        return json.dumps([_untimed(json.loads(line)) for line in lines])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _untimed(line: dict) -> dict:
    return {key: value for key, value in line.items() if key not in TIMED}
