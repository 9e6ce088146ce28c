"""The one error that means: what you gave cannot be used, and here is how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_FEW = 6  # names that an error lists in full where none is near
_NEAR = 0.4  # of difflib's ratio


class InputError(ValueError):
    """A user's file or setting cannot be used; the message names it and how to fix it."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows for it: IPython asks for this instead of a traceback."""
        return [f"Error: {self}"]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return up to three known names near a wrong one, the best first, as a list in words.

    A name that contains the wrong one is near, whatever its length and case.
    """
    wrong, names = name.lower(), list(known)
    likeness = {
        one: difflib.SequenceMatcher(None, one.lower(), wrong).ratio()
        + (bool(wrong) and wrong in one.lower())
        for one in names
    }
    ranked = sorted(names, key=lambda one: -likeness[one])
    near = [one for one in ranked if likeness[one] >= _NEAR]
    return ", ".join(near[:3] or (names if len(names) <= _FEW else ranked[:3]))
