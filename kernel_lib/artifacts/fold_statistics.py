"""Statistics of a fold's held-out images (`ensembles/<name>/statistics/fold<k>.npz`).

Of the mean of an ensemble's maps under fixed weights: what a search needs where the maps are not.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from kernel_lib import storage
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.filenames import ENSEMBLES, FOLD_STATISTICS
from kernel_lib.artifacts.fold_run import FoldConfig
from kernel_lib.config import Frozen
from kernel_lib.errors import InputError
from kernel_lib.postprocess.histograms import Stacked

KINDS = ("kept", "last")  # the checkpoints that predicted
# Of each kind: shape and type of an image's part. Labels are levels, -1 for none; `gate_label` is
# that of the gating classifiers, or the members' own label where there are none.
_OF_KIND = {"hist_all": ((256,), np.int32), "hist_true": ((256,), np.int32),
            "label": ((), np.int16), "gate_label": ((), np.int16)}  # fmt: skip
_LAYOUT = {f"{name}_{kind}": how for name, how in _OF_KIND.items() for kind in KINDS}
_LAYOUT |= {"n_px": ((), np.int64), "view_disagreement": ((), np.float64)}
_MAX_BYTES = 1 << 30  # of an array; 12,047 images take 12 MB


class Origin(Frozen):
    """What predicted a fold's images, and what may be claimed of a score of them."""

    fold: int = Field(ge=0)
    ensemble: Ensemble  # each of its members with this fold alone
    configs: tuple[FoldConfig, ...] = Field(strict=False)  # of `ensemble.all_members` in this fold
    predicted_by: dict[str, dict[str, Any]]  # by kind: checkpoints by run/fold/archive
    past_known: bool  # of all of them, as `selected`
    selected: dict[str, bool]  # by kind: whether the labels of these images selected an epoch

    @model_validator(mode="after")
    def _of_one_fold(self) -> Self:
        of_configs = [(config.run, config.fold) for config in self.configs]
        of_members = [(m.run, *m.folds) for m in self.ensemble.all_members]
        wanted = [(m.run, self.fold) for m in self.ensemble.all_members]
        if not of_configs == of_members == wanted:
            raise ValueError(f"its members are not those of fold {self.fold}")
        for table in (self.predicted_by, self.selected):
            if set(table) != set(KINDS):
                raise ValueError(f"it is of {', '.join(table)}, not of {', '.join(KINDS)}")
        return self

    def difference(self, other: Origin) -> str:
        """Return in what another fold's ensemble differs: "" if both are of one."""
        mine, its = (_identity(origin) for origin in (self, other))
        for name, value in mine.items():
            if value != its[name]:
                return f"{name}: {value} there, {its[name]} here"
        configs = {config.run: config for config in other.configs}
        for config in self.configs:
            same_fold = config.model_copy(update={"fold": other.fold})
            if differs := same_fold.differences(configs[config.run]):
                return f"{config.run}: {'; '.join(differs)}"
        return ""


def _identity(origin: Origin) -> dict[str, Any]:
    ensemble = origin.ensemble
    return {
        "members": [f"{m.run} with weight {m.weight:g}" for m in ensemble.members],
        "gating classifiers": [m.run for m in ensemble.gate_members],
        "digest of folds.csv": ensemble.folds_digest,
    }


@dataclass(frozen=True, eq=False)
class FoldStatistics:
    """The statistics of one fold; rows of all arrays are those of `image_ids`."""

    origin: Origin
    image_ids: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]  # by the names of `_LAYOUT`

    @classmethod
    def of(
        cls,
        origin: Origin,
        image_ids: Sequence[str],
        stats: Mapping[str, Stacked],
        gate_labels: Mapping[str, np.ndarray],
        views: np.ndarray,
    ) -> Self:
        """Return the statistics of each kind, with the members' own labels, and gating labels."""
        arrays = {"n_px": stats["kept"].n_px, "view_disagreement": views}
        for kind in KINDS:
            of_kind = stats[kind]
            arrays |= {f"hist_all_{kind}": of_kind.hist_all, f"hist_true_{kind}": of_kind.hist_true}
            arrays |= {f"label_{kind}": of_kind.label, f"gate_label_{kind}": gate_labels[kind]}
        typed = {name: arrays[name].astype(dtype) for name, (_, dtype) in _LAYOUT.items()}
        return cls(origin, tuple(image_ids), typed)

    def stacked(self, kind: str, gate: str) -> Stacked:
        """Return the statistics by a kind of checkpoints, labelled by what gates, if that does."""
        label = "gate_label" if gate == "label" else "label"
        names = (f"{name}_{kind}" for name in ("hist_all", "hist_true"))
        hists = (self.arrays[name].astype(np.int64) for name in names)
        n_px = self.arrays["n_px"]
        return Stacked(*hists, n_px, np.ones(len(n_px), bool), self.arrays[f"{label}_{kind}"])

    def same_as(self, other: FoldStatistics) -> bool:
        """Return whether another file says exactly the same."""
        return (self.origin, self.image_ids) == (other.origin, other.image_ids) and all(
            np.array_equal(values, other.arrays[name], equal_nan=values.dtype.kind == "f")
            for name, values in self.arrays.items()
        )

    def save(self, folder: Path) -> Path:
        """Write the file of this fold below an ensemble's folder, and return its path."""
        path = folder / FOLD_STATISTICS / f"fold{self.origin.fold}.npz"
        meta = {"origin": self.origin.model_dump_json(), "image_id": self.image_ids}
        texts = {name: np.array(text, dtype=str) for name, text in meta.items()}
        with storage.atomic_write(path) as file:
            np.savez_compressed(file, **texts, **self.arrays)
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises: InputError where it is missing, damaged or of another fold."""
        try:
            arrays = _read(path)
            origin = Origin.model_validate_json(str(arrays.pop("origin")))
            found = cls(origin, tuple(arrays.pop("image_id").tolist()), arrays)
            found._check()
            if path.stem != f"fold{origin.fold}":
                raise ValueError(f"it is of fold {origin.fold}")
        except FileNotFoundError:
            raise InputError(f"{path} is missing: `statistics` makes it") from None
        except (*storage.DAMAGED_FILE_ERRORS, InputError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} is damaged ({str(error) or type(error).__name__}): delete it, run "
                "`python -m kernel_lib statistics` where the maps are, and gather it again"
            ) from error
        return found

    def _check(self) -> None:
        """Raise ValueError where the arrays do not fit together."""
        n, arrays = len(self.image_ids), self.arrays
        if not n or len(set(self.image_ids)) < n or set(map(type, self.image_ids)) != {str}:
            raise ValueError("its ids are not those of different images")
        for name, (shape, dtype) in _LAYOUT.items():
            values = arrays[name]
            if values.shape != (n, *shape) or values.dtype != dtype:
                raise ValueError(f"{name} is {values.dtype} {values.shape}, of {n} images")
        for kind in KINDS:
            every, true = (arrays[f"{name}_{kind}"] for name in ("hist_all", "hist_true"))
            if (true < 0).any() or (true > every).any():
                raise ValueError("its counts of pixels are not within each other")
            if (every.sum(axis=1, dtype=np.int64) != arrays["n_px"]).any():
                raise ValueError("its counts of pixels are not those of its images")
            labels = np.stack([arrays[f"label_{kind}"], arrays[f"gate_label_{kind}"]])
            if ((labels < -1) | (labels > 255)).any():
                raise ValueError("its labels are no levels")
        views = arrays["view_disagreement"]
        if ((views < 0) | (views > 1)).any():
            raise ValueError("its disagreements of views are not from 0 to 1")


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an archive, each within bounds and without pickled objects."""
    with storage.open_archive(path) as archive:
        return {
            name: np.lib.format.read_array(
                io.BytesIO(storage.read_member(archive, f"{name}.npy", _MAX_BYTES)),
                allow_pickle=False,
            )
            for name in ("origin", "image_id", *_LAYOUT)
        }


def paths_below(root: Path) -> list[tuple[str, Path]]:
    """Return each file under a root with its ensemble's name, by path."""
    files = sorted(root.glob(f"{ENSEMBLES}/*/{FOLD_STATISTICS}/fold*.npz"))
    files = [path for path in files if re.fullmatch(r"fold[0-9]+", path.stem)]
    return [(path.parents[1].name, path) for path in files]


def names(roots: Sequence[Path]) -> list[str]:
    """Return the names of the ensembles with statistics, sorted."""
    return sorted({name for root in roots for name, _ in paths_below(root)})


def find(roots: Sequence[Path], name: str) -> dict[int, FoldStatistics]:
    """Return an ensemble's statistics by fold, from the first root that holds each.

    Raises: InputError where one is damaged, or where they are of different ensembles.
    """
    files: dict[str, Path] = {}
    for root in roots:
        for of, path in paths_below(root):
            if of == name:
                files.setdefault(path.stem, path)
    found = {path: FoldStatistics.load(path) for path in files.values()}
    refuse_mixed(found)
    return dict(sorted((each.origin.fold, each) for each in found.values()))


def refuse_mixed(found: Mapping[Path, FoldStatistics]) -> None:
    """Refuse statistics that are not of one ensemble, or differ about the same fold."""
    by_fold: dict[int, Path] = {}
    for path, each in found.items():
        first = next(iter(found))
        same = by_fold.setdefault(each.origin.fold, path)
        if not found[same].same_as(each):
            raise InputError(
                f"{same} and {path} are of the same fold and differ: leave one of them out"
            )
        if differs := found[first].origin.difference(each.origin):
            raise InputError(
                f"{first} and {path} are not of one ensemble ({differs}): compute them for the "
                "same members, weights, gate and folds.csv, or under another -p ENSEMBLE"
            )
