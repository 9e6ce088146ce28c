"""Facts about the test images of a submission, in `test.json` beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from kernel_lib import storage
from kernel_lib.artifacts.filenames import TEST_RUN
from kernel_lib.errors import InputError
from kernel_lib.postprocess.nested_cv_report import TestSummary


@dataclass(frozen=True)
class TestRun:
    """Facts about a submission's test images."""

    summary: TestSummary
    unreadable: tuple[str, ...]  # ids of images that got an empty mask
    area_px: tuple[float, ...]  # of every mask submitted, px of 1024²
    trained_on: tuple[str, ...] = ()  # a line for each image that a member was trained on

    __test__ = False  # the name is no test case to pytest

    @property
    def areas(self) -> np.ndarray:
        """The areas of the masks that are not empty, px of 1024²."""
        areas = np.array(self.area_px)
        return areas[areas > 0]

    def save(self, folder: Path) -> None:
        document = {
            "summary": self.summary.to_json(),
            "unreadable": self.unreadable,
            "area_px": self.area_px,
            "trained_on": self.trained_on,
        }
        storage.write_json(folder / TEST_RUN, document)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Return None where the inference stage has not run; InputError for a damaged file."""
        path = folder / TEST_RUN
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                summary=TestSummary.from_json(document["summary"]),
                unreadable=tuple(document["unreadable"]),
                area_px=tuple(document["area_px"]),
                trained_on=tuple(document.get("trained_on", ())),  # not looked for once
            )
        except (*storage.DAMAGED_FILE_ERRORS, AttributeError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}): run the inference stage") from error
