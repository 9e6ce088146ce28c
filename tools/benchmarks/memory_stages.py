"""One stage over many images, in the process that `benchmarks.memory` watches."""

from __future__ import annotations

import os
from pathlib import Path

from kernel_lib.data import cache, table
from tools.benchmarks.processes import fields

# The smallest network there is: what is measured is what is held beside it.
TINY = {"encoder": "tu-mobilenetv3_small_050", "decoder_channels": (16,), "weights": "none",
        "epochs": 1, "min_epochs": 0, "keep": 1, "tta": "none", "batch_size": 1}  # fmt: skip
N_FOLDS = 2  # the fewest; all of them, so that every image is held out once
WORKERS = 2  # of the loaders, as beside a GPU


def do(stage: str, root: Path, size: int) -> None:
    """Run it in a folder that holds `data`, with what the stages before it left."""
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
