"""Predictions of networks: maps and labels, in one stream, and the archives that hold them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from kernel_lib import checkpoints
from kernel_lib.artifacts import maps
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.artifacts.maps import Prediction
from kernel_lib.config import Experiment, InferenceParameters, PredictParameters
from kernel_lib.data import dataset
from kernel_lib.data.cache import Prepared
from kernel_lib.data.dataset import PlainImages, plain_loader
from kernel_lib.engine import Engine, memory_named
from kernel_lib.errors import InputError
from kernel_lib.inference import tta
from kernel_lib.models import networks, weights
from kernel_lib.models.base import Logits
from kernel_lib.notebook import bar
from kernel_lib.parallel.world import SINGLE_PROCESS, World
from kernel_lib.workers import n_cores


class Images(NamedTuple):
    """The images to predict (rows of a cache), on which device, and how they are loaded."""

    prepared: Prepared
    rows: Sequence[int]
    engine: Engine
    n_workers: int
    batch_size: int | None = None  # None: twice the training's


def view_logits(
    model: nn.Module, images: torch.Tensor, views: Sequence[tta.View], engine: Engine
) -> list[Logits]:
    """Return a model's float32 logits for each TTA view, masks mapped back to the image."""
    found = []
    size = (images.shape[-2], images.shape[-1])
    for view in tta.distinct(views, size):
        with engine.autocast():
            output = model(view.forward(images))
        mask, label = output.mask, output.label
        found.append(
            Logits(
                mask=None if mask is None else view.inverse(mask.float(), size),
                label=None if label is None else label.float(),
            )
        )
    return found


def mean_logits(
    model: nn.Module, images: torch.Tensor, views: Sequence[tta.View], engine: Engine
) -> Logits:
    """Return a model's mask and label logits in float32, averaged over its views of the images."""
    return _mean_of(view_logits(model, images, views, engine))


@torch.inference_mode()
def predict(
    models: Sequence[nn.Module],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    views: Sequence[tta.View],
    engine: Engine,
    ids: Sequence[str],
) -> Iterator[tuple[int, Prediction]]:
    """Yield (row, prediction) of every image, models averaged as probabilities.

    The views' disagreement is the mean of the models'.

    Raises FloatingPointError, with the `ids` of their rows, for images whose map or label is not a
    number.
    """
    for model in models:
        model.eval()
    for images, rows in batches:
        on_device = engine.to_device(images)
        outputs, spreads = [], []
        for model in models:
            by_view = view_logits(model, on_device, views, engine)
            outputs.append(_mean_of(by_view))
            spreads.append(_disagreement(by_view))
        named = [ids[row] for row in rows.tolist()]
        yield from zip(rows.tolist(), _predictions(outputs, spreads, named), strict=True)


def _predictions(
    outputs: Sequence[Logits], spreads: Sequence[torch.Tensor | None], ids: Sequence[str]
) -> Iterator[Prediction]:
    """Return the models' mean, image by image; all models have the same heads."""
    levels, labels, disagreements = ([None] * len(ids) for _ in range(3))
    prob = _mean([torch.sigmoid(o.mask) for o in outputs if o.mask is not None])
    if prob is not None:
        # (B, S, S); to the CPU as floats, so that all devices round alike
        levels = maps.quantise(prob.squeeze(1).cpu().numpy(), ids)
    prob = _mean([torch.sigmoid(o.label) for o in outputs if o.label is not None])
    if prob is not None:
        labels = maps.numbers(prob.cpu().numpy().astype(np.float64), ids).tolist()
    mean = _mean([values for values in spreads if values is not None])
    if mean is not None:
        disagreements = mean.squeeze(1).tolist()
    return map(Prediction, levels, labels, disagreements)


def _disagreement(by_view: Sequence[Logits]) -> torch.Tensor | None:
    """Return how much the views' maps differ, (B, 1); None for one view or no mask head."""
    return tta.disagreement([torch.sigmoid(o.mask) for o in by_view if o.mask is not None])


def _mean_of(outputs: Sequence[Logits]) -> Logits:
    masks = [output.mask for output in outputs if output.mask is not None]
    labels = [output.label for output in outputs if output.label is not None]
    return Logits(mask=_mean(masks), label=_mean(labels))


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    return sum(tensors[1:], tensors[0]) / len(tensors) if tensors else None


def write(
    target: Path,
    models: Sequence[nn.Module],
    experiment: Experiment,
    images: Images,
    meta: dict,
    *,
    world: World = SINGLE_PROCESS,
    held_out: bool = False,
) -> None:
    """Write the models' predictions of images into one archive.

    Each of several ranks predicts its batches, and the first writes. With `held_out`, the last step
    of a training, an out-of-memory error names the training's batch size, not this one.
    """
    prepared, rows, engine = images.prepared, images.rows, images.engine
    size = images.batch_size or 2 * experiment.batch_size
    mine = PlainImages(prepared, world.batches(np.asarray(rows), size))
    loader = plain_loader(mine, size, images.n_workers, engine.device.type == "cuda")
    ids = prepared.table["image_id"].tolist()
    predicted = predict(models, loader, tta.views(meta["tta"]), engine, ids)
    own = iter(lambda: list(itertools.islice(predicted, size)), [])  # batch by batch
    stream = itertools.chain.from_iterable(world.in_turns(own, len(loader)))
    asked = (experiment.batch_size, experiment.accumulate) if held_out else (size,)
    with memory_named(experiment.size, *asked):
        if not world.first:
            for _ in stream:  # predicts here; the results go to the first rank
                pass
            return
        title = f"{meta['run']}/fold{meta['fold']} → {target.name}"
        named = ((ids[i], prediction) for i, prediction in stream)
        maps.write(target, bar(named, total=len(rows), desc=title, unit="image", leave=False), meta)


def load_models(experiment: Experiment, kept: Sequence[Path], engine: Engine) -> list[nn.Module]:
    """Return the networks of these checkpoints, ready to predict."""
    models = []
    for path in kept:
        model = networks.build(experiment)
        weights.load_model(model, path)
        models.append(model.to(engine.device).eval())
    return models


def describe(
    folder: FoldRun, experiment: Experiment, kept: Sequence[Path], lineage: Lineage
) -> dict:
    """Return an archive's description; archives with the same description hold the same maps.

    `kept` are the checkpoints whose predictions it averages, identified by their weights.
    """
    return {
        "run": folder.run,
        "fold": folder.fold,
        "size": experiment.size,
        "tta": experiment.tta,
        "checkpoints": digests(kept),
        "lineage": lineage.to_json(),
    }


def digests(paths: Sequence[Path]) -> dict[str, str]:
    """Return a digest of each checkpoint's EMA weights, by file name."""
    return {path.name: checkpoints.digest(path) for path in paths}


def is_written(target: Path, meta: dict, count: int) -> bool:
    """Return whether the archive of these checkpoints' predictions exists and is complete."""
    if not target.exists():
        return False
    try:
        return maps.Maps(target).meta == meta | {"images": count}
    except InputError:  # damaged: it is written again
        return False


def check_shared_memory(
    parameters: InferenceParameters, experiment: Experiment, engine: Engine
) -> None:
    """Refuse, before images are decoded, a /dev/shm too small for the batches of a prediction."""
    images = parameters.batch_size or 2 * experiment.batch_size
    # The `predict` command has no parameters of a notebook.
    way_out = "--workers 0" if isinstance(parameters, PredictParameters) else "-p WORKERS 0"
    dataset.check_shared_memory(
        workers(parameters.workers, engine), images, experiment.size, way_out=way_out
    )


def workers(given: int | None, engine: Engine) -> int:
    """Return the number of loader processes: on a GPU as many as cores, up to 4; on a CPU none."""
    if given is not None:
        return given
    return min(4, n_cores()) if engine.device.type == "cuda" else 0
