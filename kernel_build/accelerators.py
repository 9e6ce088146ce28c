"""Kaggle's accelerators by name: memory, number of GPUs, and speed relative to the default.

Names are from docs/kernels.md of kaggle-cli (September 2026) and from `kernels push --help` of
2.2.5. The server accepts any text, and silently gives another accelerator if it does not know or
grant the name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.registry import lookup, nearest


@dataclass(frozen=True)
class Accelerator:
    """A machine by its name at Kaggle; figures are per GPU, from NVIDIA's data sheets.

    Attributes:
        memory_gb: Memory of a GPU.
        tflops: Float16 tensor throughput without sparsity.
        bandwidth_gb_s: Memory bandwidth.
        limited: Whether only some accounts get it.
    """

    name: str
    gpus: int
    memory_gb: int
    tflops: float
    bandwidth_gb_s: float
    limited: bool = True

    @property
    def usable_mb(self) -> float:
        """GPU memory for tensors, in MB: CUDA itself takes some hundred MB, here 1 of 16 GB."""
        return 15 / 16 * 1000 * self.memory_gb

    @property
    def speed(self) -> float:
        """Speed of all its GPUs relative to the default: an estimate, not measured.

        The geometric mean of throughput and bandwidth, because convolutions are limited by the
        first and everything between them by the second.
        """
        own = self.gpus * (self.tflops * self.bandwidth_gb_s) ** 0.5
        return own / (2 * (65 * 320) ** 0.5)  # two T4


DEFAULT = "NvidiaTeslaT4"  # two T4: one alone is not offered (kaggle-cli, pull request 1198)
# "Only available to participants of specific competitions", some only to Kaggle's staff: which are
# which is not documented, nor are the GPUs of any but the default. Those here follow from names and
# users' reports, assuming the H100 to be SXM and the RTX PRO 6000 the Server Edition.
ACCELERATORS = {
    each.name: each
    for each in (
        Accelerator(DEFAULT, 2, 16, 65, 320, limited=False),
        Accelerator("NvidiaL4", 4, 24, 121, 300),
        Accelerator("NvidiaL4X1", 1, 24, 121, 300),
        Accelerator("NvidiaTeslaA100", 1, 40, 312, 1555),
        Accelerator("NvidiaH100", 1, 80, 989, 3350),
        Accelerator("NvidiaRtxPro6000", 1, 96, 500, 1597),
    )
}
TPUS = ("TpuV5E8", "TpuV6E8")
# What replaces a retired one (_RETIRED_ACCELERATORS of kaggle-cli 2.2.5).
RETIRED = {
    "NvidiaTeslaP100": f"{DEFAULT}, two T4,",
    "TpuV38": "TpuV5E8",
    "Tpu1VmV38": "TpuV5E8",
    "TpuV232": "a CPU",
    "TpuV2256": "a CPU",
}
# Peak memory of one process of the training loop: bfloat16, 512 px, batches of 8, on an H200
# (docs/results.md, "On a GPU"). No other experiment is measured.
_UNET_RESNET34_MB = 3906


def find(name: str) -> Accelerator:
    """Return the accelerator that Kaggle gives for a name; for a retired GPU its replacement.

    Raises: InputError for a TPU, and for an unknown name with the nearest ones.
    """
    if name.strip().lower().startswith("tpu"):
        raise InputError(
            f"accelerator {name} is a TPU, and nothing here runs on one: the training is torch on "
            f"GPUs; give {DEFAULT}"
        )
    if _successor(name):
        return ACCELERATORS[DEFAULT]
    return lookup("accelerator", name.strip(), ACCELERATORS)


def fault(shape: str) -> str | None:
    """Return what is wrong with the `machine_shape` of a kernel's metadata, with its fix."""
    if shape in ("", *ACCELERATORS):
        return None
    if shape in TPUS:
        return f"machine_shape {shape} is a TPU, which nothing here uses; write {DEFAULT}"
    if retired := replacement(shape):
        return f"machine_shape {retired}; write {DEFAULT}"
    nearest_name = nearest(shape.strip(), ACCELERATORS).split(", ")[0]
    return f"machine_shape {shape!r} is not an accelerator of Kaggle's; write {nearest_name}"


def replacement(name: str) -> str | None:
    """Return what Kaggle does with a retired accelerator, as a clause; None for others."""
    successor = _successor(name)
    return (
        successor
        and f"{name} is retired, and Kaggle gives {successor} in its place without an error"
    )


def note(shape: str) -> str | None:
    """Return a warning that Kaggle may give another accelerator than `shape`, or None."""
    if shape not in ACCELERATORS or not ACCELERATORS[shape].limited:
        return None
    return (
        f"machine_shape {shape} is only for participants of certain competitions; others may get "
        f"another one without an error, {DEFAULT} is for all"
    )


def training_mb(experiment: Experiment, processes: int) -> float | None:
    """Return about how much GPU memory one of a training's processes needs, in MB.

    Activations are nearly all of it, so it is proportional to pixels and to the process's share of
    a batch. None if no similar experiment is measured.
    """
    row = Experiment(name="UNet")  # the defaults are those of UNetResNet34_512_v1
    alike = ("network", "encoder", "decoder_channels", "centre_block")
    if any(getattr(experiment, name) != getattr(row, name) for name in alike):
        return None
    share = math.ceil(experiment.batch_size / processes)
    return _UNET_RESNET34_MB * (experiment.size / row.size) ** 2 * share / row.batch_size


def too_small(
    accelerator: Accelerator, experiment: Experiment, needed_mb: float, source: str
) -> str | None:
    """Return what to change if a process needs more memory than its GPU has, else None.

    `source` says where `needed_mb` is from.
    """
    if needed_mb <= accelerator.usable_mb:
        return None
    images = experiment.batch_size * experiment.accumulate
    most = int(experiment.batch_size * accelerator.usable_mb / needed_mb)
    fits = [n for n in range(1, most + 1) if images % n == 0]
    fix = f"-p BATCH_SIZE {fits[-1]} -p ACCUMULATE {images // fits[-1]}" if fits else "a lower SIZE"
    return (
        f"{experiment.name} needs about {needed_mb / 1000:.1f} GB of GPU memory ({source}), and "
        f"a GPU of {accelerator.name} leaves {accelerator.usable_mb / 1000:.1f}: {fix}, or "
        "another --accelerator"
    )


def _successor(name: str) -> str | None:
    """Return what a retired accelerator becomes, ignoring case as the command line does."""
    successors = {retired.lower(): successor for retired, successor in RETIRED.items()}
    return successors.get(name.strip().lower())
