"""Reports to dicts for JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kernel_lib.errors import InputError

T = TypeVar("T")


def to_plain(value: Any, leave_out: Collection[str] = ()) -> Any:
    """Dicts, lists, texts and numbers of a dataclass of such; nan, which JSON lacks, is None.

    A field whose default is None is left out where it holds that.
    """
    if is_dataclass(value):
        return {
            one.name: to_plain(getattr(value, one.name))
            for one in fields(value)
            if one.name not in leave_out
            and not (one.default is None and getattr(value, one.name) is None)
        }
    if isinstance(value, tuple | list):
        return [to_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def from_plain(kind: type[T], values: Any, leave_out: Collection[str] = ()) -> T:
    """What `to_plain` was given, from the dataclass's annotations.

    Fields whose default is None may be absent, as in what versions wrote that did not have them.

    Raises: InputError naming the fields that are missing or unknown.
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        names = {one.name for one in fields(kind)} - set(leave_out)
        given = set(values) if isinstance(values, dict) else set()
        names -= {one.name for one in fields(kind) if one.default is None} - given
        wrong = sorted(names ^ given)
        if wrong:
            raise InputError(
                f"a {kind.__name__} lacks or does not know {', '.join(wrong)}: "
                "it was written by another version, make it again"
            )
        return kind(**{name: from_plain(hints[name], values[name]) for name in names})
    if get_origin(kind) is UnionType:  # of a type and None, which is never written
        return from_plain(next(one for one in get_args(kind) if one is not NoneType), values)
    if get_origin(kind) is tuple:
        return tuple(from_plain(get_args(kind)[0], one) for one in values)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a named tuple of numbers
        return kind(*(from_plain(float, one) for one in values))
    return math.nan if kind is float and values is None else values
