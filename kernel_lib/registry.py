"""Registries: a name stands for an entry of a table, a wrong one is refused with the nearest.

Options of an entry are the keyword-only arguments of its function: their names, bounds (pydantic's
`Annotated`) and defaults stand in the signature alone, so that a new loss or sampler with options
is one function and one line of its table.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from kernel_lib.errors import InputError

Entry = TypeVar("Entry")
_FEW = 6  # names that are listed in full where none is near
_NEAR = 0.4  # difflib's ratio


def lookup(kind: str, name: str, table: Mapping[str, Entry], hint: str = "") -> Entry:
    """Return the entry of that name.

    Raises: InputError with the nearest names, then `hint`, where the table has no such name.
    """
    if name not in table:
        raise InputError(f"{kind} {name!r} is unknown; nearest: {nearest(name, table)}{hint}")
    return table[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return up to three known names near a wrong one, the best first, joined by commas.

    A name that contains the wrong one is near, whatever its length and case.
    """
    wrong, names = name.lower(), list(known)
    likeness = {
        known_name: difflib.SequenceMatcher(None, known_name.lower(), wrong).ratio()
        + (bool(wrong) and wrong in known_name.lower())
        for known_name in names
    }
    ranked = sorted(names, key=lambda known_name: -likeness[known_name])
    near = [known_name for known_name in ranked if likeness[known_name] >= _NEAR]
    return ", ".join(near[:3] or (names if len(names) <= _FEW else ranked[:3]))


def check_options(kind: str, function: Callable, options: Mapping[str, float]) -> None:
    """Raise InputError for an option that the function lacks, or a value out of its bounds."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"{kind} has no option {option!r}; {has}")
        try:
            TypeAdapter(known[option].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise InputError(
                f"{kind}: {option} is {value!r}: {error.errors()[0]['msg']}; "
                f"the default is {known[option].default}"
            ) from None
