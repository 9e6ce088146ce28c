"""Experiments and the notebooks' parameters, with their checks.

An `Experiment` holds all that a training needs. Parameters are what a user may set in a notebook;
`None` keeps the experiment's value. `plan.plan` joins the two and names the run.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kernel_lib import notebook
from kernel_lib.errors import InputError

NAME = r"^[A-Za-z0-9_.+-]+$"  # of an experiment, a run or an ensemble: it becomes a folder
LARGEST_NUMBER = 2**31 - 1  # a seed that NumPy's and torch's generators all take
LONGEST_TEXT = 4096  # as long as a path may be
LONGEST_JSON = 65_536  # of an EXPERIMENT that is JSON text
# mean: of probabilities, then one rule; vote: of the folds' masks, on test images; member_vote: of
# the members' masks, each by its own rule; member_union: the union of members' masks that agree
Combine = Literal["mean", "vote", "member_vote", "member_union"]
Choose = Literal["none", "greedy"]  # members and weights of a mean
Gate = Literal["auto", "none", "label", "sum"]  # what may empty an image before the rule


class Frozen(BaseModel):
    """A strictly typed, immutable model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_within_limits(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"beyond {LARGEST_NUMBER:,}, the largest number allowed")
        longest = LONGEST_JSON if field.field_name == "experiment" else LONGEST_TEXT
        if isinstance(value, str) and ("\0" in value or len(value) > longest):
            raise ValueError(f"must have at most {longest:,} characters, none of them NUL")
        return value


class Experiment(Frozen):
    """All that a training needs, and the score that the reference solution reported for it."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = Field(pattern=NAME)
    parent: str | None = None  # the experiment that this one is written as a difference from
    says: str = ""  # one line of description
    leaderboard: str | None = None  # public LB that the reference solution reported, never ours

    network: str = "UNet"
    encoder: str = "resnet34"
    # Of a U-Net's levels; others are as wide as the first. scSE needs at least 16.
    decoder_channels: tuple[Annotated[int, Field(ge=16)], ...] = Field(
        (256, 128, 64, 32, 16), strict=False, min_length=1, max_length=5
    )
    drop_path: float = Field(0.0, ge=0, lt=1)  # of the deepest block; 0: the encoder's own
    centre_block: bool = True  # two convolutions between encoder and decoder of a U-Net
    # imagenet, none, a file, a run, or an experiment: its run with the same seed and fold
    weights: str = "imagenet"
    images: Literal["competition", "nih"] = "competition"  # what it is trained on
    gate: str | None = None  # the experiment of the classifier that may empty images

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
    # From each part of the encoder to the shallower next; below 1 only where timm knows its layers
    layer_decay: float = Field(1.0, gt=0, le=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: str = "cosine"
    lr_end_factor: float = Field(0.1, ge=0, le=1)
    warmup_epochs: float = Field(0.0, ge=0)
    clip_grad_norm: float | None = Field(None, gt=0)
    freeze_batch_norm: bool = False
    ema_decay: float = Field(0.999, ge=0, lt=1)

    monitor: str = "epoch"  # the last epochs are kept, not selected by held-out labels
    keep: int = Field(3, ge=1)
    tta: str = "hflip"

    @field_validator("size")
    @classmethod
    def _size_is_a_multiple_of_32(cls, size: int) -> int:
        if size % 32:
            near = max(32, round(size / 32) * 32)
            raise ValueError(f"must be divisible by 32; the nearest is {near}")
        return size

    @model_validator(mode="after")
    def _min_epochs_is_below_epochs(self) -> Self:
        if self.min_epochs >= self.epochs:
            raise ValueError(
                f"min_epochs {self.min_epochs} is not below epochs {self.epochs}, so no epoch "
                "would ever be kept: lower MIN_EPOCHS or raise EPOCHS"
            )
        return self

    def differing(self, **changes: Any) -> Experiment:
        """Return an experiment that differs from this one, its parent, in `changes`."""
        inherited = self.model_dump() | {"leaderboard": None, "parent": self.name}
        return Experiment.model_validate(inherited | changes)

    def options_reset_by(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return empty options of what `fields` replace: they were written for another name."""
        replaced = (
            k for k in ("loss", "sampling") if k in fields and fields[k] != getattr(self, k)
        )
        return {f"{k}_options": {} for k in replaced}


class Parameters(Frozen):
    """A notebook's `parameters` cell: one field for each upper-case name."""

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_empty(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():  # an unset shell variable
            raise ValueError("is empty: give a value or leave it out (is a variable unset?)")
        return value

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Return the parameters of a notebook, from its upper-case names.

        Every notebook calls this first; it also makes Ctrl-C end the running cell cleanly.

        Raises: InputError naming each wrong parameter, its value and the fix.
        """
        notebook.let_cells_end()
        given = {k.lower(): v for k, v in namespace.items() if re.fullmatch(r"[A-Z][A-Z0-9_]*", k)}
        for name in namespace:
            if not name.isupper() and name.lower() in cls.model_fields:
                raise InputError(f"parameter {name} is not read: write {name.upper()}")
        return cls.checked(given)

    @classmethod
    def described(cls) -> list[tuple[str, str]]:
        """Return name, and type with default, of each parameter, for a command's help."""
        fields = cls.model_fields.items()
        return [(k.upper(), f"{_type_text(f.annotation)} [{f.default}]") for k, f in fields]

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Self:
        """Return the parameters with these values; raise InputError naming each wrong one."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InputError(explain(error, sorted(cls.model_fields))) from None


class TrainParameters(Parameters):
    """Parameters of `notebooks/train`: prepare, train folds, predict held-out images."""

    experiment: str = "UNetResNet34_512_v1"  # a name, the path of a JSON file, or its text
    name: str | None = Field(None, pattern=NAME)  # of the run; None: of experiment and overrides
    seed: int = Field(3456, ge=0)
    fold: int | None = Field(None, ge=0)  # None: every fold, one after the other
    n_folds: int = Field(5, ge=2)
    data_dir: str | None = None
    work_dir: str | None = None
    cache_dir: str | None = None
    groups: str | None = None  # table of image id and patient; nih_id.csv is one

    # None: the experiment's value
    size: int | None = None
    encoder: str | None = None
    weights: str | None = None
    loss: str | None = None  # "bce", "bce+dice", "3*bce+dice+4*focal"
    sampling: str | None = None
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
    # What a weights file without a published hash holds; None: unknown
    weights_are: Literal["imagenet"] | None = None
    with_parents: bool = False  # first train the runs that this one starts from or is gated by
    parent_weights: str | None = None  # initial weights of the first parent
    nih_dir: str | None = None  # NIH ChestX-ray14, for experiments that train on it
    max_hours: float | None = Field(None, gt=0)
    save_minutes: float = Field(10.0, gt=0)
    on_bad_file: Literal["stop", "skip"] = "stop"
    masks_are: Literal["right", "inverted"] | None = None  # None: refuse masks that look wrong
    deterministic: bool = False
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    compile: bool = False  # torch.compile the network for training
    device: str = "auto"
    processes: int | None = Field(None, ge=1)  # None: one per GPU
    workers: int | None = Field(None, ge=0)
    threads: int | None = Field(None, ge=1)


class ThresholdsParameters(Parameters):
    """Parameters of `notebooks/thresholds`: combine held-out predictions, search, score."""

    runs: str | None = None  # names, comma-separated; None: the only run in the folder
    # A name, a shipped recipe's name, or a recipe file; None: named after its runs
    ensemble: str | None = Field(None, pattern=rf"{NAME}|\.json$")
    work_dir: str | None = None
    data_dir: str | None = None  # only for images in the report
    combine: Combine | None = None  # None: the recipe's, else mean
    choose: Choose | None = None  # None: the recipe's, else none
    at_least: int | None = Field(None, ge=1)  # minimum votes; None: the recipe's, or chosen
    gate: Gate = "auto"  # auto: as the recipe or the experiments say
    single: bool = False  # one threshold (top = bottom) and a minimum area
    bootstrap: int = Field(2000, ge=100)
    allow_unknown_past: bool = False


class StatisticsParameters(Parameters):
    """Parameters of the command `statistics`: those of `thresholds` that say which maps."""

    runs: str | None = None
    ensemble: str | None = Field(None, pattern=rf"{NAME}|\.json$")
    work_dir: str | None = None
    gate: Gate = "auto"
    allow_unknown_past: bool = False


class InferenceParameters(Parameters):
    """Parameters of `notebooks/inference`: predict test images, write submission and report."""

    ensemble: str | None = Field(None, pattern=NAME)  # None: the only one in the folder
    data_dir: str | None = None
    work_dir: str | None = None
    cache_dir: str | None = None
    sample: str | None = None  # None: the sample submission in the data folder
    # None: write to ensembles/<ensemble>; else to outputs/<name> in that folder
    output: str | None = Field(None, pattern=r"^[A-Za-z0-9_+-][A-Za-z0-9_.+-]*$")
    tta: str | None = None  # None: as the members' experiments say
    batch_size: int | None = Field(None, ge=1)
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    processes: int | None = Field(None, ge=1)  # None: one per GPU
    workers: int | None = Field(None, ge=0)
    threads: int | None = Field(None, ge=1)
    # auto: on a CPU onnxruntime, if it is installed and the images are enough
    engine: Literal["auto", "torch", "onnxruntime"] = "auto"


class PredictParameters(InferenceParameters):
    """Parameters of each process of the command `predict`."""

    listed: dict[str, str]  # name of a mask to the image's file
    scratch: str  # folder of probability maps and decoded images
    ensemble_folder: str | None = None
    model: str | None = None  # a released model's name or file


class ExploreParameters(Parameters):
    """Parameters of `notebooks/explore`: check a data folder, view an ensemble's masks."""

    data_dir: str | None = None
    work_dir: str | None = None  # only to find the ensemble
    groups: str | None = None  # table of image id and patient, to count patients
    masks_are: Literal["right", "inverted"] | None = None  # None: list masks that look wrong
    sample_images: int = Field(200, ge=1)  # files to open
    seed: int = Field(0, ge=0)  # of their random choice
    ensemble: str | None = Field(None, pattern=NAME)  # None: no viewer
    ids: str | None = None  # of the viewer, comma-separated; None: the most informative
    max_mb: float = Field(25.0, gt=0)  # of the viewer


def from_json(text: str) -> dict[str, Any]:
    """Return a JSON object of parameters by lower-case name.

    Raises: ValueError for other JSON, or a name that occurs twice.
    """
    try:
        values = json.loads(text, object_pairs_hook=lambda pairs: unique(pairs, str.lower))
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError('it must be an object of parameters, such as {"SIZE": 1024}')
    return values


def unique(pairs: Iterable[tuple[str, Any]], spelt: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict; raise ValueError for a repeated name."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if spelt(name) in values:
            raise ValueError(f"it holds {name[:100]} twice")
        values[spelt(name)] = value
    return values


def parse_value(text: str) -> str | int | float | bool | None:
    """Return the value of `-p NAME VALUE` as papermill parses it: `007` is 7, `[3,4]` text."""
    literals = {"True": True, "False": False, "None": None}
    if text in literals:
        return literals[text]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def explain(
    error: ValidationError,
    names: list[str],
    what: str = "parameter",
    written: Callable[[str], str] = str.upper,
) -> str:
    """Return all faults of a validation as text: the parameter, its value and the fix.

    `what` is the noun for a field, and `written` spells its name as the user does.
    """
    lines = []
    for fault in error.errors():
        field = str(fault["loc"][0]) if fault["loc"] else ""
        name, message = written(field[:100]), fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            (near,) = difflib.get_close_matches(field[:100], names, n=1, cutoff=0.0)
            lines.append(f"unknown {what} {name}; the nearest is {written(near)}")
            continue
        if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
            message = f"must be text: quote it in JSON, or give -r {name} TEXT, not -p"
        lines.append(f"{name} = {_shown(fault['input'])}: {message}" if field else message)
    return "; ".join(lines)


def _type_text(annotation: Any) -> str:
    """Return a parameter's type as `int or None`, or its choices."""
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    if inner := get_args(annotation):
        return " or ".join(map(_type_text, inner))
    return "None" if annotation is type(None) else annotation.__name__


def _shown(value: Any) -> str:
    """Return a value as text for a message: shortened, or its type if it has no text."""
    try:
        text = repr(value)
    except Exception:  # an int of too many digits, or an object whose repr fails
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"
