"""The error of a file or setting that cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """A user's file or setting cannot be used; the message names it and how to fix it."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback."""
        return [f"Error: {self}"]
