"""Dataclasses to dicts for JSON and back, by pydantic."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from kernel_lib.errors import InputError

NAN_AS_NULL = BeforeValidator(lambda value: math.nan if value is None else value)
JsonFloat = Annotated[float, NAN_AS_NULL]  # nan, which JSON lacks, is null in the file


class JsonDocument:
    """Base of the dataclasses that are stored as JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    def to_json(self) -> dict[str, Any]:
        """Return a dict for JSON, without fields that are None or excluded; nan becomes None."""
        return json.loads(_adapter(type(self)).dump_json(self, by_alias=True, exclude_none=True))

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Return what `to_json` was called on.

        Raises: InputError naming a field that is missing, unknown or of another type.
        """
        try:
            return _adapter(cls).validate_json(json.dumps(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "its content"
            raise InputError(
                f"a {cls.__name__} cannot be read ({where}: {first['msg']}): "
                "it was written by another version, make it again"
            ) from None


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)
