"""Zip archives of others: what they hold is read within bounds, and against its checksums."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

from kernel_lib.errors import InputError

# All that reading a damaged archive raises: its tables, its packing, encryption, file names.
FAULTS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, OSError,
    OverflowError, RuntimeError, ValueError, MemoryError,
)  # fmt: skip


class ArchiveError(InputError):
    """What is wrong with an archive, in words that do not name it."""


def opened(source: Path | IO[bytes]) -> zipfile.ZipFile:
    """The archive, its list of members read. FileNotFoundError, else ArchiveError."""
    try:
        archive = zipfile.ZipFile(source)
    except FileNotFoundError:
        raise
    except FAULTS as error:
        raise ArchiveError(str(error) or type(error).__name__) from error
    names = archive.namelist()
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArchiveError(f"it holds {twice!r} twice")
    return archive


def read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member of at most so many bytes, unpacked no further than that; else ArchiveError."""
    try:
        with archive.open(name) as member:
            content = member.read(most + 1)  # a checksum that differs raises at the member's end
    except FAULTS as error:
        raise ArchiveError(f"{name}: {error or type(error).__name__}") from error
    if len(content) > most:
        raise ArchiveError(f"{name} unpacks to more than {most:,} bytes")
    return content
