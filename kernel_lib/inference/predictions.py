"""Archives of maps: who writes them, and when one that lies there already will do."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from torch import nn

from kernel_lib import checkpoints
from kernel_lib.artifacts import maps
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment, InferenceParameters, PredictParameters
from kernel_lib.data import dataset
from kernel_lib.data.cache import Prepared
from kernel_lib.data.dataset import PlainImages, plain_loader
from kernel_lib.engine import Engine, memory_named
from kernel_lib.errors import InputError
from kernel_lib.inference import tta
from kernel_lib.inference.predict import predict
from kernel_lib.models import networks, weights
from kernel_lib.notebook import bar
from kernel_lib.parallel.world import SINGLE_PROCESS, World

T = TypeVar("T")


class Images(NamedTuple):
    """What is predicted, and by what: rows of a cache on a device, read by loader processes."""

    prepared: Prepared
    rows: Sequence[int]
    engine: Engine
    n_workers: int
    batch_size: int | None = None  # None: twice the training's


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

    Each of several ranks predicts its batches, and the first writes. Where the images are
    `held_out` of a training that ends with this, an error on memory names the training's batch
    size, else the prediction's.
    """
    prepared, rows, engine = images.prepared, images.rows, images.engine
    size = images.batch_size or 2 * experiment.batch_size
    mine = PlainImages(prepared, world.batches(np.asarray(rows), size))
    loader = plain_loader(mine, size, images.n_workers, engine.device.type == "cuda")
    ids = prepared.table["image_id"].tolist()
    own = _in_batches(predict(models, loader, tta.views(meta["tta"]), engine, ids), size)
    stream = itertools.chain.from_iterable(world.in_turns(own, len(loader)))
    asked = (experiment.batch_size, experiment.accumulate) if held_out else (size,)
    with memory_named(experiment.size, *asked):
        if not world.first:
            for _ in stream:  # gives nothing here, and all to the first
                pass
            return
        title = f"{meta['run']}/fold{meta['fold']} → {target.name}"
        named = ((ids[i], prediction) for i, prediction in stream)
        maps.write(target, bar(named, total=len(rows), desc=title, unit="image", leave=False), meta)


def _in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def load_models(experiment: Experiment, kept: Sequence[Path], engine: Engine) -> list[nn.Module]:
    """The networks of these checkpoints, ready to predict."""
    models = []
    for path in kept:
        model = networks.build(experiment)
        weights.load_model(model, path)
        models.append(model.to(engine.device).eval())
    return models


def describe(
    folder: FoldRun, experiment: Experiment, kept: Sequence[Path], lineage: Lineage
) -> dict:
    """What an archive says of itself; two that say the same hold the same maps.

    `kept` are the checkpoints whose predictions it averages, identified by their weights.
    """
    return {
        "run": folder.run,
        "fold": folder.fold,
        "size": experiment.size,
        "tta": experiment.tta,
        "checkpoints": contents(kept),
        "lineage": lineage.to_json(),
    }


def contents(paths: Sequence[Path]) -> dict[str, str]:
    """A digest of each checkpoint's predicting weights by the file's name."""
    return {path.name: checkpoints.digest(path) for path in paths}


def already(target: Path, meta: dict, count: int) -> bool:
    """Whether that archive is there, of these checkpoints, and complete."""
    if not target.exists():
        return False
    try:
        there = maps.Maps(target).meta
    except InputError:  # damaged: it is made anew
        return False
    return there == meta | {"images": count}


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
    """Loader processes: beside a GPU as many as there are cores, up to 4; on a CPU none."""
    if given is not None:
        return given
    return min(4, os.cpu_count() or 1) if engine.device.type == "cuda" else 0
