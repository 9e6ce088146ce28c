"""Which engine computes networks: torch, or onnxruntime, which is faster on a CPU."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from kernel_lib.config import Experiment, InferenceParameters
from kernel_lib.engine import Engine
from kernel_lib.errors import InputError
from kernel_lib.inference import onnx_file, tta
from kernel_lib.inference.onnx_network import OnnxNetwork

# Pixels, over all images and views, above which more time is saved than the export takes.
PAYS_FROM_PX = 16_000_000


def check(parameters: InferenceParameters) -> None:
    """Raise InputError if onnxruntime is asked for without its packages, or not in float32."""
    if parameters.engine != "onnxruntime":
        return
    if parameters.precision not in ("auto", "float32") or parameters.device not in ("auto", "cpu"):
        raise InputError(
            f"ENGINE onnxruntime runs on the CPU in float32, not with DEVICE {parameters.device} "
            f"and PRECISION {parameters.precision}: leave them out"
        )
    if not _installed():
        raise InputError("ENGINE onnxruntime needs onnx and onnxruntime: pip install .[onnx]")


def computed(
    models: list[nn.Module],
    experiment: Experiment,
    parameters: InferenceParameters,
    engine: Engine,
    n_images: int,
) -> tuple[list[nn.Module], str]:
    """Return networks that onnxruntime computes, or the given ones, and a line that says which.

    `experiment.tta` names the views. Raises: InputError if ENGINE asks for onnxruntime and it
    cannot compute a network.
    """
    reason = _reason_for_torch(experiment, parameters, engine, n_images)
    if reason is None:
        try:
            exported = [OnnxNetwork(model, experiment.size) for model in models]
            return exported, onnx_file.engine_line()
        except InputError as error:  # an encoder that cannot be exported
            reason = str(error)
    if parameters.engine == "onnxruntime":
        raise InputError(f"ENGINE onnxruntime: {reason}; leave it out, and torch predicts")
    precision = str(engine.dtype).removeprefix("torch.")
    return models, f"engine: torch {torch.__version__}, {engine.device}, {precision}"


def _reason_for_torch(
    experiment: Experiment, parameters: InferenceParameters, engine: Engine, n_images: int
) -> str | None:
    """Return why torch computes a network; None if onnxruntime does, which is faster on a CPU.

    `tools/benchmarks/engines.py` measures how much faster.
    """
    if parameters.engine == "torch":
        return "torch is given"
    if engine.device.type != "cpu" or engine.dtype != torch.float32:
        return f"only torch computes on {engine.device} in {engine.dtype}"
    views = tta.views(experiment.tta)
    if any(view.scale != 1 for view in views):
        return f"TTA {experiment.tta} looks at other sizes than the network's own"
    if parameters.engine == "onnxruntime":
        return None
    if n_images * len(views) * experiment.size**2 < PAYS_FROM_PX:
        return "for so few images the export takes longer than it saves"
    return None if _installed() else "onnx or onnxruntime is not installed"


def _installed() -> bool:
    return all(find_spec(name) is not None for name in ("onnx", "onnxruntime"))
