"""The optional packages of the extra `export`, which write the files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from kernel_lib.errors import InputError


def highdicom() -> ModuleType:
    """Return the package. Raises: InputError if it is not installed."""
    with _import_errors():
        import highdicom
    return highdicom


def nibabel() -> ModuleType:
    """Return the package. Raises: InputError if it is not installed."""
    with _import_errors():
        import nibabel
    return nibabel


@contextmanager
def _import_errors() -> Iterator[None]:
    """Turn a missing package into an InputError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed, and this export needs it: pip install .[export]"
        ) from None
