"""Images that no training sees, and why: `left_out.json` in the working folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from kernel_lib import storage
from kernel_lib.artifacts.filenames import LEFT_OUT
from kernel_lib.errors import InputError

_COLON = re.compile(": ")


@dataclass(frozen=True)
class LeftOut:
    """A line "id: reason" for each image that training left out."""

    lines: tuple[str, ...] = ()

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        # An id, and a reason, may hold colons: every beginning that could be the id.
        return frozenset(line[: at.start()] for line in self.lines for at in _COLON.finditer(line))

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._beginnings

    def save(self, work: Path, name: str = LEFT_OUT) -> None:
        storage.write_json(work / name, list(self.lines))

    @classmethod
    def load(cls, roots: Sequence[Path]) -> Self:
        """Return that of the first root that holds one, else an empty one.

        Raises InputError where the file is damaged.
        """
        path = next((root / LEFT_OUT for root in roots if (root / LEFT_OUT).is_file()), None)
        if path is None:
            return cls()
        try:
            lines = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                raise ValueError("it is no list of lines")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path} is damaged ({error}): delete it, which leaves it out of reports, or run "
                "the train stage, which writes it again"
            ) from error
        return cls(tuple(lines))
