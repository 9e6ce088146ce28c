"""What may be set, checked: experiment rows, and the parameters of the notebooks.

A row (`Experiment`) says all that a training needs. The parameters are what a person may say to a
notebook; `None` means "as the row says". `plan.plan` joins the two and names the run.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
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
LARGEST_NUMBER = 2**31 - 1  # of seeds too: NumPy's and torch's generators all take it
LONGEST_TEXT = 4096  # as long as a path may be
LONGEST_JSON = 65_536  # of an EXPERIMENT that is JSON text
# mean: of probabilities, then one rule; vote: of the folds' own masks, on test images; member_vote:
# each member's mask by its own rule, pixels of enough of them; member_union: masks that agree
Combine = Literal["mean", "vote", "member_vote", "member_union"]
Choose = Literal["none", "greedy"]  # members and weights of a mean
Gate = Literal["auto", "none", "label", "sum"]  # what may empty an image before the triplet


class Frozen(BaseModel):
    """Strictly typed, unchangeable, and deaf to no key: an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_used(cls, value: Any, field: ValidationInfo) -> Any:
        """What every number and text must keep to, whatever else its field asks for."""
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"beyond {LARGEST_NUMBER:,}, where numbers end")
        longest = LONGEST_JSON if field.field_name == "experiment" else LONGEST_TEXT
        if isinstance(value, str) and ("\0" in value or len(value) > longest):
            raise ValueError(f"no text of at most {longest:,} characters without zeros")
        return value


class Experiment(Frozen):
    """One row: every number that a training needs, and what the notes reported for it."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = Field(pattern=NAME)
    parent: str | None = None  # the row that this one was written as a difference from
    says: str = ""  # one line of prose
    leaderboard: str | None = None  # public LB, the notes' figure, never ours

    network: str = "UNet"
    encoder: str = "resnet34"
    # scSE squeezes channels sixteenfold, so a level has at least 16.
    decoder_channels: tuple[Annotated[int, Field(ge=16)], ...] = Field(
        (256, 128, 64, 32, 16), strict=False, min_length=1, max_length=5
    )
    centre_block: bool = True  # two convolutions between encoder and decoder of a U-Net
    # imagenet, none, a file, a run, or a row: then the run of that row with the same seed and fold
    weights: str = "imagenet"
    images: Literal["competition", "nih"] = "competition"  # what it is trained on
    gate: str | None = None  # the row of the classifier whose label empties images

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

    monitor: str = "epoch"  # the last epochs are kept, and no label of a held-out image chooses
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

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_empty(cls, value: Any) -> Any:
        """An empty text is what an unset variable of a shell leaves."""
        if isinstance(value, str) and not value.strip():
            raise ValueError("is empty: give it, or leave it out; is a variable unset?")
        return value

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Self:
        """Check every upper-case name of a notebook; an unknown one stops with the nearest right.

        Every notebook calls this first: from here on Ctrl-C ends its cells in good order.
        Raises InputError naming each wrong parameter, its value and the fix.
        """
        notebook.let_cells_end()
        given = {k.lower(): v for k, v in namespace.items() if re.fullmatch(r"[A-Z][A-Z0-9_]*", k)}
        for name in namespace:
            if not name.isupper() and name.lower() in cls.model_fields:
                raise InputError(f"parameter {name} is not read: write {name.upper()}")
        return cls.checked(given)

    @classmethod
    def described(cls) -> list[tuple[str, str]]:
        """Return name, and type with default, of every parameter, for a command's help."""
        fields = cls.model_fields.items()
        return [(k.upper(), f"{_type_text(f.annotation)} [{f.default}]") for k, f in fields]

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Self:
        """The parameters of these values by name; InputError naming each wrong one and the fix."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InputError(explain(error, sorted(cls.model_fields))) from None


class TrainParameters(Parameters):
    """Parameters of `notebooks/train`: prepare, train a fold or all, predict what was held out."""

    experiment: str = "UNetResNet34_512_v1"  # a name, the path of a JSON file, or its text
    name: str | None = Field(None, pattern=NAME)  # of the run; None: of experiment and overrides
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
    # What a file of weights without a published hash holds; None: not known
    weights_are: Literal["imagenet"] | None = None
    with_parents: bool = False  # train first what the row starts from, and what gates it
    parent_weights: str | None = None  # what the first of the parents starts from
    nih_dir: str | None = None  # NIH ChestX-ray14, for rows that are trained on it
    max_hours: float | None = Field(None, gt=0)
    save_minutes: float = Field(10.0, gt=0)
    on_bad_file: Literal["stop", "skip"] = "stop"
    masks_are: Literal["right", "inverted"] | None = None  # None: what looks wrong is refused
    deterministic: bool = False
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    compile: bool = False  # torch.compile the network for training
    device: str = "auto"
    processes: int | None = Field(None, ge=1)  # None: one for each GPU
    workers: int | None = Field(None, ge=0)
    threads: int | None = Field(None, ge=1)


class ThresholdsParameters(Parameters):
    """Parameters of `notebooks/thresholds`: gather out-of-fold maps, search, score honestly."""

    runs: str | None = None  # names, comma-separated; None: the only run there is
    # Its name, a shipped recipe's, or a recipe's file; None: the run's name, or the runs' joined
    ensemble: str | None = Field(None, pattern=rf"{NAME}|\.json$")
    work_dir: str | None = None
    data_dir: str | None = None  # only for pictures of images in the report
    combine: Combine | None = None  # None: as the recipe says, else mean
    choose: Choose | None = None  # None: as the recipe says, else none
    at_least: int | None = Field(
        None, ge=1
    )  # of a member vote; None: as the recipe says, or chosen
    gate: Gate = "auto"  # auto: as the recipe or the runs' rows say
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
    # None: ensembles/<ensemble>; else the folder outputs/<name> in it, beside that
    output: str | None = Field(None, pattern=r"^[A-Za-z0-9_+-][A-Za-z0-9_.+-]*$")
    tta: str | None = None  # None: as the members' rows say
    batch_size: int | None = Field(None, ge=1)
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = "auto"
    processes: int | None = Field(None, ge=1)  # None: one for each GPU
    workers: int | None = Field(None, ge=0)
    threads: int | None = Field(None, ge=1)


class PredictParameters(InferenceParameters):
    """What each of several processes of `predict` is given: files, and who predicts."""

    listed: dict[str, str]  # the name that a file's mask is written under, to the file
    scratch: str  # where maps and decoded images go
    ensemble_folder: str | None = None
    model: str | None = None  # a released model's name or file


class ExploreParameters(Parameters):
    """Parameters of `notebooks/explore`: a look at data as found, and at an ensemble's masks."""

    data_dir: str | None = None
    work_dir: str | None = None  # only to look for the ensemble
    groups: str | None = None  # table of image id and patient, to count patients
    masks_are: Literal["right", "inverted"] | None = None  # None: what looks wrong is listed
    sample_images: int = Field(200, ge=1)  # files that are opened
    seed: int = Field(0, ge=0)  # of the draw of those files
    ensemble: str | None = Field(None, pattern=NAME)  # None: no viewer
    ids: str | None = None  # images in the viewer, comma-separated; None: the most telling
    max_mb: float = Field(25.0, gt=0)  # of the viewer


def from_json(text: str) -> dict[str, Any]:
    """A JSON object of parameters, by lower-case name.

    Raises: ValueError for another JSON, or a name that stands twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name.lower() in found:
                raise ValueError(f"it holds {name[:100]} twice")
            found[name.lower()] = value
        return found

    try:
        values = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
    if not isinstance(values, dict):
        raise ValueError('it holds no object of parameters, as {"SIZE": 1024} is one')
    return values


def parse_value(text: str) -> str | int | float | bool | None:
    """Return one value of `-p NAME VALUE`, by papermill's rules: `007` is 7, `[3,4]` a text."""
    literals = {"True": True, "False": False, "None": None}
    if text in literals:
        return literals[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def explain(
    error: ValidationError,
    names: list[str],
    what: str = "parameter",
    written: Callable[[str], str] = str.upper,
) -> str:
    """Return every fault of a validation: the parameter, its value and how to fix it.

    `what` calls the fields so, and `written` gives a field's name as its reader writes it.
    """
    lines = []
    for fault in error.errors():
        field = str(fault["loc"][0]) if fault["loc"] else ""
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field[:100], names, n=1, cutoff=0.0)
            lines.append(
                f"unknown {what} {written(field[:100])}; the nearest is {written(near[0])}"
            )
        else:
            message = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
                message = f"is no text: quote it in JSON, or give -r {written(field)} TEXT, not -p"
            shown = f"{written(field)} = {_shown(fault['input'])}: " if field else ""
            lines.append(f"{shown}{message}")
    return "; ".join(lines)


def _type_text(annotation: Any) -> str:
    """Return a parameter's type as `int or None`, or its choices."""
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    if inner := get_args(annotation):
        return " or ".join(map(_type_text, inner))
    return "None" if annotation is type(None) else annotation.__name__


def _shown(value: Any) -> str:
    """A value in a message: cut where it is long, its type where it cannot be written."""
    try:
        text = repr(value)
    except Exception:  # a number of too many digits, or somebody's object
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"
