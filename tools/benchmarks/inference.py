"""From DICOMs to a checked submission beside a bare forward pass of the same network.

    python -m tools.benchmarks.inference [--size 256] [--images 16]

The stage as it is, on one fold of `UNetResNet34_512_v1` with weights as they were drawn: it finds
the images, decodes them into an empty cache, predicts them with hflip, applies the rule, encodes,
writes, reads back and draws the report. The bare pass sends as many tensors that lie in memory
through the same network, in the same views and batches, and keeps nothing. Both use one thread. The
rule is set so that a fifth of the images gets a mask; noise makes it ragged, so that rule and RLE
cost more than usual. What is done once a call, reading the checkpoint and drawing the report, is
separated from what is done for each image: for 3,205 test images the former is next to nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run, maps
from kernel_lib.config import InferenceParameters, TrainParameters
from kernel_lib.data import cache, rle, table
from kernel_lib.engine import choose_engine
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference import predictions, tta
from kernel_lib.stages import inference, report
from tools.benchmarks import untrained
from tools.benchmarks.rounds import Timed, figure, timed
from tools.phantoms import competition

ROW = EXPERIMENTS["UNetResNet34_512_v1"].differing(
    name="bench", weights="none", epochs=1, min_epochs=0, keep=1
)
N_TRAIN = 8
N_TEST = 3_205  # the second stage's
BAR = "90 %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch), given.size, given.images)
        parts = Parts()
        works = {"stage": lambda: place.infer(parts), "bare": place.bare_pass()}
        took = timed(works, given.rounds)
        show(given.size, given.images, took, parts)


class Place:
    """A folder with phantoms, a fold and its ensemble, all but the test images' predictions."""

    def __init__(self, root: Path, size: int, n_images: int) -> None:
        self.root, self.row = root, ROW.differing(name=f"bench_{size}", size=size)
        competition.write_competition(
            root / "data", N_TRAIN, n_images, size=1024, seed=1, positives=0.5
        )
        self.where = {"data_dir": str(root / "data"), "work_dir": str(root / "work"),
                      "cache_dir": str(root / "cache"), "device": "cpu", "threads": 1}  # fmt: skip
        with untrained.quiet(), mock.patch.object(report, "write"):
            asked = TrainParameters(experiment=self.row.name, n_folds=2, fold=0, **self.where)
            untrained.folds(self.row, asked)
            result = untrained.searched(root / "work")
            self.infer(Parts())
            test = table.discover(root / "data").test
            rule = untrained.settle_rule(
                result, root / "work", dict(zip(test["image_id"], test["path"], strict=True))
            )
        print(f"rule {rule}")

    @property
    def fold(self) -> fold_run.FoldRun:
        (run,) = fold_run.run_names([self.root / "work"])
        return fold_run.fold_folder(self.root / "work", run, 0)

    def infer(self, parts: Parts) -> None:
        """Run the inference stage without earlier results for the test images."""
        shutil.rmtree(self.root / "cache", ignore_errors=True)
        self.fold.test.unlink(missing_ok=True)
        with untrained.quiet(), parts.listening():
            inference.run(InferenceParameters(**self.where))

    def bare_pass(self) -> Callable[[], None]:
        """Predict all test images, as tensors in memory."""
        chosen, size = choose_engine("cpu"), 2 * self.row.batch_size
        (model,) = predictions.load_models(self.row, self.fold.kept(), chosen)
        test = table.discover(self.root / "data").test
        prepared = cache.prepare(
            test, self.root / "data", self.row.size, self.root / "bare", "test"
        )
        levels = [torch.from_numpy(prepared.image(i).copy())[None] for i in range(len(prepared))]
        batches = [torch.stack(levels[i : i + size]) for i in range(0, len(levels), size)]
        views = tta.views(self.row.tta)

        @torch.inference_mode()
        def forward() -> None:
            for batch in batches:
                for view in views:
                    model(chosen.to_device(view.forward(batch)))

        return forward


class Parts:
    """Seconds of the stage's parts, round after round."""

    EACH = ("decode into the cache", "forward pass", "map as PNG", "map to mask", "RLE")
    ONCE = ("checkpoint read and checked", "report")
    NAMES = (*EACH, *ONCE)

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        for name in self.NAMES:
            self.seconds[name].append(0.0)
        decode, forward, png, mask, coded, checked, drawn = self.NAMES
        with contextlib.ExitStack() as stack:
            for name, owner, called in (
                (decode, cache, "prepare"),
                (forward, predictions, "view_logits"),
                (png, maps.cv2, "imencode"),
                (coded, rle, "encode"),
                (checked, predictions, "contents"),
                (checked, predictions, "load_models"),
                (checked, checkpoints, "past"),
                (drawn, report, "write"),
            ):
                heard = self._heard(name, getattr(owner, called))
                stack.enter_context(mock.patch.object(owner, called, heard))
            stream = self._heard_stream(mask, inference.test_masks)
            stack.enter_context(mock.patch.object(inference, "test_masks", stream))
            yield

    def _heard(self, name: str, call: Callable) -> Callable:
        def timed_call(*arguments, **options):
            began = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds[name][-1] += time.perf_counter() - began

        return timed_call

    def _heard_stream(self, name: str, call: Callable) -> Callable:
        def timed_stream(*arguments, **options):
            following = self._heard(name, iter(call(*arguments, **options)).__next__)
            with contextlib.suppress(StopIteration):
                while True:
                    yield following()

        return timed_stream


def show(size: int, n: int, took: Timed, parts: Parts) -> None:
    stage, bare = took.rounds("stage"), took.rounds("bare")
    by_part = {name: np.array(all_of[1:]) for name, all_of in parts.seconds.items()}
    for name in Parts.EACH:
        print(f"  {name}: {1e3 * np.median(by_part[name] / n):.1f} ms an image, "
              f"{np.median(by_part[name] / stage):.1%}")  # fmt: skip
    for name in Parts.ONCE:
        print(f"  {name}: {np.median(by_part[name]):.2f} s once, "
              f"{np.median(by_part[name] / stage):.1%}")  # fmt: skip
    rest = stage - sum(by_part.values())
    print(f"  the rest: {1e3 * np.median(rest / n):.1f} ms an image, {np.median(rest / stage):.1%}")
    against = f"a bare forward pass {np.median(n / bare):.2f} images/s"
    figure(f"inference of {n} images at {size}, hflip", f"{np.median(n / stage):.2f} images/s",
           against, f"{np.median(bare / stage):.0%}", "none")  # fmt: skip
    once = sum(by_part[name] for name in Parts.ONCE)
    full_seconds = (stage - once) / n + once / N_TEST
    shown = f"{np.median(1 / full_seconds):.2f} images/s"
    scaled = f"inference of {N_TEST:,} images at {size}, its once scaled so"
    figure(scaled, shown, against, f"{np.median(bare / n / full_seconds):.0%}", BAR)
    own = by_part["forward pass"] / n
    figure(scaled, shown, f"the forward pass within it {np.median(1 / own):.2f} images/s",
           f"{np.median(own / full_seconds):.0%}", BAR)  # fmt: skip


if __name__ == "__main__":
    cv2.setNumThreads(1)
    torch.set_num_threads(1)  # several that wait for each other would measure who else is there
    main()
