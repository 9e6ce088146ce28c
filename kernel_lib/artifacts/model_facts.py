"""The facts about a network that is published: all that prediction needs besides its weights.

Stored in a model file's metadata, a dictionary of texts. This module needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment
from kernel_lib.postprocess.triplet import Triplet

GATES = ("none", "label", "sum")  # as of an ensemble
DAMAGED = (
    ValidationError,
    ValueError,
    RuntimeError,
    TypeError,
)  # errors for invalid texts, besides KeyError


@dataclass(frozen=True)
class ModelFacts:
    """A network's experiment, how its maps become masks, and where it comes from."""

    name: str
    experiment: Experiment
    rule: Triplet
    gate: str  # what the rule's label threshold, if it has one, is compared with: one of GATES
    tta: str
    lineage: Lineage  # every image that the network was trained on
    score: dict[str, Any]  # honest score, for documentation
    licence: str

    def to_metadata(self) -> dict[str, str]:
        """Return the facts as texts by name."""
        return {
            "name": self.name,
            "experiment": compact(self.experiment.model_dump(mode="json")),
            "rule": compact(self.rule.to_json()),
            "gate": self.gate,
            "tta": self.tta,
            "lineage": compact(self.lineage.to_json()),
            "score": compact(self.score),
            "licence": self.licence,
        }

    @staticmethod
    def from_metadata(metadata: Mapping[str, str]) -> ModelFacts:
        """Return the facts from texts by `to_metadata`; other names are ignored.

        Raises: KeyError for a missing name, an error of DAMAGED for an invalid text.
        """
        if metadata["gate"] not in GATES:
            raise ValueError(f"its gate is {metadata['gate']!r}, none of {', '.join(GATES)}")
        return ModelFacts(
            name=metadata["name"],
            experiment=Experiment.model_validate_json(metadata["experiment"]),
            rule=Triplet.from_json(json.loads(metadata["rule"])),
            gate=metadata["gate"],
            tta=metadata["tta"],
            lineage=Lineage.model_validate_json(metadata["lineage"]),
            score=json.loads(metadata["score"]),
            licence=metadata["licence"],
        )


def compact(value: Any) -> str:
    """Return JSON without spaces. Raises: ValueError for a number that is not finite."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
