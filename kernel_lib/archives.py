"""Zip archives from outside, read within bounds of size and against their checksums."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

from kernel_lib.errors import InputError

# What reading a damaged archive raises: its tables, compression, encryption, file names.
FAULTS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, KeyError, OSError,
    OverflowError, RuntimeError, ValueError, MemoryError,
)  # fmt: skip


class ArchiveError(InputError):
    """A fault of an archive, in a message that does not name the archive."""


def opened(source: Path | IO[bytes]) -> zipfile.ZipFile:
    """Return the open archive, its list of members read.

    Raises:
        FileNotFoundError: There is no such file.
        ArchiveError: It is damaged, or lists a member twice.
    """
    try:
        archive = zipfile.ZipFile(source)
    except FileNotFoundError:
        raise
    except FAULTS as error:
        raise ArchiveError(str(error) or type(error).__name__) from error
    names = archive.namelist()
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ArchiveError(f"it holds {repeated!r} twice")
    return archive


def read(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """Return a member, unpacked no further than its bound; raise ArchiveError for a larger one."""
    try:
        with archive.open(name) as member:
            content = member.read(max_bytes + 1)  # a wrong checksum raises at the end
    except FAULTS as error:
        raise ArchiveError(f"{name}: {error or type(error).__name__}") from error
    if len(content) > max_bytes:
        raise ArchiveError(f"{name} unpacks to more than {max_bytes:,} bytes")
    return content
