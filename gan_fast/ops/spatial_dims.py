"""One function for 1, 2 and 3 dims of space."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def for_1d_2d_3d(function: Callable[Concatenate[int, P], T]) -> tuple[Callable[P, T], Callable[P, T], Callable[P, T]]:
    """Return ``function`` for 1, 2 and 3 dims of space.

    Args:
        function: takes the number of dims first. Of its name, and of names in its docstring before an underscore, a
            quote or a bracket, ``nd`` becomes ``1d``, ``2d``, ``3d``.
    """
    return _of(function, 1), _of(function, 2), _of(function, 3)


def _of(function: Callable[Concatenate[int, P], T], dims: int) -> Callable[P, T]:
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(dims, *args, **kwargs)

    functools.update_wrapper(call, function)
    del call.__dict__["__wrapped__"]
    call.__name__ = call.__qualname__ = re.sub(r"nd(?=_|$)", f"{dims}d", function.__name__)
    call.__doc__ = re.sub(r"(?<=[a-z])nd(?=[_`(])", f"{dims}d", function.__doc__ or "")
    signature = inspect.signature(function)
    call.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return call
