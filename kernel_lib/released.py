"""Released models: a network in half precision, with its rule, score and lineage, in one file.

A `.safetensors` file of the network's own tensors, read without running code in it, whose metadata
hold the rest as JSON. Nothing else is needed to predict with it, or to start a training from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from kernel_lib import storage
from kernel_lib.artifacts.model_facts import DAMAGED, ModelFacts
from kernel_lib.errors import InputError
from kernel_lib.models import networks

SCHEMA = "pneumothorax-released-model-1"
SUFFIX = ".safetensors"
MAX_BYTES = 10_000_000


@dataclass(frozen=True)
class Released(ModelFacts):
    """One network, ready to predict, and all that is known of it."""

    model: nn.Module = field(repr=False, compare=False)

    def save(self, path: Path) -> int:
        """Write the model in float16, atomically, and return the file's size in bytes.

        InputError if a weight is beyond float16, or the file would exceed MAX_BYTES.
        """
        tensors = {}
        for name, tensor in self.model.state_dict().items():
            tensor = tensor.detach().cpu().contiguous()
            if tensor.is_floating_point():
                tensor = tensor.half()
                if not torch.isfinite(tensor).all():
                    raise InputError(
                        f"{name} of {self.name} has values beyond float16's largest, 65,504: "
                        "release another checkpoint"
                    )
            tensors[name] = tensor
        metadata = {"schema": SCHEMA, **self.to_metadata()}
        content = safetensors.torch.save(tensors, metadata)
        if len(content) > MAX_BYTES:
            raise InputError(
                f"{path} would have {len(content) / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f} are "
                "released: train with a smaller encoder or decoder"
            )
        with storage.atomic_write(path) as file:
            file.write(content)
        return len(content)

    @classmethod
    def load(cls, path: Path) -> Released:
        """Read a released model, every tensor of the network filled, in float32.

        InputError, naming the file, if it is missing, damaged, or of another schema or network.
        """
        path = Path(path)
        metadata = _metadata_of(path)
        if metadata.get("schema") != SCHEMA:
            raise InputError(
                f"{path} is no released model that can be read: its schema is "
                f"{metadata.get('schema')!r}, not {SCHEMA!r}; `python -m kernel_lib release` "
                "writes one"
            )
        try:
            facts = ModelFacts.from_metadata(metadata)
            model = networks.build(facts.experiment)
            model.load_state_dict(safetensors.torch.load_file(path))  # every tensor, no other
        except KeyError as error:
            raise InputError(f"{path} is damaged (it lacks {error}): fetch it again") from None
        except DAMAGED as error:
            raise InputError(f"{path} is damaged ({error}): fetch it again") from error
        return cls(**vars(facts), model=model.eval())


def is_released(path: Path) -> bool:
    """Return whether a file is a released model, of any schema, rather than bare weights."""
    try:
        return Path(path).suffix == SUFFIX and "schema" in _metadata_of(Path(path))
    except InputError:
        return False


def find(folder: Path, name: str | None) -> Path:
    """Return the file of a released model by its name, or of the only one in a folder."""
    models = {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    if name is None and len(models) == 1:
        (name,) = models
    if name in models:
        return models[name]
    known = f"{folder} holds the released models {', '.join(models)}"
    if not models:
        known = f"no released model is in {folder} (`python -m kernel_lib release` writes one)"
    raise InputError(f"{known}: give --model NAME or FILE, or --ensemble FOLDER")


def _metadata_of(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"model {path} does not exist") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is no readable model file ({error}): fetch it again") from error
