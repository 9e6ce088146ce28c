"""What may be set, checked: experiment rows, and the parameters of the three notebooks.

A row (`Experiment`) says all that a training needs. The parameters are what a person may say to a
notebook; `None` means "as the row says". `plan` joins the two and names the run.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kernel_lib.errors import InputError

NAME = r"^[A-Za-z0-9_.+-]+$"  # of an ensemble: it becomes a folder


class Frozen(BaseModel):
    """Strictly typed, unchangeable, and deaf to no key: an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Experiment(Frozen):
    """One row: every number that a training needs, and what the notes reported for it."""

    name: str
    parent: str | None = None  # the row that this one was written as a difference from
    says: str = ""  # one line of prose
    leaderboard: str | None = None  # public LB, the notes' figure, never ours

    network: str = "UNet"
    encoder: str = "resnet34"
    # scSE squeezes channels sixteenfold, so a level has at least 16.
    decoder_channels: tuple[Annotated[int, Field(ge=16)], ...] = Field(
        (256, 128, 64, 32, 16), strict=False, min_length=1, max_length=5
    )
    weights: str = "imagenet"

    size: int = Field(512, ge=32, le=2048)
    loss: dict[str, float] = Field(default_factory=lambda: {"bce": 1.0}, min_length=1)
    loss_options: dict[str, dict[str, float]] = Field(default_factory=dict)
    mask_loss_images: Literal["all", "nonempty"] = "all"
    label_weight: float = Field(0.0, ge=0)  # above 0 the network has a label head
    side_weight: float = Field(0.0, ge=0)  # above 0 the network has side masks
    sampling: str = "all"
    sampling_options: dict[str, float] = Field(default_factory=dict)
    augment: str = "notes"

    epochs: int = Field(70, ge=1)
    min_epochs: int = Field(45, ge=0)
    patience: int = Field(10, ge=1)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(2, ge=1)

    optimizer: str = "sgd"
    lr: float = Field(0.02, gt=0)
    encoder_lr_factor: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: str = "cosine"
    lr_end_factor: float = Field(0.1, ge=0, le=1)
    warmup_epochs: float = Field(0.0, ge=0)
    clip_grad_norm: float | None = Field(None, gt=0)
    freeze_batch_norm: bool = False
    ema_decay: float = Field(0.999, ge=0, lt=1)

    monitor: str = "dice"
    keep: int = Field(3, ge=1)
    tta: str = "hflip"

    @field_validator("size")
    @classmethod
    def _size_is_a_multiple_of_32(cls, size: int) -> int:
        if size % 32:
            near = max(32, round(size / 32) * 32)
            raise ValueError(f"{size} is not divisible by 32; the nearest that is: {near}")
        return size

    @model_validator(mode="after")
    def _something_can_be_kept(self) -> Self:
        if self.min_epochs >= self.epochs:
            raise ValueError(
                f"min_epochs {self.min_epochs} is not below epochs {self.epochs}, so nothing "
                "would ever be kept as best; lower MIN_EPOCHS or raise EPOCHS"
            )
        return self

    def differing(self, **changes: Any) -> Experiment:
        """A row that states only how it differs from this one, its parent; checked anew."""
        inherited = self.model_dump() | {"leaderboard": None, "parent": self.name}
        return Experiment.model_validate(inherited | changes)


class Parameters(Frozen):
    """What a notebook's `parameters` cell holds: one field for each upper-case name."""

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Check every upper-case name of a notebook; an unknown one stops with the nearest right.

        Raises InputError naming each wrong parameter, its value and the mend.
        """
        given = {k.lower(): v for k, v in namespace.items() if re.fullmatch(r"[A-Z][A-Z0-9_]*", k)}
        for name in namespace:
            if not name.isupper() and name.lower() in cls.model_fields:
                raise InputError(f"parameter {name} is not read: write {name.upper()}")
        return cls.checked(given)

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Self:
        """The parameters of these values by name; InputError naming each wrong one and the mend."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InputError(_explain(error, sorted(cls.model_fields))) from None


class TrainParameters(Parameters):
    """Parameters of `notebooks/train`: prepare, train a fold or all, predict what was held out."""

    experiment: str = "UNetResNet34_512_v1"
    seed: int = Field(3456, ge=0)
    fold: int | None = Field(None, ge=0)  # None: every fold, one after the other
    n_folds: int = Field(5, ge=2)
    data_dir: str | None = None
    work_dir: str | None = None
    cache_dir: str | None = None
    groups: str | None = None  # table of image id and patient; nih_id.csv is one

    # None: as the row says
    size: int | None = None
    encoder: str | None = None
    weights: str | None = None
    epochs: int | None = None
    min_epochs: int | None = None
    patience: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    schedule: str | None = None
    augment: str | None = None
    ema_decay: float | None = None
    freeze_batch_norm: bool | None = None
    monitor: str | None = None
    keep: int | None = None
    tta: str | None = None

    weights_dir: str | None = None
    max_hours: float | None = Field(None, gt=0)
    save_minutes: float = Field(10.0, gt=0)
    on_bad_file: Literal["stop", "skip"] = "stop"
    deterministic: bool = False
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    workers: int | None = Field(None, ge=0)
    threads: int | None = Field(None, ge=1)


class ThresholdsParameters(Parameters):
    """Parameters of `notebooks/thresholds`: gather out-of-fold maps, search, score honestly."""

    runs: str | None = None  # names, comma-separated; None: the only run there is
    ensemble: str | None = Field(
        None, pattern=NAME
    )  # None: the run's name, or the runs' names joined
    work_dir: str | None = None
    data_dir: str | None = None  # only for pictures of images in the report
    combine: Literal["mean", "vote"] = "mean"
    single: bool = False  # one threshold with one area, the notes' rule
    bootstrap: int = Field(2000, ge=100)
    allow_unknown_past: bool = False


class InferenceParameters(Parameters):
    """Parameters of `notebooks/inference`: test images to a checked submission and a report."""

    ensemble: str | None = Field(None, pattern=NAME)  # None: the only one there is
    data_dir: str | None = None
    work_dir: str | None = None
    cache_dir: str | None = None
    sample: str | None = None  # None: the sample submission found beside the data
    tta: str | None = None  # None: as the members' rows say
    batch_size: int | None = Field(None, ge=1)
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    workers: int | None = Field(None, ge=0)
    threads: int | None = Field(None, ge=1)


# What a parameter of the same name overrides in the row, in the order of the run's suffixes.
OVERRIDES = (
    "size", "encoder", "weights", "epochs", "min_epochs", "patience", "batch_size", "accumulate",
    "optimizer", "lr", "schedule", "augment", "ema_decay", "freeze_batch_norm", "monitor", "keep",
    "tta",
)  # fmt: skip
_SHORT = {"min_epochs": "min", "batch_size": "batch", "accumulate": "acc", "optimizer": "",
          "schedule": "", "encoder": "", "ema_decay": "ema", "freeze_batch_norm": "frozenbn",
          "weights": "from"}  # fmt: skip


class TrainPlan(Frozen):
    """A run that is decided: its name, its row with all overrides, and its parameters."""

    run: str
    experiment: Experiment
    parameters: TrainParameters
    says: tuple[str, ...] = Field((), strict=False)  # what a person should know before it starts


def plan(parameters: TrainParameters, rows: Mapping[str, Experiment]) -> TrainPlan:
    """Join parameters and rows. Raises InputError for an unknown row or impossible numbers."""
    row = find_row(parameters.experiment, rows)
    given = {k: v for k in OVERRIDES if (v := getattr(parameters, k)) is not None}
    says: list[str] = []
    if "size" in given and given["size"] != row.size:
        row, found = _row_of_size(row, given["size"], rows)
        says.append(
            f"SIZE {given['size']} selects the row {row.name}"
            if found
            else f"the notes have no {row.name} at {given['size']}: {row.name} with another size"
        )
    if "epochs" in given and "min_epochs" not in given:
        scaled = scaled_min_epochs(row, given["epochs"])
        says.append(
            f"EPOCHS {given['epochs']} given alone: min_epochs scaled from {row.min_epochs} of "
            f"{row.epochs} to {scaled}"
        )
        given["min_epochs"] = scaled
    changes = {k: v for k, v in given.items() if v != getattr(row, k)}
    try:
        experiment = Experiment.model_validate(row.model_dump() | changes)
    except ValidationError as error:
        raise InputError(_explain(error, sorted(Experiment.model_fields))) from None
    implied = {"min_epochs"} if parameters.min_epochs is None else set()
    suffixes = "".join(f"_{suffix(k, changes[k])}" for k in changes if k not in implied)
    run = f"{row.name}{suffixes}_seed{parameters.seed}"
    return TrainPlan(run=run, experiment=experiment, parameters=parameters, says=tuple(says))


def scaled_min_epochs(row: Experiment, epochs: int) -> int:
    """The row's share of epochs in which nothing is kept, for another number of epochs."""
    return min(epochs - 1, math.floor(epochs * row.min_epochs / row.epochs))


def find_row(name: str, rows: Mapping[str, Experiment]) -> Experiment:
    """The row of that name; InputError with the nearest names otherwise."""
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name, rows, n=3, cutoff=0.4) or list(rows)
    raise InputError(f"EXPERIMENT {name!r} is no row of experiments.py; nearest: {', '.join(near)}")


def suffix(field: str, value: Any) -> str:
    """How an override shows in a run's name: `epochs3`, `lr0.001`, `adamw`."""
    text = re.sub(r"[^A-Za-z0-9.+-]+", "-", str(value)).strip("-")
    return f"{_SHORT.get(field, field)}{text}"


def _row_of_size(
    row: Experiment, size: int, rows: Mapping[str, Experiment]
) -> tuple[Experiment, bool]:
    """The notes' row of the same system at another size, and whether there is one.

    The same name with the size exchanged comes first, then a row that was written as a difference
    from this one or from its parent, or the parent itself.
    """
    renamed = row.name.replace(f"_{row.size}_", f"_{size}_")
    if renamed != row.name and renamed in rows:
        return rows[renamed], True
    system, family = (row.network, row.encoder), {row.name, row.parent} - {None}
    for other in rows.values():
        related = family & {other.name, other.parent}
        same = related and (other.network, other.encoder) == system
        if same and other.size == size:
            return other, True
    return row, False


def _explain(error: ValidationError, names: list[str]) -> str:
    """Every fault of a validation in words that name the parameter, its value and the mend."""
    lines = []
    for fault in error.errors():
        field = str(fault["loc"][0]) if fault["loc"] else ""
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, names, n=1, cutoff=0.0)
            lines.append(f"unknown parameter {field.upper()}; the nearest is {near[0].upper()}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            shown = f"{field.upper()} = {fault['input']!r}: " if field else ""
            lines.append(f"{shown}{message}")
    return "; ".join(lines)
