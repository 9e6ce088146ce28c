"""Device, precision, memory and random states of a process."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kernel_lib.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None

# Parameters of glibc's mallopt: the size from which a block is mapped by itself, and how much free
# memory is returned.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_SMALL = 32 << 20  # bytes; keeping larger blocks would leave gaps that cost more than they save


class DepthwiseInFloat32(TorchFunctionMode):
    """Context in which depthwise convolutions under autocast on a CPU are computed in float32.

    The backward pass of oneDNN for a depthwise convolution is several times slower in bfloat16 than
    in float32, which would cost a MobileNet-like encoder more than bfloat16 gains elsewhere
    (`tools/benchmarks/precision.py`).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.conv2d and _is_depthwise(*args, **kwargs):
            return _in_float32(*args, **kwargs)
        return func(*args, **kwargs)


def _is_depthwise(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> bool:
    return groups > 1 and groups == input.shape[1]


def _in_float32(input, weight, *rest, **kwargs) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(input.float(), weight.float(), *rest, **kwargs).to(input.dtype)


@dataclass(frozen=True)
class Engine:
    """Device and precision of a network."""

    device: torch.device
    dtype: torch.dtype  # of the network; losses are always float32

    @property
    def scales(self) -> bool:
        """Whether gradients need a scaler, since float16 underflows."""
        return self.dtype == torch.float16

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in mixed precision, unless the precision is float32."""
        mixed = self.dtype != torch.float32
        depthwise = DepthwiseInFloat32() if mixed and self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed), depthwise:
            yield

    def to_device(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.to(self.device, non_blocking=True, memory_format=torch.channels_last)


def choose_engine(device: str = "auto", precision: str = "auto") -> Engine:
    """Return the engine of a device and precision; `auto` takes a GPU and its native precision.

    That is bfloat16 on GPUs that compute it natively (compute capability 8 and above, not a T4),
    else float16 with scaled gradients; on a CPU float32. InputError for a missing device.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    check(name, precision)
    chosen = torch.device(name)
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise _no_device(device, error) from None
    if precision == "auto":
        if chosen.type != "cuda":
            precision = "float32"
        else:
            native = torch.cuda.get_device_capability(chosen)[0] >= 8
            precision = "bfloat16" if native else "float16"
    if chosen.type == "cpu":
        _keep_freed_memory()
    return Engine(chosen, getattr(torch, precision))


def check(device: str, precision: str) -> None:
    """Raise InputError for an unknown device, or a precision that it never computes in."""
    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise _no_device(device, error) from None
    if kind == "cpu" and precision == "float16":
        raise InputError("PRECISION float16 needs a GPU; -p PRECISION float32")


def _no_device(device: str, error: Exception) -> InputError:
    first = str(error).splitlines()[0]
    return InputError(f"DEVICE {device!r} is not there ({first}); -p DEVICE cpu")


def _keep_freed_memory() -> None:
    """Let new tensors on the CPU reuse the memory of freed ones.

    glibc returns free memory to the system, which clears every page of the next tensor: up to a
    tenth of a step at 128 px. Keeping it costs a few per cent of memory. No effect with another C
    library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _SMALL)
    mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def memory_named(size: int, batch_size: int, accumulate: int | None = None) -> Iterator[None]:
    """Raise InputError, with the parameters to change, where the memory of a GPU is exhausted.

    `accumulate` is that of a training: the error then names smaller batches for the same step.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        now = f"SIZE {size}, BATCH_SIZE {batch_size}"
        if accumulate is not None:
            now += f", ACCUMULATE {accumulate}"
        raise InputError(
            f"the GPU's memory is full at {now}: {_smaller(batch_size, accumulate)}; or end what "
            f"else runs on it; what is saved stays ({str(error).splitlines()[0]})"
        ) from error


def _smaller(batch_size: int, accumulate: int | None) -> str:
    """Return how to halve a batch at least; of a training with as many images a step as before."""
    if batch_size == 1:
        return "a smaller SIZE, as another run"
    if accumulate is None:
        return f"-p BATCH_SIZE {batch_size // 2}; or a smaller SIZE, as another run"
    images = batch_size * accumulate
    fewer = max(n for n in range(1, batch_size // 2 + 1) if images % n == 0)
    return (
        f"-p BATCH_SIZE {fewer} -p ACCUMULATE {images // fewer}, the same optimiser step; or a "
        "smaller SIZE, either as another run"
    )


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this process, and of its GPU tensors, in MB (10⁶ bytes)."""
    peak = {"memory_mb": round(_peak_bytes() / 1e6, 1)}
    if device.type == "cuda":
        peak["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return peak


def _peak_bytes() -> int:
    try:
        # Of this program only; getrusage also counts what ran before exec.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        if resource is None:
            return 0  # unknown
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch.

    By default cuDNN chooses its algorithms by timing, so that on a GPU two runs of a seed differ in
    the last digits. In deterministic mode they are equal on the same machine, at some cost in
    speed, and an operation without a deterministic form raises. On a CPU both are equal at the same
    number of threads.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def random_states() -> dict:
    """Return the states of all generators, in types that `torch.load(weights_only=True)` reads."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict) -> None:
    """Set all generators to the result of `random_states`."""
    random.setstate(states["python"])
    numpy_state = {**states["numpy"], "state": dict(states["numpy"]["state"])}
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        devices = range(torch.cuda.device_count())  # perhaps fewer than before
        for device, state in zip(devices, states["cuda"], strict=False):
            torch.cuda.set_rng_state(state.cpu(), device)
