"""Device, precision, memory and every source of chance of a process."""

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

# Of glibc's mallopt: from what size a block is mapped by itself, how much that is free goes back.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_SMALL = 32 << 20  # bytes; larger ones kept would leave gaps that cost more than they save


class DepthwiseInFloat32(TorchFunctionMode):
    """Keep depthwise convolutions in float32 under autocast on a CPU.

    oneDNN's backward pass of a depthwise convolution is several times slower in bfloat16 than in
    float32, which would cost a MobileNet-like encoder more than bfloat16 gains elsewhere
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
    """Where a network runs, and in what precision."""

    device: torch.device
    dtype: torch.dtype  # of the network's arithmetic; losses are always float32

    @property
    def scales(self) -> bool:
        """Whether gradients need a scaler: float16 alone underflows."""
        return self.dtype == torch.float16

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in mixed precision, or as it is where the arithmetic is float32."""
        mixed = self.dtype != torch.float32
        depthwise = DepthwiseInFloat32() if mixed and self.device.type == "cpu" else nullcontext()
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed), depthwise:
            yield

    def to_device(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.to(self.device, non_blocking=True, memory_format=torch.channels_last)


def choose_engine(device: str = "auto", precision: str = "auto") -> Engine:
    """The engine asked for; `auto` takes a GPU and its natural precision.

    bfloat16 where the GPU computes it natively (compute capability 8 and above), which a T4 does
    not, else float16 with scaling; on a CPU float32. Raises InputError for a device that is not
    there.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    check(name, precision)
    where = torch.device(name)
    try:
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"DEVICE {device!r} is not there ({first}); -p DEVICE cpu") from None
    if precision == "auto":
        if where.type != "cuda":
            precision = "float32"
        else:
            precision = "bfloat16" if torch.cuda.get_device_capability(where)[0] >= 8 else "float16"
    if where.type == "cpu":
        _keep_freed_memory()
    return Engine(where, getattr(torch, precision))


def check(device: str, precision: str) -> None:
    """Refuse a device that no machine has, and a precision that the device never computes."""
    if device == "auto":
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise InputError(f"DEVICE {device!r} is not there ({first}); -p DEVICE cpu") from None
    if kind == "cpu" and precision == "float16":
        raise InputError("PRECISION float16 needs a GPU; -p PRECISION float32")


def _keep_freed_memory() -> None:
    """Let tensors on the CPU take the memory that earlier ones have left.

    glibc gives it back to the system as soon as much is free, which then clears every page that the
    next tensor takes: up to a tenth of a step at 128 px. It costs a few per cent of memory, and
    does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _SMALL)
    mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def memory_named(size: int, batch_size: int, accumulate: int | None = None) -> Iterator[None]:
    """InputError with what the memory of a GPU goes by, where that is full.

    Sizes are as a person set them, or may; `accumulate` belongs to a training, which the error then
    tells how to take the same steps in smaller batches.
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
    """At most half as many images at once; of a training as many an optimiser step as before."""
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
    """The most memory that this process, and on a GPU its tensors, ever held, in MB (10⁶ bytes)."""
    peak = {"memory_mb": round(_peak_bytes() / 1e6, 1)}
    if device.type == "cuda":
        peak["gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return peak


def _peak_bytes() -> int:
    try:
        # Of this program alone, where getrusage also counts what was there before exec.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        if resource is None:
            return 0  # unknown
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch.

    Fast mode lets cuDNN choose its algorithms by timing: on a GPU two runs of one seed then differ
    in the last digits. Deterministic mode repeats bit for bit on one machine, at some speed (a
    GPU's idle moments are this choice's price); an operation without a deterministic form stops
    with its name. On a CPU both repeat bit for bit at a fixed number of threads.
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
    """Every generator of this process, as what `torch.load(weights_only=True)` takes back."""
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict) -> None:
    """Set every generator as `random_states` found it."""
    random.setstate(states["python"])
    numpy_state = {**states["numpy"], "state": dict(states["numpy"]["state"])}
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        there = range(torch.cuda.device_count())  # perhaps fewer than there were
        for device, state in zip(there, states["cuda"], strict=False):
            torch.cuda.set_rng_state(state.cpu(), device)
