"""Networks as ONNX files, with all that prediction needs besides; onnxruntime runs them.

    levels   input, (B, 1, S, S) uint8 as from `images.read` and the cache, for every network
    mask     output, (B, K, S, S) float32 logits of K checkpoints, whose probabilities are averaged
    label    output, (B, K) float32 logits of "has a pneumothorax"

A network without a mask or a label lacks that output. The facts about it are in the file's
metadata_props. This module needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernel_lib import storage
from kernel_lib.artifacts import maps
from kernel_lib.artifacts.maps import Prediction
from kernel_lib.artifacts.model_facts import DAMAGED, ModelFacts, compact
from kernel_lib.data.cache import Prepared
from kernel_lib.errors import InputError
from kernel_lib.inference import tta

if TYPE_CHECKING:
    import onnxruntime

SCHEMA = "pneumothorax-onnx-1"
SUFFIX = ".onnx"
LEVELS, MASK, LABEL = "levels", "mask", "label"
COMBINED = ("mean", "vote")  # how the folds of one run become one mask, as an ensemble's `combine`
_FIX = "export it again with `python -m kernel_lib export-onnx`"


@dataclass(frozen=True)
class OnnxFacts(ModelFacts):
    """The facts about an exported network, stored in its file."""

    fold: int
    combine: str  # one of COMBINED
    input: dict[str, Any]  # how levels are prepared and normalised in the network; documentation

    def save(self, network: bytes, path: Path) -> int:
        """Write a network with these facts, atomically, and return the file's size in bytes."""
        import onnx

        model = onnx.load_from_string(network)
        texts = {"schema": SCHEMA, "fold": str(self.fold), "combine": self.combine}
        texts["input"] = compact(self.input)
        onnx.helper.set_model_props(model, texts | self.to_metadata())
        content = model.SerializeToString()
        with storage.atomic_write(path) as file:
            file.write(content)
        return len(content)


@dataclass(frozen=True)
class OnnxModel(OnnxFacts):
    """An exported network, ready to predict on a CPU."""

    path: Path
    session: onnxruntime.InferenceSession = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: Path, threads: int | None = None) -> OnnxModel:
        """Open a file of `export-onnx`, to run in `threads` threads, by default one per core.

        Raises: InputError if the file is missing, damaged, or of another origin or version.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"--onnx {path} cannot be read ({error.strerror})") from None
        try:
            opened = session(content, threads)
        except InputError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base class
            reason = " ".join(str(error).split())
            raise InputError(
                f"--onnx {path} is no ONNX file that onnxruntime can run ({reason}): {_FIX}"
            ) from None
        metadata = opened.get_modelmeta().custom_metadata_map
        if metadata.get("schema") != SCHEMA:
            raise InputError(
                f"--onnx {path} is no file of export-onnx, or of another version (its schema is "
                f"{metadata.get('schema')!r}, not {SCHEMA!r}): {_FIX}"
            )
        try:
            facts = ModelFacts.from_metadata(metadata)
            model = cls(
                **vars(facts), fold=int(metadata["fold"]), combine=metadata["combine"],
                input=json.loads(metadata["input"]), path=path, session=opened,
            )  # fmt: skip
            model._check()
        except KeyError as error:
            raise InputError(f"--onnx {path} is damaged (it lacks {error}): {_FIX}") from None
        except (InputError, *DAMAGED) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"--onnx {path} is damaged ({reason}): {_FIX}") from None
        return model

    def _check(self) -> None:
        """Raise ValueError if the network is not as its facts say."""
        if self.combine not in COMBINED:
            raise ValueError(f"its combine is {self.combine!r}, none of {', '.join(COMBINED)}")
        if any(view.scale != 1 for view in tta.views(self.tta)):
            raise ValueError(f"its TTA {self.tta} looks at other sizes than the network's own")
        (levels, *more), size = self.session.get_inputs(), self.experiment.size
        actual = (levels.name, levels.type, levels.shape[1:])
        if more or actual != (LEVELS, "tensor(uint8)", [1, size, size]):
            raise ValueError(f"its input is {actual}, not {LEVELS} of 1 × {size} × {size} uint8")
        names = [output.name for output in self.session.get_outputs()]
        if names not in ([MASK, LABEL], [MASK]):
            raise ValueError(
                f"its outputs are {', '.join(names)}, not {MASK}, or {MASK} and {LABEL}"
            )

    def predict(self, prepared: Prepared, batch_size: int) -> Iterator[tuple[str, Prediction]]:
        """Yield (image id, prediction) of every image, as `predictions.predict` does with torch.

        Without the disagreement of the views, which is used for held-out images only.
        Raises: FloatingPointError for a map or label that is not finite.
        """
        ids = prepared.table["image_id"].tolist()
        for begin in range(0, len(ids), batch_size):
            rows = range(begin, min(begin + batch_size, len(ids)))
            levels = np.stack([prepared.image(row)[None] for row in rows])
            named = ids[begin : rows.stop]
            prob = self._probabilities(levels)
            labels: list[float | None] = [None] * len(named)
            if LABEL in prob:
                labels = maps.numbers(prob[LABEL].astype(np.float64), named).tolist()
            masks = maps.quantise(prob[MASK], named)
            yield from zip(named, map(Prediction, masks, labels), strict=True)

    def _probabilities(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        """Return probabilities by output, maps (B, S, S) and labels (B,).

        Views are averaged as logits, then checkpoints as probabilities.
        """
        views, size = tta.views(self.tta), levels.shape[-2:]
        outputs = [run(self.session, view.forward(levels)) for view in views]
        means = {}
        for name in outputs[0]:
            logits = [output[name] for output in outputs]
            if name == MASK:
                logits = [view.inverse(x, size) for view, x in zip(views, logits, strict=True)]
            means[name] = _sigmoid(sum(logits[1:], logits[0]) / len(logits)).mean(axis=1)
        return means


def session(network: bytes, threads: int | None) -> onnxruntime.InferenceSession:
    """Return a network ready to run on a CPU. Raises: InputError without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            "onnxruntime is not installed: pip install onnxruntime, or pip install .[onnx]"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: errors are raised
    options.intra_op_num_threads = threads or 0
    return onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])


def engine_line() -> str:
    """Return the line that says which onnxruntime computes."""
    import onnxruntime

    return f"engine: onnxruntime {onnxruntime.__version__}, cpu, float32"


def run(opened: onnxruntime.InferenceSession, levels: np.ndarray) -> dict[str, np.ndarray]:
    """Return a network's outputs, by name, for levels (B, 1, S, S) uint8."""
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {LEVELS: levels}), strict=True))


def check_together(models: Sequence[OnnxModel]) -> None:
    """Raise InputError unless the files are different folds of one run, with one rule."""
    first, seen = models[0], {}
    for model in models:
        for what, value in _shared(model).items():
            expected = _shared(first)[what]
            if value != expected:
                raise InputError(
                    f"--onnx {model.path} has the {what} {value}, and {first.path} {expected}: "
                    "give the folds of one run, exported together"
                )
        if model.fold in seen:
            raise InputError(
                f"--onnx {model.path} is fold {model.fold} of {model.name}, and so is "
                f"{seen[model.fold]}: give each fold once"
            )
        seen[model.fold] = model.path


def _shared(model: OnnxModel) -> dict[str, object]:
    """Return what all folds of a run share, in the order in which it is compared."""
    return {
        "name": model.name, "size": model.experiment.size, "rule": model.rule, "gate": model.gate,
        "combine": model.combine, "TTA": model.tta,
    }  # fmt: skip


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp(-x) is infinite if the probability is 0
        return 1 / (1 + np.exp(-logits))
