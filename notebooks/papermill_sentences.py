"""Show an InputError of a notebook as one line on papermill's console, without papermill's frames.

A notebook cannot change the process that runs it. `make setup` therefore copies this file into the
environment, with a `.pth` file by which every Python there imports it at its start.
"""

import sys
from types import TracebackType


def show(
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    before=sys.excepthook,
) -> None:
    """Print only the message of a notebook's InputError; show any other error as before."""
    shown = getattr(error, "traceback", None)  # what the cell shows, as PapermillExecutionError
    if shown and shown == [f"Error: {getattr(error, 'evalue', None)}"]:
        print(shown[0], file=sys.stderr)
    else:
        before(kind, error, trace)


if any("papermill" in word for word in sys.orig_argv[1:3]):
    sys.excepthook = show
