"""Checkpoint files: tensors, numbers and text, written atomically, read without running code."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from kernel_lib import released, storage
from kernel_lib.artifacts.lineage import UNKNOWN, Lineage
from kernel_lib.errors import InputError
from kernel_lib.models import weights
from kernel_lib.released import Released


def save(path: Path, state: dict[str, Any], lineage: Lineage) -> None:
    """Write a checkpoint with its lineage; the old file stays until the new one is complete."""
    with storage.atomic_write(path) as file:
        torch.save(state | {"lineage": lineage.to_json()}, file)


def load(path: Path) -> tuple[dict[str, Any], Lineage]:
    """Return a checkpoint, on the CPU, and its lineage; InputError if it is damaged or foreign."""
    try:
        state = weights.load_state(Path(path))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the train stage makes it") from None
    except Exception as error:
        raise InputError(f"{path} cannot be read ({error}): delete it and train again") from error
    if not isinstance(state, dict) or "lineage" not in state:
        raise InputError(f"{path} is no checkpoint of this package: it holds no lineage")
    try:
        return state, Lineage.model_validate(state.pop("lineage"))
    except ValidationError as error:
        raise InputError(f"{path} holds a broken lineage ({error}): train again") from None


def digest(path: Path) -> str:
    """Return the SHA-256 of only the weights that a checkpoint predicts with (in last.pt, EMA)."""
    return digest_of(load(path)[0], path)


def digest_of(state: dict[str, Any], path: Path) -> str:
    """Return the `digest` of a loaded checkpoint; the path is for the error message."""
    ema = state.get("ema")
    tensors = ema.get("model") if isinstance(ema, dict) else state.get("model")
    if not weights.is_table(tensors):
        raise InputError(f"{path} holds no weights: delete it and train again")
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(name.encode())
        sha256.update(tensors[name].contiguous().cpu().flatten().view(torch.uint8).numpy())
    return sha256.hexdigest()


def lineage(path: Path) -> Lineage:
    """Return the lineage of the weights in a file, unknown if it states none."""
    if Path(path).suffix == released.SUFFIX:
        return Released.load(path).lineage if released.is_released(path) else UNKNOWN
    try:
        return load(path)[1]
    except InputError:
        return UNKNOWN
