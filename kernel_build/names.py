"""A kernel's slug and title: what it is, in 5 to 50 characters, no two kernels by the same name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from kernel_lib import experiment_file

MAX_LENGTH = 50
_HASH_LENGTH = 6
# What a name says of each stage's parameters, in this order; {} is the value.
_SHOWN = {
    "train": {"EXPERIMENT": "{}", "SEED": "seed{}", "FOLD": "fold{}"},
    "thresholds": {"ENSEMBLE": "{}", "RUNS": "{}"},
    "inference": {"ENSEMBLE": "{}"},
}
# A name of more than 50 characters has every word of this table shortened, and nothing else.
ABBREVIATIONS = {
    "attention": "att",
    "classifier": "cls",
    "deeplabv3plus": "dlv3p",
    "fold": "f",
    "inference": "inf",
    "multitask": "multi",
    "part": "p",
    "pneumothorax": "ptx",
    "resnet": "rn",
    "script": "py",
    "seed": "s",
    "supervision": "sup",
    "thresholds": "thr",
    "unetresnet": "unet",
}


def slug(
    stage: str,
    kind: str,
    given: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
    part: int | None = None,
) -> str:
    """A kernel's name in addresses and folders; both kinds of a stage can stand side by side.

    Without parameters it is the stage's own kernel. With parameters it says row, seed and fold (or
    the ensemble), and ends in a hash where it cannot say all: others are set, or it had to be cut.
    `defaults` are the notebook's, `part` is the session's number in a chain.
    """
    given, defaults = dict(given or {}), dict(defaults or {})
    if "EXPERIMENT" in given or "NAME" in given:
        row = experiment_file.trained(str(given.get("EXPERIMENT", defaults.get("EXPERIMENT"))))
        given["EXPERIMENT"] = given.get("NAME") or row
    shown, whole = _shown(stage, defaults | given) if given else ([], True)
    rest = {k: v for k, v in given.items() if k not in _SHOWN[stage] and v != defaults.get(k)}
    tail = ["script"] * (kind == "script") + ([] if part is None else [f"part{part}"])
    # Everything that makes this kernel another: what is shown counts too, since it may be cut.
    effective = {k: (defaults | given).get(k) for k in _SHOWN[stage]} | rest
    text = json.dumps([stage, kind, effective], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()[:_HASH_LENGTH]
    hashed = [digest] if rest or not whole else []
    head = "-".join([*([stage] if shown else ["pneumothorax", stage]), *shown])
    name = "-".join([head, *tail, *hashed])
    if len(name) <= MAX_LENGTH:
        return name
    # A word that looks shortened already would make two names one.
    if set(re.sub(r"[0-9]+(?![^-])", "", head).split("-")) & set(ABBREVIATIONS.values()):
        hashed = [digest]
    head, tail = shorten(head), [shorten(word) for word in tail]
    name = "-".join([head, *tail, *hashed])
    if len(name) <= MAX_LENGTH:
        return name
    end = "-".join(["", *tail, digest])
    return head[: MAX_LENGTH - len(end)].rstrip("-") + end


def title(name: str) -> str:
    """The title of a slug; Kaggle makes the slug of it."""
    return name.replace("-", " ").capitalize()


def slugify(text: str) -> str:
    """Kaggle's slug of a title: lower case, everything else than letters and digits one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def shorten(text: str) -> str:
    """A slug with the words of `ABBREVIATIONS` shortened; a number at a word's end stays."""

    def short(word: re.Match) -> str:
        return ABBREVIATIONS.get(word["word"], word["word"]) + word["number"]

    return re.sub(r"(?<![^-])(?P<word>[a-z][a-z0-9]*?)(?P<number>[0-9]*)(?![^-])", short, text)


def _shown(stage: str, values: Mapping[str, object]) -> tuple[list[str], bool]:
    """The words that a name says of these parameters, and whether they say all of them."""
    words, whole = [], True
    for name, form in _SHOWN[stage].items():
        value = values.get(name)
        if value is None:
            continue
        words.append(slugify(form.format(value)))
        # `a,b` and `a+b` become the same words; letters' case does not tell names apart.
        whole = whole and bool(re.fullmatch(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*", str(value)))
    return [word for word in words if word], whole
