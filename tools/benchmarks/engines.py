"""Speed of networks on a CPU: torch in float32 and bfloat16, onnxruntime and OpenVINO.

    python -m tools.benchmarks.engines [--size 512] [--batch 2] [--rounds 5]

A forward pass of the U-Net with ResNet-34 and of `lite0_256`'s network, with random weights, in one
thread and in two; the engines alternate. Batch norm has the statistics of the images, so that
activations are as large as in a trained network; the last layer is scaled until its logits span a
range of ten. OpenVINO, if installed, is measured in float32 and with its defaults: bfloat16 on a
CPU that supports it. Differences of logits are the largest ones from torch in float32. The time to
export is printed for each network, and is spent once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import nn

from kernel_lib.engine import choose_engine
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference import onnx_file, onnx_network
from kernel_lib.models import networks
from kernel_lib.models.base import Network
from tools.benchmarks.rounds import figure, timed
from tools.phantoms.anatomy import draw_anatomy
from tools.phantoms.draw import draw

NETWORKS = {"U-Net of ResNet-34": "UNetResNet34_512_v1", "U-Net of lite0": "lite0_256"}
THREADS = (1, 2)
SPREAD = 10.0
Work = Callable[[], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size, rounds = options.size, options.rounds
    levels = pixels(size, options.batch)
    for title, experiment in NETWORKS.items():
        model = network(experiment, levels)
        began = time.perf_counter()
        content = onnx_network.to_onnx([model], size)
        seconds = time.perf_counter() - began
        print(f"{title} at {size}: {len(content) / 1e6:.1f} MB, exported in {seconds:.1f} s")
        for threads in THREADS:
            measure(f"{title} at {size}", model, content, levels, threads, rounds)


def pixels(size: int, batch: int) -> torch.Tensor:
    """Return `batch` phantoms, (B, 1, S, S) uint8."""
    drawn = []
    for seed in range(batch):
        rng = np.random.default_rng(seed)
        drawn.append(draw(draw_anatomy(rng), rng, size=size, difficulty=0.5, area_px=0).image)
    return torch.from_numpy(np.stack(drawn)[:, None])


def network(experiment: str, levels: torch.Tensor) -> Network:
    """Return the experiment's network, random, with batch norm and logits scaled on `levels`."""
    row = EXPERIMENTS[experiment].differing(name="bench", weights="none", size=levels.shape[-1])
    torch.manual_seed(0)
    model = networks.build(row).train()
    for norm in networks.batch_norms(model):
        norm.reset_running_stats()
        norm.momentum = None  # statistics of the next forward pass alone
    with torch.no_grad():
        model(levels)
        logits = model.eval()(levels).mask
        model.head.logit.weight *= SPREAD / (logits.max() - logits.min())
    return model


def measure(
    title: str, model: nn.Module, content: bytes, levels: torch.Tensor, threads: int, rounds: int
) -> None:
    torch.set_num_threads(threads)
    engines = {
        "torch float32": torch_work(model, levels, "float32"),
        "torch bfloat16": torch_work(model, levels, "bfloat16"),
        "onnxruntime": onnxruntime_work(content, levels, threads),
        **openvino_works(content, levels, threads),
    }
    expected = engines["torch float32"]()
    errors = {name: float(np.abs(work() - expected).max()) for name, work in engines.items()}
    times = timed(engines, rounds)
    per_image = {name: times.seconds(name) / len(levels) for name in engines}
    words = "one thread" if threads == 1 else f"{threads} threads"
    ours = "torch float32"
    for name in engines:
        if name != ours:
            figure(f"{title}, {words}, {ours}", f"{per_image[ours]:.3f} s per image",
                   f"{name} {per_image[name]:.3f} s per image, logits within {errors[name]:.1g}",
                   f"{times.times_faster(name, ours):.2f} × as fast as ours")  # fmt: skip


def torch_work(model: nn.Module, levels: torch.Tensor, precision: str) -> Work:
    engine = choose_engine("cpu", precision)

    @torch.inference_mode()
    def work() -> np.ndarray:
        with engine.autocast():
            return model(engine.to_device(levels)).mask.float().numpy()

    return work


def onnxruntime_work(content: bytes, levels: torch.Tensor, threads: int) -> Work:
    session, array = onnx_file.session(content, threads), levels.numpy()
    return lambda: onnx_file.run(session, array)[onnx_file.MASK]


def openvino_works(content: bytes, levels: torch.Tensor, threads: int) -> dict[str, Work]:
    try:
        import openvino
    except ImportError:
        print("OpenVINO is not installed and left out: pip install openvino")
        return {}
    core, array = openvino.Core(), levels.numpy()

    def compiled(**options: str) -> Work:
        settings = {"INFERENCE_NUM_THREADS": threads, **options}
        network = core.compile_model(core.read_model(content), "CPU", settings)
        return lambda: network(array)[onnx_file.MASK]

    return {
        "OpenVINO float32": compiled(INFERENCE_PRECISION_HINT="f32"),
        "OpenVINO with its defaults": compiled(),
    }


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
