"""Run folders, what lies in them, and who saw what.

    runs/<run>/fold<k>/   config.json  log.jsonl  last.pt  best_epoch012.pt …
                          oof.zip  oof_last.zip  test.zip

A run may lie in the working folder or, read-only, in another kernel's output; `find` looks through
all roots, and the working folder wins.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from kernel_lib import storage
from kernel_lib.config import Experiment, Frozen
from kernel_lib.errors import InputError
from kernel_lib.plan import TrainPlan

Code = Annotated[str, Field(pattern=r"^([0-9]+:[A-Za-z0-9+/]*)?$")]  # of `data.fingerprint`


class Lineage(Frozen):
    """Which images a checkpoint has learnt from, itself and through all that it descends from."""

    images: tuple[str, ...] = Field((), strict=False)
    # By which the images are known under other ids, in their order, "" where there is none; an
    # image stands twice where ancestors had another picture under its id. Without any: ().
    fingerprints: tuple[Code, ...] = Field((), strict=False)
    groups: tuple[str, ...] = Field((), strict=False)  # patients, where they are known
    known: bool = True  # False: some ancestor's past is not known
    ancestors: tuple[str, ...] = Field((), strict=False)
    imagenet: str = ""  # the file of ImageNet weights at its beginning, and how it is known as such
    # Images by whose labels an epoch was selected, or training ended early, here or of an ancestor;
    # None: not known, as in what earlier versions wrote.
    chosen_on: tuple[str, ...] | None = Field(None, strict=False)

    @model_validator(mode="after")
    def _one_fingerprint_an_image(self) -> Self:
        if self.fingerprints and len(self.fingerprints) != len(self.images):
            raise ValueError(f"{len(self.fingerprints)} fingerprints of {len(self.images)} images")
        return self

    def chosen_by(self, image_ids: Iterable[str] | None) -> Lineage:
        """Return the lineage of these weights, selected by the labels of these images as well."""
        known = self.chosen_on is not None and image_ids is not None
        chosen_on = tuple(sorted({*self.chosen_on, *image_ids})) if known else None
        return self.model_copy(update={"chosen_on": chosen_on})

    def selected_by(self, image_ids: Iterable[str]) -> bool:
        """Return whether labels of any of these images selected an epoch, or may have."""
        return self.chosen_on is None or not set(self.chosen_on).isdisjoint(image_ids)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each image with its fingerprint, "" where it has none."""
        codes = self.fingerprints or ("",) * len(self.images)
        return list(zip(self.images, codes, strict=True))

    def of_pairs(self, pairs: Sequence[tuple[str, str]]) -> Lineage:
        """The same past with these images and fingerprints."""
        images, codes = zip(*sorted(set(pairs)), strict=True) if pairs else ((), ())
        seen = {"images": images, "fingerprints": codes if any(codes) else ()}
        return self.model_copy(update=seen)

    def joined(self, other: Lineage, name: str) -> Lineage:
        """This past and that of a checkpoint called `name`, from which it starts."""
        both = Lineage(
            groups=tuple(sorted({*self.groups, *other.groups})),
            known=self.known and other.known,
            ancestors=(*other.ancestors, name),
            imagenet=other.imagenet or self.imagenet,
            chosen_on=self.chosen_on,
        )
        return both.of_pairs([*self.pairs, *other.pairs]).chosen_by(other.chosen_on)

    def to_json(self) -> dict[str, Any]:
        """The past as a dict for JSON; what an earlier version did not know only where it is."""
        empty = {name for name in ("fingerprints", "imagenet") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=empty)

    def digest(self) -> str:
        """SHA-256 (hex) of what was trained on, which all checkpoints of a fold share."""
        trained_on = {k: v for k, v in self.to_json().items() if k != "chosen_on"}
        return hashlib.sha256(json.dumps(trained_on, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _seen(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(self.images), frozenset(self.groups)

    def saw(self, image_id: str, group: str) -> bool:
        """Whether the image, or another image of its patient, was trained on."""
        images, groups = self._seen
        return image_id in images or bool(group and group in groups)


UNKNOWN = Lineage(known=False)
LEFT_OUT = "left_out.json"  # in the working folder: images that no training sees, and why
LINEAGE = "lineage_digest"  # in config.json, once the past of a fold's checkpoints is known


@dataclass(frozen=True)
class FoldRun:
    """One fold of one run on the disk; it need not exist yet."""

    run: str
    fold: int
    path: Path

    @property
    def name(self) -> str:
        return f"{self.run}/fold{self.fold}"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    @property
    def oof(self) -> Path:
        """Maps of the held-out images by the kept checkpoints."""
        return self.path / "oof.zip"

    @property
    def oof_last(self) -> Path:
        """The same by the last EMA weights, which no label selected."""
        return self.path / "oof_last.zip"

    @property
    def test(self) -> Path:
        return self.path / "test.zip"

    @property
    def holds_training(self) -> bool:
        """Whether a training wrote here; inference alone leaves a test.zip and nothing else."""
        written = (self.config, self.log, self.last, self.oof, self.oof_last)
        return any(path.is_file() for path in written) or bool(self.kept())

    def is_predicted(self) -> bool:
        """Return whether its held-out images are predicted, as the end of its training does.

        Raises InputError where its training is over and a file of that is gone: a fold that stays
        out unnoticed would make the score one of other images.
        """
        lost = [path for path in (self.oof, self.oof_last) if not path.is_file()]
        if not lost:
            return True
        log = self.read_log()
        epochs = (_DEFAULTS | self.read_config().get("experiment", {}))["epochs"]
        over = bool(log) and (bool(log[-1].get("ended")) or len(log) >= epochs)
        if over or len(lost) == 1:  # the one that is there was made after the training
            raise InputError(
                f"{lost[0]} is missing, and the training of fold {self.fold} is over: restore it, "
                f"or run the train stage again with -p FOLD {self.fold}, which predicts it from "
                f"the checkpoints; or delete {self.path} to leave that fold out"
            )
        return False

    def best(self, epoch: int) -> Path:
        return self.path / f"best_epoch{epoch:03d}.pt"

    def kept_epochs(self) -> list[int]:
        """The epochs of the kept checkpoints, in order."""
        return [int(path.stem.removeprefix("best_epoch")) for path in self.kept()]

    def kept(self) -> list[Path]:
        """The kept checkpoints, by epoch."""
        return sorted(self.path.glob("best_epoch*.pt"))

    def require_kept(self, names: Iterable[str], needed_for: str) -> None:
        """Raise InputError where a checkpoint that predicted the held-out images is gone."""
        lost = [path for name in sorted(names) if not (path := self.path / name).is_file()]
        if lost:
            raise InputError(
                f"{lost[0]} is missing, and {needed_for} needs it: restore it, or delete "
                f"{self.path}, train fold {self.fold} again and run the thresholds stage"
            )

    def read_config(self) -> dict[str, Any]:
        """config.json; InputError where it is missing or not JSON."""
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.config} is missing: the train stage makes it") from None
        except ValueError as error:
            raise InputError(f"{self.config} is not JSON ({error}); delete {self.path}") from None
        if not isinstance(config, dict):
            raise InputError(f"{self.config} holds no configuration: delete {self.path}")
        return config

    def read_log(self) -> list[dict[str, Any]]:
        """log.jsonl, a dict an epoch; empty before the first epoch ends."""
        if not self.log.exists():
            return []
        try:
            return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise InputError(
                f"{self.log} is damaged ({error}): run the train stage there, which writes it anew "
                "from last.pt"
            ) from None


def fold_folder(work: Path, run: str, fold: int) -> FoldRun:
    """Where fold `fold` of a run lies, or will lie, under a working folder."""
    return FoldRun(run, fold, work / "runs" / run / f"fold{fold}")


def begun(root: Path, run: str = "*") -> list[FoldRun]:
    """The folds of a run, or of all runs, under a root in which a training wrote, by path."""
    found = []
    for path in sorted((root / "runs").glob(f"{run}/fold*")):
        number = path.name.removeprefix("fold")
        if number.isdecimal() and path.is_dir():
            folder = FoldRun(path.parent.name, int(number), path)
            found += [folder] * folder.holds_training
    return found


def find(roots: Iterable[Path], run: str) -> dict[int, FoldRun]:
    """The folds of a run, from the first root that holds each.

    Raises InputError where the configuration of one is gone: what it was trained as is not known.
    """
    found: dict[int, FoldRun] = {}
    for root in roots:
        for folder in begun(root, glob.escape(run)):
            if not folder.config.is_file():
                raise InputError(
                    f"{folder.config} is missing, and what lies beside it was trained by it: "
                    f"restore it, or delete {folder.path} and train this fold again"
                )
            found.setdefault(folder.fold, folder)
    return dict(sorted(found.items()))


def names(roots: Iterable[Path]) -> list[str]:
    """All runs under the roots, sorted."""
    return sorted({folder.run for root in roots for folder in begun(root)})


def named(roots: Sequence[Path], wanted: str | None) -> list[str]:
    """The runs meant by a comma-separated list, or the only one there is.

    Raises InputError where a run does not exist, or several do and none was named.
    """
    there = names(roots)
    if not there:
        places = ", ".join(str(r) for r in roots)
        raise InputError(f"no runs under {places}: the train stage makes them")
    if wanted is None:
        if len(there) > 1:
            raise InputError(f"several runs are there; name some with -p RUNS: {', '.join(there)}")
        return there
    chosen = listed(wanted)
    for name in chosen:
        if name not in there:
            raise InputError(f"run {name!r} is not there; there are {', '.join(there)}")
    return chosen


def listed(wanted: str) -> list[str]:
    """The runs of a comma-separated list; InputError where it names none, or one twice."""
    chosen = [name.strip() for name in wanted.split(",") if name.strip()]
    if not chosen:
        raise InputError(f"RUNS {wanted!r} names no run: write names with commas between them")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"RUNS {wanted!r} names a run twice: it would count double")
    return chosen


def settle_lineage(folder: FoldRun, lineage: Lineage) -> None:
    """Note the past of a fold's checkpoints in its config.json, unless it stands there."""
    config = folder.read_config()
    if LINEAGE not in config:
        storage.write_json(folder.config, config | {LINEAGE: lineage.digest()})


def stated_lineage(meta: Mapping[str, Any], path: Path) -> Lineage:
    """The past that an archive of predictions states; InputError where it states none."""
    try:
        return Lineage.model_validate(meta["lineage"])
    except (KeyError, ValidationError) as error:
        raise InputError(
            f"{path} states no past of who predicted it ({error}): delete it and run its stage"
        ) from None


def check_lineage(meta: Mapping[str, Any], path: Path, wanted: str | None) -> None:
    """Refuse predictions that state another past than the checkpoints beside them have.

    wanted: that past's digest; of folds begun by an earlier version of the package it is None.
    """
    if wanted is not None and wanted != stated_lineage(meta, path).digest():
        raise InputError(
            f"{path} states another past than the checkpoints beside it have: delete it and run "
            "the train stage there, which predicts again"
        )


def read_left_out(roots: Sequence[Path]) -> list[str]:
    """A line for each image that training left out; empty where there is none.

    Raises InputError where the file that lists them is damaged.
    """
    path = next((root / LEFT_OUT for root in roots if (root / LEFT_OUT).is_file()), None)
    if path is None:
        return []
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError("it is no list of lines")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete it, which leaves it out of reports, or run the "
            "train stage, which writes it again"
        ) from error
    return lines


_DEFAULTS = Experiment(name="default").model_dump(mode="json", exclude={"name"})


def settle_config(folder: FoldRun, plan: TrainPlan, folds_digest: str) -> None:
    """Write the fold's config.json, or see that the one there says the same.

    Raises InputError naming each field that differs, so that two trainings never mix in a folder.
    """
    config = {
        "run": plan.run,
        "fold": folder.fold,
        "seed": plan.parameters.seed,
        "n_folds": plan.parameters.n_folds,
        "folds_digest": folds_digest,
        "deterministic": plan.parameters.deterministic,
        "experiment": plan.experiment.model_dump(mode="json"),
    }
    if not folder.config.exists():
        storage.write_json(folder.config, config)
        return
    there = folder.read_config()
    differs = list(differences(there, config))
    if differs:
        raise InputError(
            f"{folder.path} holds a run of another configuration ({'; '.join(differs)}): "
            "choose another WORK_DIR, or delete that folder"
        )


def check_experiment(roots: Iterable[Path], plan: TrainPlan) -> None:
    """Refuse a run of which another experiment has folds already: all folds share one.

    Raises: InputError naming the fold and each field that differs.
    """
    here = {"experiment": plan.experiment.model_dump(mode="json")}
    for folder in find(roots, plan.run).values():
        there = {"experiment": folder.read_config().get("experiment", {})}
        if differs := list(differences(there, here)):
            raise InputError(
                f"{folder.path} is of a run {plan.run} with another configuration "
                f"({'; '.join(differs)}): choose another NAME or WORK_DIR, or delete that run"
            )


def differences(there: Mapping, here: Mapping) -> Iterable[str]:
    """Each field in which two config.json differ, with both values; prose is no difference.

    Nor is a fold's past, which follows from the rest and from what it started from.
    A field that an earlier version of the package did not write has its default.
    """
    for key in sorted({*there, *here}):
        a, b = there.get(key), here.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping) and key == "experiment":
            yield from differences(_DEFAULTS | a, _DEFAULTS | b)
        elif a != b and key not in ("says", "leaderboard", "parent", LINEAGE):
            yield f"{key}: {a!r} there, {b!r} here"
