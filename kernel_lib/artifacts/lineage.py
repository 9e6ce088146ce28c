"""Lineages: which images a checkpoint has seen, itself and through all that it descends from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from kernel_lib.config import Frozen
from kernel_lib.errors import InputError

Code = Annotated[str, Field(pattern=r"^([0-9]+:[A-Za-z0-9+/]*)?$")]  # of `data.fingerprint`


class Lineage(Frozen):
    """Which images a checkpoint has learnt from, itself and through all that it descends from."""

    images: tuple[str, ...] = Field((), strict=False)
    # By which the images are known under other ids, in their order, "" where there is none; an
    # image stands twice where ancestors had another picture under its id. Without any: ().
    fingerprints: tuple[Code, ...] = Field((), strict=False)
    groups: tuple[str, ...] = Field((), strict=False)  # patients, where they are known
    known: bool = True  # False: some ancestor's past is not known
    ancestors: tuple[str, ...] = Field((), strict=False)
    imagenet: str = ""  # the file of ImageNet weights at its beginning, and how it is known as such
    # Images by whose labels an epoch was selected, or training ended early, here or of an ancestor;
    # None: not known, as in what earlier versions wrote.
    chosen_on: tuple[str, ...] | None = Field(None, strict=False)

    @model_validator(mode="after")
    def _one_fingerprint_an_image(self) -> Self:
        if self.fingerprints and len(self.fingerprints) != len(self.images):
            raise ValueError(f"{len(self.fingerprints)} fingerprints of {len(self.images)} images")
        return self

    def chosen_by(self, image_ids: Iterable[str] | None) -> Lineage:
        """Return the lineage of these weights, selected by the labels of these images too."""
        known = self.chosen_on is not None and image_ids is not None
        chosen_on = tuple(sorted({*self.chosen_on, *image_ids})) if known else None
        return self.model_copy(update={"chosen_on": chosen_on})

    def selected_by(self, image_ids: Iterable[str]) -> bool:
        """Return whether labels of any of these images selected an epoch, or may have."""
        return self.chosen_on is None or not set(self.chosen_on).isdisjoint(image_ids)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each image with its fingerprint, "" where it has none."""
        codes = self.fingerprints or ("",) * len(self.images)
        return list(zip(self.images, codes, strict=True))

    def of_pairs(self, pairs: Sequence[tuple[str, str]]) -> Lineage:
        """Return the same lineage with these images and fingerprints."""
        images, codes = zip(*sorted(set(pairs)), strict=True) if pairs else ((), ())
        seen = {"images": images, "fingerprints": codes if any(codes) else ()}
        return self.model_copy(update=seen)

    def joined(self, other: Lineage, name: str) -> Lineage:
        """Return this lineage joined with that of a checkpoint `name`, from which it starts."""
        both = Lineage(
            groups=tuple(sorted({*self.groups, *other.groups})),
            known=self.known and other.known,
            ancestors=(*other.ancestors, name),
            imagenet=other.imagenet or self.imagenet,
            chosen_on=self.chosen_on,
        )
        return both.of_pairs([*self.pairs, *other.pairs]).chosen_by(other.chosen_on)

    def to_json(self) -> dict[str, Any]:
        """Return a dict for JSON, without fields that are empty and that earlier versions lack."""
        empty = {name for name in ("fingerprints", "imagenet") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=empty)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of what was trained on, shared by all checkpoints of a fold."""
        trained_on = {k: v for k, v in self.to_json().items() if k != "chosen_on"}
        return hashlib.sha256(json.dumps(trained_on, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _seen(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(self.images), frozenset(self.groups)

    def saw(self, image_id: str, group: str) -> bool:
        """Return whether the image, or another image of its patient, was trained on."""
        images, groups = self._seen
        return image_id in images or bool(group and group in groups)


UNKNOWN = Lineage(known=False)


def stated_lineage(meta: Mapping[str, Any], path: Path) -> Lineage:
    """Return the lineage that an archive of predictions states."""
    try:
        return Lineage.model_validate(meta["lineage"])
    except (KeyError, ValidationError) as error:
        raise InputError(
            f"{path} states no lineage ({error}): delete it and run its stage"
        ) from None


def check_lineage(meta: Mapping[str, Any], path: Path, wanted: str | None) -> None:
    """Refuse predictions that state another lineage than the checkpoints beside them have.

    wanted: digest of the checkpoints' lineage; None for folds of an earlier version.
    """
    if wanted is not None and wanted != stated_lineage(meta, path).digest():
        raise InputError(
            f"{path} states another lineage than the checkpoints beside it have: delete it and "
            "run the train stage there, which predicts again"
        )
