"""The parts of `benchmarks.gpu` that measure, each a process: machine, speed, training.

    python -m tools.benchmarks.gpu_parts PART --scratch DIR [the options of benchmarks.gpu]

Every measurement is announced and its rows are printed as they come (`gpu.emit`). One that fails
is a row with its reason, and the others follow. A CUDA error that poisons the process ends it; it
is then started again without what is `--done`.
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from kernel_lib.artifacts import folds_file
from kernel_lib.artifacts.fold_run import FoldRun, find
from kernel_lib.config import Experiment, TrainParameters
from kernel_lib.data import cache, table
from kernel_lib.engine import Engine, choose_engine, peak_memory, seed_everything
from kernel_lib.experiments import EXPERIMENTS
from kernel_lib.inference import predictions, recipes, tta
from kernel_lib.inference.out_of_fold import out_of_fold
from kernel_lib.inference.predictions import predict
from kernel_lib.models import networks
from kernel_lib.postprocess import nested_cv
from kernel_lib.postprocess.search import SearchOptions
from kernel_lib.stages import train
from kernel_lib.training import step
from tools.benchmarks import gpu
from tools.benchmarks.rounds import Timed, timed
from tools.benchmarks.training import bare_loop, our_loop, synchronise, training
from tools.phantoms import competition

T4_BYTES = 15e9  # what tensors may take of a T4's 16 GB
LITE0 = "timm-tf_efficientnet_lite0"
PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "albumentations",
            "numpy", "pandas", "opencv-python-headless", "pydantic", "triton")  # fmt: skip
Row = dict[str, Any]
Measurements = Iterator[tuple[str, Callable[[], Iterator[Row]]]]


class Scale(NamedTuple):
    """How much is measured: what fills a GPU for a few minutes, or a toy for a CPU."""

    unet: Experiment
    deeplab: Experiment
    large: tuple[Experiment, ...]
    images: int  # in an epoch of a speed measurement at 512 px; at 1024 px a quarter
    rounds: int
    most_images: int  # tried at once in the search for the largest batch
    most_epochs: int
    n_folds: int


def _row(name: str, **changes: Any) -> Experiment:
    # An optimiser step for every batch, as the bare loop takes them.
    return EXPERIMENTS[name].differing(name=name, weights="none", accumulate=1, **changes)


def scale(device: str) -> Scale:
    """Return the scale for a device."""
    if device == "cuda":
        return Scale(
            unet=_row("UNetResNet34_512_v1"),
            deeplab=_row("deeplabv3plus_resnet_512_v1"),
            large=(_row("UNetResNet34_1024_v1"), _row("deeplabv3plus_resnet_1024_v2")),
            images=160, rounds=3, most_images=256, most_epochs=30, n_folds=5,
        )  # fmt: skip
    toy = {"encoder": "resnet18", "size": 64, "batch_size": 2}
    unet = _row("UNetResNet34_512_v1", decoder_channels=(16, 16, 16, 16, 16), **toy)
    deeplab = _row("deeplabv3plus_resnet_512_v1", **toy)
    large = tuple(row.differing(name=f"{row.name}_96", size=96) for row in (unet, deeplab))
    return Scale(unet, deeplab, large, 4, 1, 4, 2, 2)


class Synthetic:
    """Random pixels in memory, with the interface of `cache.Prepared`; few stand for many."""

    POOL = 64

    def __init__(self, count: int, size: int) -> None:
        generator = np.random.default_rng(0)
        shape = (min(count, self.POOL), size, size)
        self.images = generator.integers(0, 256, shape, dtype=np.uint8)
        self.masks = np.zeros(shape, np.uint8)
        self.masks[::4, size // 4 : size // 2, size // 4 : size // 2] = 1
        ids = [f"image{i}" for i in range(count)]
        area = [int(self.mask(i).sum()) for i in range(count)]
        self.table = pd.DataFrame({"image_id": ids, "area_px": area})

    def __len__(self) -> int:
        return len(self.table)

    def image(self, i: int) -> np.ndarray:
        return self.images[i % len(self.images)]

    def mask(self, i: int) -> np.ndarray:
        return self.masks[i % len(self.masks)]


class Place:
    """What all measurements share: the device, the data, a scratch folder and the time."""

    def __init__(self, given: Namespace) -> None:
        self.given, self.scratch = given, given.scratch
        self.ends = time.monotonic() + given.limit_s
        self.scale = scale(given.device)
        self.engine = choose_engine(given.device)
        self.workers = predictions.workers(None, self.engine)

    def left(self) -> float:
        return self.ends - time.monotonic()

    @functools.cached_property
    def data(self) -> Path:
        """Return the folder of radiographs; synthetic ones are drawn once where none is given."""
        if self.given.data is not None:
            return self.given.data
        drawn = self.scratch / "phantoms"
        if not (drawn / "train-rle.csv").exists():
            size, count = (512, 400) if self.given.device == "cuda" else (64, 24)
            competition.write_competition(drawn, count, 2, size=size, positives=0.4)
        return drawn

    def count(self, row: Experiment) -> int:
        return self.scale.images // (4 if row.size == 1024 else 1)

    def synthetic(self, row: Experiment, share: int = 1) -> Synthetic:
        return Synthetic(max(row.batch_size, self.count(row) // share), row.size)

    def real(self, row: Experiment) -> cache.Prepared:
        """Return the first images of the data from the cache that the training reads, too."""
        source = table.discover(self.data)
        folder = self.scratch / "cache"
        prepared = cache.prepare(source.train, source.root, row.size, folder, "train")
        return prepared.subset(np.arange(self.count(row)) % len(prepared))

    def training(self, row: Experiment, prepared: Any, name: str, **parameters: Any):
        """Return an epoch of the library's loop, with the worker processes of a user's loader."""
        folder = self.scratch / "bench" / name
        made = training(row, prepared, folder, self.engine, self.workers, **parameters)
        return our_loop(made)

    def timed(self, works: dict[str, Callable[[], object]]) -> Timed:
        return timed(works, self.scale.rounds)


def compared(
    what: str, took: Timed, count: int, ours: str, other: str, against: str, **more: Any
) -> Row:
    """Return the row of two works on as many images: images/s of both, and their ratio."""
    rate = {name: count / took.seconds(name) for name in (ours, other)}
    return {
        "what": what, "here": f"{rate[ours]:.1f} images/s",
        "against": f"{against} {rate[other]:.1f} images/s",
        "ratio": f"{took.times_faster(ours, other):.0%}",
        "images_per_second": rate, "seconds": {n: list(took.rounds(n)) for n in rate}, **more,
    }  # fmt: skip


def title(row: Experiment) -> str:
    return f"{row.network} {row.encoder} at {row.size}, batch {row.batch_size}"


# Machine


def machine(place: Place) -> Measurements:
    yield "machine", lambda: _machine(place)


def _machine(place: Place) -> Iterator[Row]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none by that name"
    yield {"what": "Python", "here": platform.python_version(), "against": _joined(versions),
           "versions": versions}  # fmt: skip
    facts = {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version(),
             "CPU cores": os.cpu_count(), "precision": str(place.engine.dtype)}  # fmt: skip
    card = platform.processor() or "a CPU"
    if place.engine.device.type == "cuda":
        seen = torch.cuda.get_device_properties(place.engine.device)
        card = seen.name
        facts |= {"GB": round(seen.total_memory / 1e9, 1),
                  "capability": f"{seen.major}.{seen.minor}"}  # fmt: skip
    yield {"what": "device", "here": card, "against": _joined(facts), "facts": facts}


def _joined(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


# Speed


def speed(place: Place) -> Measurements:
    """Yield speed and memory, what is most wanted first."""
    small, large = (place.scale.unet, place.scale.deeplab), place.scale.large
    for row in small:
        yield f"loop {row.name}", functools.partial(loops, place, row)
    yield "loader", functools.partial(loader, place, small[0])
    yield "deterministic", functools.partial(deterministic, place, small[0])
    for row in small:
        yield f"inference {row.name}", functools.partial(inference, place, row)
    for row in large:
        yield f"loop {row.name}", functools.partial(loops, place, row)
    yield f"compiled {small[0].name}", functools.partial(compiled, place, small[0])
    for row in (*small, *large):
        yield f"batch {row.name}", functools.partial(largest_batch, place, row)
    for row in large:
        yield f"inference {row.name}", functools.partial(inference, place, row)
    yield "two ranks by NCCL", functools.partial(nccl, place)
    yield "deterministic deeplab", functools.partial(deterministic, place, small[1])
    for row in (small[1], *large):
        yield f"compiled {row.name}", functools.partial(compiled, place, row)


def loops(place: Place, row: Experiment) -> Iterator[Row]:
    """Yield our loop against a bare one, on synthetic pixels in memory."""
    row, prepared = row.differing(name=row.name, augment="none"), place.synthetic(row)
    ours = place.training(row, prepared, row.name)
    ours()
    peak = peak_memory(place.engine.device)  # before the bare network lies beside it
    works = {"ours": ours, "bare": bare_loop(row, prepared, place.engine)}
    took = place.timed(works)
    yield compared(
        f"the training loop, {title(row)}", took, len(prepared), "ours", "bare",
        "a bare loop on tensors on the device",
    )  # fmt: skip
    shown = ", ".join(f"{name.removesuffix('_mb')} {mb:,.0f} MB" for name, mb in peak.items())
    yield {"what": f"most memory in that loop, {title(row)}", "here": shown, **peak}


def loader(place: Place, row: Experiment) -> Iterator[Row]:
    """Yield our loop from the cache with augmentation against our loop from memory without."""
    fed = {
        "cache": place.training(row, place.real(row), "cache"),
        "memory": place.training(
            row.differing(name=row.name, augment="none"), place.synthetic(row), "memory"
        ),
    }
    took = place.timed(fed)
    yield compared(
        f"the training loop from the cache, augmented, {title(row)}", took, place.count(row),
        "cache", "memory", f"from memory, {place.workers} loader processes in both,",
    )  # fmt: skip


def deterministic(place: Place, row: Experiment) -> Iterator[Row]:
    """Yield a bare loop with deterministic algorithms against one without."""
    prepared = place.synthetic(row, share=4)  # it may be many times slower
    loop = {fixed: bare_loop(row, prepared, place.engine) for fixed in (True, False)}

    def epoch(fixed: bool) -> None:
        seed_everything(0, fixed)
        loop[fixed]()

    try:
        took = place.timed({str(fixed): functools.partial(epoch, fixed) for fixed in loop})
    finally:
        seed_everything(0, False)
    yield compared(
        f"DETERMINISTIC True, {title(row)}", took, len(prepared), "True", "False", "without"
    )


def compiled(place: Place, row: Experiment) -> Iterator[Row]:
    """Yield both loops with torch.compile, against a bare loop without."""
    if place.engine.device.type == "cpu" and step.COMPILER == "inductor":
        yield {"what": f"COMPILE True, {title(row)}", "here": "left out on a CPU"}
        return
    row, prepared = row.differing(name=row.name, augment="none"), place.synthetic(row)
    ours = place.training(row, prepared, f"compiled_{row.name}", compile=True)
    began = time.perf_counter()
    ours()
    first = time.perf_counter() - began
    took = place.timed({"ours": ours, "eager": bare_loop(row, prepared, place.engine)})
    begins = f"COMPILE True, {title(row)}, {first:.0f} s for the first epoch"
    yield compared(begins, took, len(prepared), "ours", "eager", "a bare loop without",
                   first_epoch_s=first)  # fmt: skip
    bare = bare_loop(row, prepared, place.engine, compiled=True)
    took = place.timed({"ours": ours, "bare": bare})
    yield compared(f"COMPILE True, {title(row)}", took, len(prepared), "ours", "bare",
                   "a bare loop, compiled too,")  # fmt: skip


def inference(place: Place, row: Experiment) -> Iterator[Row]:
    """Yield our prediction with hflip against a bare forward pass of both views."""
    on, prepared, views = place.engine, place.synthetic(row), tta.views("hflip")
    model = networks.build(row).to(on.device).eval()
    size = 2 * row.batch_size
    pixels = torch.from_numpy(np.stack([prepared.image(i) for i in range(len(prepared))]))
    batches = [
        (part.unsqueeze(1), torch.arange(start * size, start * size + len(part)))
        for start, part in enumerate(pixels.split(size))
    ]
    ids = prepared.table["image_id"].tolist()
    batches_there = [on.to_device(levels) for levels, _ in batches]

    def ours() -> None:
        for _ in predict([model], batches, views, on, ids):
            pass
        synchronise(on)

    @torch.inference_mode()
    def bare() -> None:
        for levels in batches_there:
            for view in views:
                with on.autocast():
                    model(view.forward(levels))
        synchronise(on)

    took = place.timed({"ours": ours, "bare": bare})
    yield compared(f"prediction to maps, hflip, {title(row)}, predicted {size} at once", took,
                   len(prepared), "ours", "bare", "a bare forward pass")  # fmt: skip


def largest_batch(place: Place, row: Experiment) -> Iterator[Row]:
    """Yield the most images that a training step takes at once in the memory of a T4."""
    on_gpu, most = place.engine.device.type == "cuda", place.scale.most_images
    chooses = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # or each size would be timed with every algorithm
    if on_gpu:
        total = torch.cuda.get_device_properties(place.engine.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, T4_BYTES / total))
    fits, fails, trial = 0, most + 1, row.batch_size
    try:
        while fits + max(1, fits // 8) < fails and trial >= 2:
            if _fits(place, row, trial):
                fits = trial
            else:
                fails = trial
            trial = min(2 * fits, most) if fails > most > fits else (fits + fails) // 2
    finally:
        torch.backends.cudnn.benchmark = chooses
        if on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0)
    more = " at least" if fits == most else ""
    yield {"what": f"largest batch of {row.network} {row.encoder} at {row.size}",
           "here": f"{fits} images{more}",
           "against": f"{T4_BYTES / 1e9:.0f} GB, {place.engine.dtype}", "images": fits}  # fmt: skip


def _fits(place: Place, row: Experiment, images: int) -> bool:
    """Return whether two steps over so many images at once do not fill the memory."""
    row = row.differing(name=row.name, batch_size=images, accumulate=1)
    try:
        bare_loop(row, Synthetic(images, row.size), place.engine)()
    except torch.OutOfMemoryError:
        return False
    finally:
        if place.engine.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def nccl(place: Place) -> Iterator[Row]:
    """Yield whether NCCL lets two ranks share one card, where the library takes gloo."""
    device = place.engine.device.type
    backend = "nccl" if device == "cuda" else "gloo"
    script = place.scratch / "two_ranks.py"
    script.write_text(TWO_RANKS.format(device=device, backend=backend), encoding="utf-8")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with subprocess.Popen([*start, str(script)], stderr=subprocess.PIPE, text=True) as child:
        try:
            _, errors = child.communicate(timeout=60)
            said = "yes" if child.returncode == 0 else "refused"
        except subprocess.TimeoutExpired:
            child.terminate()  # upon which the launcher ends its ranks
            _, errors = child.communicate()
            said = "hangs"
    why = [line for line in errors.splitlines() if "Duplicate GPU" in line or "Error" in line]
    yield {"what": f"two ranks on one device by {backend}", "here": said,
           "against": "".join(why[:1])[:200] or "–"}  # fmt: skip


TWO_RANKS = """
import torch, torch.distributed as dist
dist.init_process_group("{backend}")
number = torch.ones(1, device="{device}")
dist.all_reduce(number)
assert number.item() == 2
dist.destroy_process_group()
"""


# Training


def trainings(place: Place) -> Measurements:
    """Yield one epoch, which says how long one takes, and then as many as fit."""
    epoch_s: dict[str, float] = {}
    yield "one epoch", lambda: _one_epoch(place, epoch_s)
    yield "epochs that fit", lambda: _as_many_as_fit(place, epoch_s)


def parameters(place: Place, **changes: Any) -> TrainParameters:
    """Return what is trained: `lite0_256` where its ImageNet weights are, else from scratch."""
    folder = place.given.weights_dir
    if place.given.device == "cpu":
        given = {"experiment": "demo_UNetResNet10_128_v1", "encoder": "tu-test_resnet", "size": 64}
    elif folder is not None and any(folder.glob(f"{LITE0}*")):
        given = {"experiment": "lite0_256", "size": 512, "weights_dir": str(folder)}
        given["weights_are"] = "imagenet"  # in float16 they have another hash
    else:
        given = {"experiment": "UNetResNet34_512_v1", "weights": "none"}
    return TrainParameters(
        fold=0, n_folds=place.scale.n_folds, data_dir=str(place.data),
        work_dir=str(place.scratch / "work"), cache_dir=str(place.scratch / "cache"),
        device=place.given.device, processes=1, **given, **changes,
    )  # fmt: skip


def _one_epoch(place: Place, epoch_s: dict[str, float]) -> Iterator[Row]:
    # Without a clock, which a first step of half a minute would stop.
    asked = parameters(place, epochs=1, min_epochs=0, keep=1)
    began = time.monotonic()
    source, size = table.discover(place.data), asked.size or EXPERIMENTS[asked.experiment].size
    prepared = cache.prepare(source.train, source.root, size, place.scratch / "cache", "train")
    decoded = time.monotonic()
    yield {"what": f"{len(prepared)} images of {source.layout} decoded, or found, at {size}",
           "here": f"{decoded - began:.1f} s"}  # fmt: skip
    result = train.run(asked)
    yield from _trained(place, result.run, time.monotonic() - decoded)
    (line,) = _fold(place, result.run).read_log()
    epoch_s["epoch"], epoch_s["validation"] = line["seconds"], line["val_seconds"]
    epoch_s["rest"] = time.monotonic() - decoded - line["seconds"] - line["val_seconds"]


def _as_many_as_fit(place: Place, epoch_s: dict[str, float]) -> Iterator[Row]:
    """Train again for as many epochs as the time allows, a sixth of it and more kept back."""
    if not epoch_s:
        raise RuntimeError("one epoch did not end, so none can be planned")
    # The clock asks for twice what the last validation and prediction are thought to take.
    kept_back = epoch_s["rest"] + 4 * epoch_s["validation"]
    each = epoch_s["epoch"] + epoch_s["validation"]
    epochs = min(place.scale.most_epochs, int((0.85 * place.left() - kept_back) / each))
    if epochs < 2:
        yield {"what": "more epochs", "here": f"none: {place.left():.0f} s left, {each:.0f} s each"}
        return
    began = time.monotonic()
    asked = parameters(place, epochs=epochs, min_epochs=epochs // 2, patience=epochs,
                       max_hours=max(1.0, place.left() - 5) / 3600)  # fmt: skip
    result = train.run(asked)
    if not result.complete:
        raise RuntimeError(f"the clock stopped it: {result}")
    yield from _trained(place, result.run, time.monotonic() - began)


def _fold(place: Place, run: str) -> FoldRun:
    return find([place.scratch / "work"], run)[0]


def _trained(place: Place, run: str, took: float) -> Iterator[Row]:
    """Yield the speed of a training that has ended, then the scores of its held-out images."""
    log = _fold(place, run).read_log()
    shown = " / ".join(f"{line['dice']:.4f}" for line in log)
    yield {"what": f"{run}, fold 0, {len(log)} epochs, stage {took:.0f} s",
           "here": f"{log[-1]['images_per_second']:.1f} images/s in the last epoch",
           "against": f"validation {log[-1]['val_seconds']:.1f} s; dice in sample {shown}",
           "log": log}  # fmt: skip
    work = place.scratch / "work"
    for name, last in (("kept epochs", False), ("last epoch", True)):
        ensemble = recipes.build_ensemble([work], recipes.of_runs([run]))
        held = out_of_fold(ensemble, [work], folds_file.find([work]), last=last)
        ids, parts = (held.table[column].tolist() for column in ("image_id", "fold"))
        groups = held.table["group"]
        report = nested_cv.score_rule(
            held.stats,
            ids,
            parts,
            groups.tolist() if (groups != "").any() else None,
            SearchOptions(label=False),
        )
        low, high = report.interval
        yield {"what": f"dice of {run}, {name}, {report.n_images} held-out images",
               "here": f"{report.honest.dice:.4f} ({low:.4f}–{high:.4f}), {report.method}",
               "against": f"all empty {report.all_empty.dice:.4f}, p > 0.5 "
               f"{report.above_half.dice:.4f}, in sample {report.in_sample.dice:.4f}",
               "ratio": f"AUC {report.auc_sum:.4f}", "report": report.to_json()}  # fmt: skip


PARTS: dict[str, Callable[[Place], Measurements]] = {
    "machine": machine,
    "speed": speed,
    "training": trainings,
}


def main() -> None:
    parser = gpu.arguments()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--scratch", type=gpu.absolute, required=True)
    parser.add_argument("--done", default="")
    given = parser.parse_args()
    place = Place(given)
    for name, measure in PARTS[given.part](place):
        if name not in given.done.split(","):
            make(name, measure, place.engine)


def make(name: str, measure: Callable[[], Iterator[Row]], on: Engine) -> None:
    """Make one measurement and print its rows as they come; raise only where none can follow."""
    gpu.emit({"name": name})
    try:
        for row in measure():
            gpu.emit({"name": name} | row)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        gpu.emit({"name": name, "failed": f"{type(error).__name__}: {reason}"})
        synchronise(on)  # which raises again after an error that poisons the process
    finally:
        gc.collect()
        if on.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
