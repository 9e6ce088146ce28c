"""The one error that means: what you gave cannot be used, and here is how to fix it."""

from __future__ import annotations


class InputError(ValueError):
    """A user's file or setting cannot be used; the message names it and how to fix it."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows for it: IPython asks for this instead of a traceback."""
        return [f"Error: {self}"]
