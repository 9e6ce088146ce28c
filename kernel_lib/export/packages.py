"""The optional packages that write files, of the extra `export`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from kernel_lib.errors import InputError


def highdicom() -> ModuleType:
    """Return the package. Raises: InputError where it is not installed."""
    with _named():
        import highdicom
    return highdicom


def nibabel() -> ModuleType:
    """Return the package. Raises: InputError where it is not installed."""
    with _named():
        import nibabel
    return nibabel


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, and this export needs it: pip install .[export]"
        ) from None
