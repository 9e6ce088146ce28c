"""Run folders and their files.

    runs/<run>/fold<k>/   config.json  log.jsonl  last.pt  best_epoch012.pt …
                          oof.zip  oof_last.zip  test.zip

A run may lie in the working folder or, read-only, in another kernel's output; `find` looks through
all roots, and prefers the working folder's.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from kernel_lib import storage
from kernel_lib.artifacts import filenames
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment, Frozen
from kernel_lib.errors import InputError
from kernel_lib.plan import TrainPlan


class FoldConfig(Frozen):
    """What config.json holds: the configuration that a fold is trained with.

    Fields of the experiment that are missing in a file of an earlier version get their defaults.
    """

    run: str
    fold: int
    seed: int
    n_folds: int
    folds_digest: str
    deterministic: bool = False
    experiment: Experiment
    lineage_digest: str | None = None  # of the checkpoints' lineage; set once that is known

    def differences(self, other: FoldConfig) -> list[str]:
        """Return each field in which another configuration differs, with both values.

        Descriptions are ignored, and the lineage, which follows from the other fields and the
        initial weights.
        """
        ignored = {"experiment", "says", "leaderboard", "parent", "lineage_digest"}
        a, b = (
            config.model_dump(mode="json") | config.experiment.model_dump(mode="json")
            for config in (self, other)
        )
        return [
            f"{key}: {a[key]!r} there, {b[key]!r} here"
            for key in sorted(a.keys() - ignored)
            if a[key] != b[key]
        ]


class LogLine(TypedDict, total=False):
    """A line of log.jsonl: an epoch, counted from 1, with its measurements."""

    __pydantic_config__ = ConfigDict(extra="allow")

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    dice: float
    seconds: float
    val_seconds: float
    images_per_second: float
    best: bool  # whether its weights were kept when it ended; later epochs may replace them
    ended: str  # why the training ended after it


_LOG = TypeAdapter(list[LogLine])


@dataclass(frozen=True)
class FoldRun:
    """One fold of one run and its folder, which need not exist yet.

    Variables of this type are called `folder`.
    """

    run: str
    fold: int
    path: Path

    @property
    def name(self) -> str:
        return f"{self.run}/fold{self.fold}"

    @property
    def config(self) -> Path:
        return self.path / filenames.CONFIG

    @property
    def log(self) -> Path:
        return self.path / filenames.LOG

    @property
    def last(self) -> Path:
        return self.path / filenames.LAST

    @property
    def oof(self) -> Path:
        """Maps of the held-out images by the kept checkpoints."""
        return self.path / filenames.OOF

    @property
    def oof_last(self) -> Path:
        """The same by the last checkpoint, which these images select only by early stopping."""
        return self.path / filenames.OOF_LAST

    @property
    def test(self) -> Path:
        return self.path / filenames.TEST_MAPS

    @property
    def holds_training(self) -> bool:
        """Whether the folder has files of a training; inference alone leaves only a test.zip."""
        written = (self.config, self.log, self.last, self.oof, self.oof_last)
        return any(path.is_file() for path in written) or bool(self.kept())

    def is_predicted(self) -> bool:
        """Return whether its held-out images are predicted, which is the last step of training.

        Raises: InputError where training is over but a prediction file is gone, since the score
            would silently leave this fold out.
        """
        lost = [path for path in (self.oof, self.oof_last) if not path.is_file()]
        if not lost:
            return True
        log = self.read_log()
        epochs = self.read_config().experiment.epochs
        over = bool(log) and (bool(log[-1].get("ended")) or len(log) >= epochs)
        if over or len(lost) == 1:  # both files are written only after the training
            raise InputError(
                f"{lost[0]} is missing, and the training of fold {self.fold} has ended: restore "
                f"it, or run the train stage again with -p FOLD {self.fold}, which predicts it "
                f"from the checkpoints; or delete {self.path} to leave that fold out"
            )
        return False

    def best(self, epoch: int) -> Path:
        return self.path / f"{filenames.BEST}{epoch:03d}{filenames.CHECKPOINT_SUFFIX}"

    def kept_epochs(self) -> list[int]:
        """The epochs of the kept checkpoints, in order."""
        return [int(path.stem.removeprefix(filenames.BEST)) for path in self.kept()]

    def kept(self) -> list[Path]:
        """The kept checkpoints, by epoch."""
        return sorted(self.path.glob(f"{filenames.BEST}*{filenames.CHECKPOINT_SUFFIX}"))

    def require_kept(self, names: Iterable[str], needed_for: str) -> None:
        """Raise InputError if one of these checkpoints is missing; `needed_for` says who needs it.

        They predicted the held-out images.
        """
        lost = [path for name in sorted(names) if not (path := self.path / name).is_file()]
        if lost:
            raise InputError(
                f"{lost[0]} is missing, and {needed_for} needs it: restore it, or delete "
                f"{self.path}, train fold {self.fold} again and run the thresholds stage"
            )

    def read_config(self) -> FoldConfig:
        """Return config.json. Raises: InputError where it is missing or damaged."""
        try:
            return FoldConfig.model_validate_json(self.config.read_bytes())
        except FileNotFoundError:
            raise InputError(f"{self.config} is missing: the train stage makes it") from None
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
            raise InputError(
                f"{self.config} does not fit this version of the package "
                f"({'; '.join(faults)}): restore it, use the version that made it, or delete "
                f"{self.path}"
            ) from None

    def write_config(self, config: FoldConfig) -> None:
        exclude = {"lineage_digest"} if config.lineage_digest is None else None
        storage.write_json(self.config, config.model_dump(mode="json", exclude=exclude))

    def read_log(self) -> list[LogLine]:
        """Return log.jsonl, one line per epoch; empty before the first epoch ends."""
        return read_log(self.log) if self.log.exists() else []

    def write_log(self, lines: Iterable[LogLine]) -> None:
        storage.write_text(self.log, "".join(json.dumps(line) + "\n" for line in lines))


def read_log(path: Path) -> list[LogLine]:
    """Return a training's log, one line per epoch. Raises: InputError where it is damaged."""
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        _LOG.validate_python(lines)  # only to check: its result has the fields in another order
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({str(error).splitlines()[0]}): run the train stage there, which "
            "writes it again from last.pt"
        ) from None
    return lines


def fold_folder(work: Path, run: str, fold: int) -> FoldRun:
    """Return the folder of a fold under a working folder; it need not exist."""
    return FoldRun(run, fold, work / filenames.RUNS / run / f"fold{fold}")


def folds_with_training(root: Path, run: str = "*") -> list[FoldRun]:
    """Return the folds, of one run or all, whose folder has files of a training, by path."""
    folders = []
    for path in sorted((root / filenames.RUNS).glob(f"{run}/fold*")):
        number = path.name.removeprefix("fold")
        if number.isdecimal() and path.is_dir():
            folder = FoldRun(path.parent.name, int(number), path)
            if folder.holds_training:
                folders.append(folder)
    return folders


def find(roots: Iterable[Path], run: str) -> dict[int, FoldRun]:
    """Return the folds of a run by number, from the first root that holds each.

    Raises: InputError where the configuration of one is gone: its experiment would be unknown.
    """
    folds: dict[int, FoldRun] = {}
    for root in roots:
        for folder in folds_with_training(root, glob.escape(run)):
            if not folder.config.is_file():
                raise InputError(
                    f"{folder.config} is missing, and the files beside it were trained with it: "
                    f"restore it, or delete {folder.path} and train this fold again"
                )
            folds.setdefault(folder.fold, folder)
    return dict(sorted(folds.items()))


def folds_with_maps(roots: Sequence[Path], runs: Iterable[str]) -> set[int]:
    """Return the folds whose held-out images all these runs predicted, with their maps here."""
    return set.intersection(
        *(
            {k for k, f in find(roots, run).items() if f.oof.is_file() and f.oof_last.is_file()}
            for run in runs
        )
    )


def run_names(roots: Iterable[Path]) -> list[str]:
    """Return the names of all runs under the roots, sorted."""
    return sorted({folder.run for root in roots for folder in folds_with_training(root)})


def chosen_runs(roots: Sequence[Path], wanted: str | None) -> list[str]:
    """Return the runs of a comma-separated list; without a list the only run that exists.

    Raises: InputError where a run does not exist, or several do and none was named.
    """
    existing = run_names(roots)
    if not existing:
        places = ", ".join(str(r) for r in roots)
        raise InputError(f"no runs under {places}: the train stage makes them")
    if wanted is None:
        if len(existing) > 1:
            raise InputError(
                f"there are several runs; name some with -p RUNS: {', '.join(existing)}"
            )
        return existing
    chosen = parse_runs(wanted)
    for name in chosen:
        if name not in existing:
            raise InputError(f"RUNS: there is no run {name!r}; there are {', '.join(existing)}")
    return chosen


def parse_runs(wanted: str) -> list[str]:
    """Return the runs of a comma-separated list. Raises: InputError for none, or one twice."""
    chosen = [name.strip() for name in wanted.split(",") if name.strip()]
    if not chosen:
        raise InputError(f"RUNS {wanted!r} names no run: write names with commas between them")
    if len(set(chosen)) < len(chosen):
        raise InputError(f"RUNS {wanted!r} names a run twice: it would count double")
    return chosen


def record_lineage(folder: FoldRun, lineage: Lineage) -> None:
    """Record the lineage digest of a fold's checkpoints in its config.json, if it is not there."""
    config = folder.read_config()
    if config.lineage_digest is None:
        folder.write_config(config.model_copy(update={"lineage_digest": lineage.digest()}))


def write_or_check_config(folder: FoldRun, plan: TrainPlan, folds_digest: str) -> None:
    """Write the fold's config.json, or check that the existing one is the same.

    Raises: InputError naming each field that differs, so that two trainings never mix in a folder.
    """
    config = FoldConfig(
        run=plan.run,
        fold=folder.fold,
        seed=plan.parameters.seed,
        n_folds=plan.parameters.n_folds,
        folds_digest=folds_digest,
        deterministic=plan.parameters.deterministic,
        experiment=plan.experiment,
    )
    if not folder.config.exists():
        folder.write_config(config)
    elif differs := folder.read_config().differences(config):
        raise InputError(
            f"{folder.path} holds a run of another configuration ({'; '.join(differs)}): "
            "choose another WORK_DIR, or delete that folder"
        )


def check_experiment(roots: Iterable[Path], plan: TrainPlan) -> None:
    """Raise InputError if folds of this run were trained with another configuration.

    All folds of a run must share one. The error names the fold and each field that differs.
    """
    for folder in find(roots, plan.run).values():
        config = folder.read_config()
        planned = config.model_copy(update={"experiment": plan.experiment})
        if differs := config.differences(planned):
            raise InputError(
                f"{folder.path} belongs to a run {plan.run} with another configuration "
                f"({'; '.join(differs)}): choose another NAME or WORK_DIR, or delete that run"
            )
