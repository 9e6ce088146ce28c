"""All arms at all seeds: in which order, two at a time, stopped and continued at will.

Results append to a file of JSON lines, each keyed by all that it depends on, so that what is there
is never made again and what changed is.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from tools.ablation import arms as all_arms
from tools.ablation import jobs as work
from tools.ablation import score, setting
from tools.ablation.arms import Arm, Joined, Trained
from tools.ablation.jobs import Job
from tools.ablation.setting import Place, Setting

# To be raised when the library comes to train, predict or score otherwise: old results then count
# no more. Its own text is no key, or a changed comment would cost hours.
CODE = 1
PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "albumentations", "numpy")
GPU = "gpu"  # the line of speeds, where there is a GPU
IMAGES = "all_empty"  # the line that holds the images themselves, and the dice of no mask anywhere

Line = dict[str, Any]
Work = Callable[..., Line]  # job, place, how, rows → its line


def seeds(count: int) -> tuple[int, ...]:
    """Return the first `count` seeds, numbered as in the reference solution: 3456, 4567, …"""
    if not 1 <= count <= 20:
        raise InputError(f"SEEDS {count} is not within 1 to 20")
    return tuple(3456 + 1111 * i for i in range(count))


def plan(arms: Mapping[str, Arm], seeds: Sequence[int], how: Setting) -> list[Job]:
    """Return every job, seed by seed and the cheapest first, after those that it starts from.

    Arms that join seeds which are not there, or a seed with itself, are left out.
    """
    made: dict[tuple[str, int], Job] = {}
    kept = {name for arm in arms.values() if not isinstance(arm, Joined) for name, _ in arm.needs}
    for position, seed in enumerate(seeds):
        for name in sorted(arms, key=lambda n: _order(arms, n)):
            arm = arms[name]
            needs = _needs(arm, position, seeds)
            if needs is not None:
                # An arm that gave its checkpoints up is made again once others start from them.
                key = _digest([_key(arm, seed, needs, arms, how), name in kept])
                made[name, seed] = Job(arm, seed, needs, key, keep=name in kept)
    return list(made.values())


def read(path: Path) -> list[Line]:
    """Return the last line of each key of a results file, without a torn one at its end."""
    if not path.is_file():
        return []
    lines: dict[str, Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # killed while it was written
            continue
        lines[line["key"]] = line
    return list(lines.values())


def run(
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    how: Setting,
    place: Place,
    *,
    at_once: int = 2,
    do: Work = work.execute,
    pool: Callable[[int], Executor] | None = None,
    say: Callable[[str], None] = print,
) -> list[Line]:
    """Do what is not done yet; the lines of this plan, failed ones among them.

    A failed arm is recorded, what needs it is left out, and the next call tries it again.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    todo = plan(arms, seeds, how)
    rows = {arm.name: arm.row for arm in arms.values() if isinstance(arm, Trained)}
    done = {line["key"] for line in read(place.results) if "error" not in line}
    left = [job for job in todo if job.key not in done]
    say(f"{len(todo)} arms and seeds, {len(todo) - len(left)} of them done")
    if left:
        with (pool or _processes)(at_once) as workers:
            progress = _Progress(left)
            start = partial(workers.submit, do, place=place, how=how, rows=rows)
            for line in _finished(left, start, at_once):
                _append(place.results, line)
                say(progress(line))
    return of_plan(arms, seeds, how, place)


def of_plan(
    arms: Mapping[str, Arm], seeds: Sequence[int], how: Setting, place: Place
) -> list[Line]:
    """Return the existing lines of this plan, failed ones too, and that of the images."""
    keys = {job.key for job in plan(arms, seeds, how)} | {_images_key(how), _gpu_key()}
    return [line for line in read(place.results) if line["key"] in keys]


def settle(arms: Mapping[str, Arm], how: Setting, place: Place) -> None:
    """Draw and decode phantoms, draw folds and write the images' own line, before any worker.

    Workers then only read what they share.
    """
    from kernel_lib.config import TrainParameters
    from kernel_lib.stages import preparation

    setting.draw(how, place)
    trained = [arm for arm in arms.values() if isinstance(arm, Trained)]
    for which, size in sorted({(arm.phantoms, arm.row.size) for arm in trained}):
        given = TrainParameters(n_folds=how.n_folds)
        preparation.settle_folds(
            setting.prepare(place, which, size, "train"), given, [place.work(which)]
        )
        setting.prepare(place, "own", size, "test")
    truth = setting.truth(place)
    if _images_key(how) not in {line["key"] for line in read(place.results)}:
        line = {
            "key": _images_key(how),
            "arm": IMAGES,
            "seed": 0,
            "groups": truth["group"].tolist(),
        }
        _append(place.results, line | {"columns": score.of_truth(truth)})


def settle_gpu(experiment: Experiment, place: Place) -> None:
    """Write the line of the cost of determinism where there is a GPU, before the arms use it.

    It takes the notes' size: a small network's steps are too short to tell.
    """
    import torch

    from tools.ablation import gpu

    if torch.cuda.is_available() and _gpu_key() not in {
        line["key"] for line in read(place.results)
    }:
        line = {"key": _gpu_key(), "arm": GPU, "seed": 0, "seconds": 0.0}
        _append(place.results, line | {"columns": gpu.speeds(experiment)})


def _finished(left: Sequence[Job], start: Callable[[Job], Future], at_once: int) -> Iterator[Line]:
    """Yield the lines of these jobs as they end, never more than `at_once` of them begun."""
    waiting, running = list(left), dict[Future, Job]()
    failed: set[tuple[str, int]] = set()
    while waiting or running:
        undone = {(j.arm.name, j.seed) for j in (*waiting, *running.values())}
        for job in list(waiting):
            broken = [need for need in job.needs if need in failed]
            if broken:
                waiting.remove(job)
                failed.add((job.arm.name, job.seed))
                error = f"it needs {broken[0][0]} of seed {broken[0][1]}, which failed"
                line = {"key": job.key, "arm": job.arm.name, "seed": job.seed, "error": error}
                yield line | {"seconds": 0.0}
                break
            if len(running) < at_once and not undone & set(job.needs):
                waiting.remove(job)
                running[start(job)] = job
        else:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                job, line = running.pop(future), future.result()
                if "error" in line:
                    failed.add((job.arm.name, job.seed))
                yield line


def _needs(arm: Arm, position: int, seeds: Sequence[int]) -> tuple[tuple[str, int], ...] | None:
    """Return the arm's needs with their seeds, cyclically; None where there are too few seeds."""
    if isinstance(arm, Joined) and arm.every_seed:
        if len(seeds) < 2:
            return None
        return tuple((name, seed) for name, _ in arm.needs for seed in seeds)
    if any(further >= len(seeds) for _, further in arm.needs):
        return None
    return tuple((name, seeds[(position + further) % len(seeds)]) for name, further in arm.needs)


def _order(arms: Mapping[str, Arm], name: str) -> tuple[int, float, str]:
    """Return a sort key: arms that others need first, then cheaper ones, then by name."""
    return _depth(arms, name), all_arms.cost(arms[name]), name


def _depth(arms: Mapping[str, Arm], name: str) -> int:
    return max((1 + _depth(arms, need) for need, _ in arms[name].needs), default=0)


def _key(
    arm: Arm, seed: int, needs: Sequence[tuple[str, int]], arms: Mapping[str, Arm], how: Setting
) -> str:
    """Return a digest of all that the result depends on."""
    inputs = [(seed, _inputs(arm))]
    ahead = list(needs)
    while ahead:
        name, of_seed = ahead.pop()
        inputs.append((of_seed, _inputs(arms[name])))
        # What a trained arm starts from has the seed of that arm.
        ahead += [(need, of_seed) for need, _ in arms[name].needs]
    return _digest([inputs, asdict(how), {name: version(name) for name in PACKAGES}, CODE])


def _inputs(arm: Arm) -> dict:
    """Return what of an arm goes into its key: not the prose of experiments."""
    if isinstance(arm, Joined):
        return asdict(arm)
    trained = arm if isinstance(arm, Trained) else arm.of
    experiment = trained.row.model_dump(mode="json", exclude={"says", "leaderboard", "parent"})
    inputs = {"row": experiment, "gated": trained.gated, "phantoms": trained.phantoms,
            "encoder_of": trained.encoder_of}  # fmt: skip
    return inputs if isinstance(arm, Trained) else inputs | {"tta": arm.tta}


def _images_key(how: Setting) -> str:
    return _digest(["images", asdict(how), CODE])


def _gpu_key() -> str:
    return _digest([GPU, version("torch"), CODE])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _append(path: Path, line: Line) -> None:
    """Append a line, after a line break where a kill left a part of one."""
    text = json.dumps(line, allow_nan=False) + "\n"
    torn = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(torn) + text)


def _processes(count: int) -> ProcessPoolExecutor:
    # Spawned: a fork of a process that has loaded torch or OpenCV may hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, initializer=work.start_worker)


class _Progress:
    """A line of text for each job that ends, with what the rest will take at this pace."""

    def __init__(self, left: Sequence[Job]) -> None:
        self.left = {job.key: all_arms.cost(job.arm) for job in left}
        self.total, self.done, self.began = len(left), 0.0, time.monotonic()

    def __call__(self, line: Line) -> str:
        self.done += self.left.pop(line["key"])
        text = f"{self.total - len(self.left)}/{self.total} {line['arm']} seed {line['seed']}: "
        text += line.get("error") or f"{line['seconds']:.0f} s"
        if not self.done:
            return text
        ahead = (time.monotonic() - self.began) * sum(self.left.values()) / self.done
        return f"{text}; about {ahead / 60:.0f} min to go"
