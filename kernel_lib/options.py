"""Options of what a row names: a function's keyword-only arguments, and nothing else.

Their names, bounds (pydantic's `Annotated`) and defaults stand in the signature alone, so that a
new loss or sampler with options is one function and one line of its registry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from pydantic import TypeAdapter, ValidationError

from kernel_lib.errors import InputError


def check(what: str, function: Callable, options: Mapping[str, float]) -> None:
    """InputError for an option that the function does not have, or a value out of its bounds."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    known = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option, value in options.items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InputError(f"{what} has no option {option!r}; {has}")
        try:
            TypeAdapter(known[option].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise InputError(
                f"{what}: {option} is {value!r}: {error.errors()[0]['msg']}; "
                f"the default is {known[option].default}"
            ) from None
