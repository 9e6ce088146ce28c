"""What a search of an ensemble has found so far (`search_kept.jsonl`, `search_last.jsonl`).

They lie in the ensemble's folder while the thresholds stage works there. A stage that was stopped
goes on from them; a complete one removes them.
"""

from __future__ import annotations

import hashlib
import json
from collections import UserDict
from pathlib import Path
from typing import Any

from kernel_lib import storage

_FORM = 1  # raised when the same inputs would give other entries


class SearchRecord(UserDict):
    """Entries by name, JSON values; each is in the file as soon as it is set."""

    def __init__(self, path: Path, inputs: Any) -> None:
        """Read the entries of an earlier search of the same inputs (JSON); drop those of another.

        A last line that was not written to its end is dropped too.
        """
        super().__init__()
        self._path = Path(path)
        text = json.dumps([_FORM, inputs], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        for line in self._lines(digest):
            self.data[line["name"]] = line["value"]
        self.n_found = len(self.data)  # entries of an earlier search
        with storage.atomic_write(self._path, "w", encoding="utf-8") as file:
            file.write(json.dumps({"inputs": digest}) + "\n")
            file.writelines(map(_line, self.data.items()))

    def _lines(self, digest: str) -> list[dict]:
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        try:
            first, *others = (json.loads(line) for line in lines if line.endswith("\n"))
            known = [line for line in others if line.keys() == {"name", "value"}]
            return known if first == {"inputs": digest} else []
        except (ValueError, AttributeError):
            return []  # damaged: it is searched again

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        with (
            storage.disk_full_as_input_error(self._path),
            self._path.open("a", encoding="utf-8") as file,
        ):
            file.write(_line((name, value)))


def _line(entry: tuple[str, Any]) -> str:
    return json.dumps(dict(zip(("name", "value"), entry, strict=True))) + "\n"
