"""A kernel's slug and title: the name of its run or ensemble, and which part of it, 5 to 50 long.

No name holds a hash. A long one has some words shortened; one that is longer still is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

from kernel_lib.errors import InputError
from kernel_lib.plan import RUN_NAME
from kernel_lib.stages.table import STAGES

MAX_LENGTH = 50
# A run's name that is too long has every word of this table shortened, and nothing else.
ABBREVIATIONS = {
    "attention": "att",
    "classifier": "cls",
    "deeplabv3plus": "dlv3p",
    "multitask": "multi",
    "resnet": "rn",
    "supervision": "sup",
    "unetresnet": "unet",
}
# What follows the name, where 50 characters do not hold it in full.
_SHORT = {stage.name: stage.short for stage in STAGES.values()} | {"script": "py"}
# The parts of a run: a train kernel's fold and the later stages.
_PARTS = ("f10", *(stage.short for stage in STAGES.values() if not stage.per_fold))
_ADVICE = "name the run with -p NAME SHORT, or the kernels with --slug NAME"


def slug(stage: str, kind: str, of: str | None = None, fold: int | None = None) -> str:
    """Return a kernel's name in addresses and folders; each kind of a stage has its own.

    `of` is the run that it trains, or the ensemble; None: it is the stage's own kernel. The names
    of one run's kernels begin with the same word.

    Raises: InputError where Kaggle's 50 characters do not hold the name.
    """
    script = ["script"] * (kind == "script")
    if of is None:
        return "-".join(["pneumothorax", stage, *script])
    name, seed = split(of)
    ends = [ending(seed, part, "py") for part in _PARTS]
    if STAGES[stage].per_fold:
        advice, part = _ADVICE, "" if fold is None else f"f{fold}"
    else:
        advice, part = "name the kernel with --slug NAME", stage
    return joined(heads([name], ends, advice)[name], seed, part, *script)


def ensemble(values: Mapping[str, object]) -> str | None:
    """Return the ensemble that a kernel's parameters name; None where they leave it open."""
    given, runs = values.get("ENSEMBLE"), values.get("RUNS")
    if given is not None:
        return PurePath(str(given)).name.removesuffix(".json")
    return None if runs is None else str(runs)


def split(name: str) -> tuple[str, str]:
    """Return a run's name without its seed, and the seed as kernels have it, '' for none."""
    run = RUN_NAME.fullmatch(name)
    return (run["head"], f"s{run['seed']}") if run and "," not in name else (name, "")


def heads(
    names: Sequence[str],
    endings: Iterable[str],
    advice: str = _ADVICE,
    given: str | None = None,
    fallback: str = "parent",
) -> dict[str, str]:
    """Return by run the beginning of its kernels' names, after which any of the endings fits.

    The last one is the wanted one; the others are numbered, as `fallback`, where their own names do
    not fit. `given` is the beginning of all names.

    Raises: InputError, with `advice`, where one does not fit.
    """
    room = MAX_LENGTH - max(map(len, endings))
    if given is not None and slugify(given) != given:
        near = slugify(given) or "a word"
        raise InputError(f"--slug {given} cannot begin the name of a kernel: write {near}")
    own = given or _fitting(names[-1], room)
    if own is None or len(own) > room:
        what, fix = (f"--slug {given}", "shorten it") if given else (names[-1], advice)
        raise InputError(
            f"{what} is too long for the name of a kernel, of which Kaggle's {MAX_LENGTH} "
            f"characters leave {room}: {fix}"
        )
    fitting = {}
    for number, name in enumerate(names[:-1], 1):
        head = None if given else _fitting(name, room)
        fitting[name] = head or f"{own}-{fallback}{number}"
        if len(fitting[name]) > room:
            raise InputError(
                f"{name}, which {names[-1]} needs, is too long for the name of a kernel, of which "
                f"Kaggle's {MAX_LENGTH} characters leave {room}: {advice}"
            )
    return fitting | {names[-1]: own}


def ending(*words: str) -> str:
    """Return the end of a kernel's name, as short as possible."""
    return "".join(f"-{_SHORT.get(word, word)}" for word in words if word)


def joined(head: str, *words: str) -> str:
    """Return a kernel's name: its beginning and words, shortened where 50 characters need it."""
    full = "-".join(word for word in (head, *words) if word)
    return full if len(full) <= MAX_LENGTH else head + ending(*words)


def title(name: str) -> str:
    """Return the title of a slug, of which Kaggle makes the slug."""
    return name.replace("-", " ").capitalize()


def slugify(text: str) -> str:
    """Return Kaggle's slug of a title: lower case, anything but letters and digits one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def shorten(text: str) -> str:
    """Return a slug with the words of `ABBREVIATIONS` shortened; a number at a word's end stays."""

    def short(word: re.Match) -> str:
        return ABBREVIATIONS.get(word["word"], word["word"]) + word["number"]

    return re.sub(r"(?<![^-])(?P<word>[a-z][a-z0-9]*?)(?P<number>[0-9]*)(?![^-])", short, text)


def _fitting(name: str, room: int) -> str | None:
    """Return a name as a slug that fits, shortened where it must be; None where it cannot."""
    full = slugify(name)
    if len(full) <= room:
        return full
    # A word that looks shortened already would make two names one.
    words = set(re.sub(r"[0-9]+(?![^-])", "", full).split("-"))
    short = shorten(full)
    return short if len(short) <= room and not words & set(ABBREVIATIONS.values()) else None
