"""What a viewer shows: every image of an ensemble, as each of its voices sees it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from kernel_lib.artifacts import folds_file
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.lineage import stated_lineage
from kernel_lib.data import fingerprint, images, rle
from kernel_lib.data.folder import Images
from kernel_lib.data.table import Source
from kernel_lib.errors import InputError
from kernel_lib.inference import combine
from kernel_lib.inference.ensemble_maps import EnsembleMaps, alone, open_maps
from kernel_lib.inference.out_of_fold import OutOfFold, check_predicted_by, out_of_fold
from kernel_lib.postprocess.histograms import Stacked, stack, statistics
from kernel_lib.postprocess.strategies import Choice
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from kernel_lib.progress import bar

COMPARED = 20  # radiographs whose pixels are compared with those trained on


@dataclass(frozen=True)
class Voice:
    """One map of each image: the ensemble's mean, a member's, or a fold's."""

    name: str
    rule: Triplet
    ensemble_maps: Mapping[
        int | None, EnsembleMaps
    ]  # by the image's fold; by None where all folds speak
    weights: tuple[float, ...]

    def seen(self, image: tuple) -> tuple[np.ndarray, int | None]:
        """The (H, W) uint8 map at the image's own size, and the level that gates it, if any."""
        ensemble_maps = self.ensemble_maps[None if None in self.ensemble_maps else image.fold]
        return ensemble_maps.seen(image.image_id, (image.height, image.width), self.weights)


@dataclass(frozen=True)
class Vote:
    """A vote of the masks of some voices, each under its own rule."""

    voices: tuple[int, ...]
    at_least: int
    combine: str  # member_vote or member_union
    counts: np.ndarray = field(repr=False)  # (N, n, 2) int64 px for k = 1…n: shared with truth, all


@dataclass(frozen=True)
class Viewed:
    """All that is known of the images; numbers in memory, pictures read when they are asked for."""

    title: str
    table: pd.DataFrame  # image_id, fold, height, width, rle (None: no truth is known)
    voices: tuple[Voice, ...]
    stats: tuple[Stacked, ...]  # one a voice
    vote: Vote | None
    radiographs: Mapping[str, Path]  # by image id; empty without a data folder
    notes: tuple[str, ...]

    @property
    def truth(self) -> bool:
        """Whether the true masks are known."""
        return bool(self.stats[0].has_truth.all())

    def maps(self, row: int) -> list[np.ndarray]:
        """Each voice's (H, W) uint8 map of the image in this row, at its own size."""
        image = next(self.table.iloc[[row]].itertuples(index=False))
        return [voice.seen(image)[0] for voice in self.voices]


def held_out(folder: Path, roots: Sequence[Path], data: Images | None = None) -> Viewed:
    """The images of an ensemble's folds, as members see them that were not trained on them.

    `data` holds their radiographs. Raises InputError where the thresholds stage has not run, or
    what it read is gone, and where the radiographs are others.
    """
    decision = Decision.load(folder)
    ensemble, choice, scores = decision.ensemble, decision.choice, decision.scores
    check_predicted_by(decision, roots)
    drawn = folds_file.find(roots, ensemble.folds_digest)
    part = out_of_fold(ensemble, roots, drawn, allow_unknown_past=True)
    voices = _voices(ensemble, choice, part.ensemble_maps)
    honest = scores.first
    low, high = honest.interval
    word = "the honest score of choosing" if scores.first_is_honest else "NOT honest either:"
    note = (
        "Means over all images are in sample, since the rule was chosen on these images; "
        f"{word} {honest.honest.dice:.4f} (95 % {low:.4f} to {high:.4f})"
        f"{f', of {scores.coverage}' if scores.coverage else ''}."
    )
    paths, notes = _radiographs(ensemble.name, part, data) if data is not None else ({}, ())
    stats, vote = _measured(ensemble, choice, part.table, voices)
    title = f"{ensemble.name}, out of fold"
    return Viewed(title, part.table, voices, stats, vote, paths, (note, *notes))


def _radiographs(
    name: str, part: OutOfFold, data: Images
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The files of an ensemble's images in a data folder, and notes on those that it lacks.

    Raises InputError where it holds none of them, or other radiographs under their ids: a mask over
    a wrong picture would look like a wrong mask.
    """
    wanted = part.table["image_id"].tolist()
    found = {one: data.meant(one) for one in wanted}
    paths = {one: data.path(theirs) for one, theirs in found.items() if theirs is not None}
    which, notes = f"{len(wanted):,} images of {name}", []
    if not paths:
        raise InputError(
            f"{data.root} holds none of the {which}, {wanted[0]} first: give the data folder "
            "that they were trained on, or none, to see masks alone"
        )
    if len(paths) < len(wanted):
        notes.append(
            f"{data.root} holds {len(paths):,} of the {which}: the others are shown without "
            "their radiograph."
        )
    compared, other = _compared(part, paths)
    if other and 2 * len(other) >= compared:
        raise InputError(
            f"{data.root} shows other radiographs under the ids of {name}: {len(other)} of "
            f"{compared} compared are not those trained on, {other[0]} first; give the data folder "
            "that they were trained on"
        )
    if other:
        notes.append(
            f"{len(other)} of {compared} radiographs compared are not those trained on: "
            f"{', '.join(other)}."
        )
    return paths, tuple(notes)


def _compared(part: OutOfFold, paths: Mapping[str, Path]) -> tuple[int, list[str]]:
    """How many radiographs were compared with those trained on, and the ids of which differ.

    Evenly drawn from those of which a member of another fold keeps the fingerprint.
    """
    archives = {
        a.path: a for ensemble_maps in part.ensemble_maps.values() for a in ensemble_maps.archives
    }
    known: dict[str, set[str]] = defaultdict(set)
    for path, archive in archives.items():
        for image_id, code in stated_lineage(archive.meta, path).pairs:
            if image_id in paths and fingerprint.shows(code):
                known[image_id].add(code)
    compared, other = 0, []
    for image_id in sorted(known)[:: max(1, len(known) // COMPARED)][:COMPARED]:
        try:
            code = fingerprint.code(images.read(paths[image_id]))
        except images.ImageError:
            continue
        if fingerprint.shows(code):
            compared += 1
            if not len(fingerprint.matches([code], sorted(known[image_id]))):
                other.append(image_id)
    return compared, other


def of_test(folder: Path, roots: Sequence[Path], source: Source | None) -> Viewed:
    """The test images as the inference stage's archives see them; their truth is not known.

    Raises InputError where that stage has not run here, and without the images, whose sizes count.
    """
    if source is None:
        raise InputError(
            "test images are seen at their own sizes, which their files tell: give the data "
            "folder, --data DIR or data_dir=…"
        )
    decision = Decision.load(folder)
    ensemble, choice = decision.ensemble, decision.choice
    everyone = open_maps(ensemble, roots, ensemble.folds, "test")
    voices = _voices(ensemble, choice, {None: everyone})
    if ensemble.combine == "vote":
        voices = (voices[0], *(_of_fold(ensemble, roots, fold, choice) for fold in ensemble.folds))
    table, unreadable = _with_sizes(source.test, set(everyone.archives[0].ids))
    stats, vote = _measured(ensemble, choice, table, voices)
    notes = [f"Left out, since it cannot be read: {problem}." for problem in unreadable]
    n_predicted, n_here = len(everyone.archives[0]), len(table) + len(unreadable)
    if n_here < n_predicted:
        notes.append(f"{source.root} holds {n_here:,} of {n_predicted:,} test images predicted.")
    title = f"{ensemble.name}, test images"
    return Viewed(title, table, voices, stats, vote, _paths(source.test), tuple(notes))


def _with_sizes(listed: pd.DataFrame, predicted: set[str]) -> tuple[pd.DataFrame, list[str]]:
    """Test images that were predicted, with the sizes that their files tell; and the unreadable."""
    rows, unreadable = [], []
    for image_id, path in listed[["image_id", "path"]].itertuples(index=False):
        if image_id in predicted:
            try:
                rows.append((image_id, None, *images.size_of(path), None))
            except images.ImageError as problem:
                unreadable.append(str(problem))
    if not rows:
        raise InputError(
            f"none of the {len(listed)} test images in the data folder was predicted: give the "
            "folder that the inference stage had"
        )
    return pd.DataFrame(rows, columns=["image_id", "fold", "height", "width", "rle"]), unreadable


def _voices(
    ensemble: Ensemble, choice: Choice, ensemble_maps: Mapping[int | None, EnsembleMaps]
) -> tuple[Voice, ...]:
    """The mean and, beside it, each of several members; where members vote, the members alone."""
    n = len(ensemble.members)
    rules = choice.rules or [choice.triplet] * n
    members = [
        Voice(member.run, rule, ensemble_maps, alone(n, at))
        for at, (member, rule) in enumerate(zip(ensemble.members, rules, strict=True))
    ]
    if n == 1 or choice.rules is not None:
        return tuple(members)
    return (Voice(f"mean of {n} runs", choice.triplet, ensemble_maps, ensemble.weights), *members)


def _of_fold(ensemble: Ensemble, roots: Sequence[Path], fold: int, choice: Choice) -> Voice:
    """The mean of all members' networks of one fold, which has a say of its own in a vote."""
    ensemble_maps = {None: open_maps(ensemble, roots, [fold], "test")}
    return Voice(f"fold {fold}", choice.triplet, ensemble_maps, ensemble.weights)


def _measured(
    ensemble: Ensemble, choice: Choice, table: pd.DataFrame, voices: Sequence[Voice]
) -> tuple[tuple[Stacked, ...], Vote | None]:
    """Statistics of every image, a voice each, and what each vote of the voters' masks covers."""
    how, voters, at_least = ensemble.combine, (), 0
    if choice.rules is not None:
        voters, at_least = tuple(range(len(voices))), choice.at_least
    elif how == "vote" and len(voices) > 1 and None in voices[0].ensemble_maps:
        how, voters = "member_vote", tuple(range(1, len(voices)))
        at_least = len(voters) // 2 + 1
    draw = combine.vote(how) if voters else None

    def one(image: tuple) -> tuple[list, np.ndarray]:
        shape = (image.height, image.width)
        truth = None if image.rle is None else rle.parse(image.rle, shape)
        drawn = None if truth is None else rle.mask_of(truth, shape)
        seen = [voice.seen(image) for voice in voices]
        stats = [statistics(prob, drawn, level) for prob, level in seen]
        masks = [
            rle.runs_of(apply_rule(seen[at][0], voices[at].rule, seen[at][1])) for at in voters
        ]
        voted = [draw(masks, k) for k in range(1, len(voters) + 1)]
        shared = [0 if truth is None else rle.shared_px(mask, truth) for mask in voted]
        counts = list(zip(shared, map(rle.area, voted), strict=True))
        return stats, np.array(counts, dtype=np.int64).reshape(len(voters), 2)

    stats, counts = zip(*_each(table, one), strict=True)
    stacked = tuple(stack(some) for some in zip(*stats, strict=True))
    if not voters:
        return stacked, None
    return stacked, Vote(voters, at_least, how, np.stack(counts))


def _each(table: pd.DataFrame, work: Callable) -> Iterator:
    rows = list(table.itertuples(index=False))
    with ThreadPoolExecutor(2) as pool:  # OpenCV works outside the interpreter's lock
        done = pool.map(work, rows)
        yield from bar(done, total=len(rows), desc="images to view", unit="image", leave=False)


def _paths(listed: pd.DataFrame) -> dict[str, Path]:
    return {name: Path(path) for name, path in zip(listed["image_id"], listed["path"], strict=True)}
