"""Make the 1-d, 2-d and 3-d versions of a function."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def for_1d_2d_3d(function: Callable[Concatenate[int, P], T]) -> tuple[Callable[P, T], Callable[P, T], Callable[P, T]]:
    """Return ``function`` for one, two and three spatial dims.

    Args:
        function: takes the number of spatial dims first. The "nd" in its name, and in names in its docstring, becomes
            "1d", "2d" and "3d".
    """
    return _for_dims(function, 1), _for_dims(function, 2), _for_dims(function, 3)


def _for_dims(function: Callable[Concatenate[int, P], T], dims: int) -> Callable[P, T]:
    name = re.sub(r"nd(?=_|$)", f"{dims}d", function.__name__)
    # A renamed copy, because Python names the function in its errors about missing and unknown arguments.
    named = types.FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    named.__qualname__ = name
    named.__kwdefaults__ = function.__kwdefaults__

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return cast(T, named(dims, *args, **kwargs))

    functools.update_wrapper(call, function)
    # inspect would show the wrapped function's signature, with its number of dims.
    del call.__dict__["__wrapped__"]
    call.__name__ = call.__qualname__ = name
    call.__doc__ = re.sub(r"(?<=[a-z])nd(?=[_`(])", f"{dims}d", function.__doc__ or "")
    signature = inspect.signature(function)
    call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return call
