"""Descriptions of dataclass fields, which are strings below the fields, for ``help()`` and the command line.

This module must not import torch: the command line uses it before it needs torch.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def field_texts(owner: type) -> Mapping[str, str]:
    """Return the string below each field of a class, on one line; empty if there is no source file."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except OSError:
        return {}
    texts = {}
    for statement, below in itertools.pairwise(getattr(definition, "body", [])):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = getattr(below, "value", None)
            if isinstance(below, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[statement.target.id] = " ".join(value.value.split())
    return texts


def documents_fields(owner: type[_T]) -> type[_T]:
    """Decorate a dataclass: add its fields to its docstring, and show plain types in its signature."""
    if owner.__doc__:
        owner.__doc__ = _DocWithFields(owner)  # type: ignore[assignment]
    vars(owner)["__init__"].__annotations__ = {**get_type_hints(owner), "return": None}
    return owner


class _DocWithFields:
    """A class docstring with a section of the fields. It is composed when it is read, so that imports stay fast."""

    def __init__(self, owner: type) -> None:
        self._owner, self._doc = owner, inspect.cleandoc(owner.__doc__ or "")

    def __get__(self, instance: object, owner: type | None = None) -> str:
        return self._text

    @functools.cached_property
    def _text(self) -> str:
        hints = get_type_hints(self._owner, include_extras=True)
        entries = [
            textwrap.fill(
                f"{name} ({_type_text(hints[name])}): {text}", 100, initial_indent=" " * 4, subsequent_indent=" " * 8
            )
            for name, text in field_texts(self._owner).items()
        ]
        return "\n".join([self._doc, "", "Attributes:", *entries]) if entries else self._doc


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return ", or ".join("None" if a is type(None) else _type_text(a) for a in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple:
        length = "any length" if arguments[-1] is Ellipsis else f"length {len(arguments)}"
        return f"tuple of {length}, each {_type_text(arguments[0])}"
    if origin is Annotated:
        return f"{arguments[0].__name__}, {arguments[1]}"
    return str(hint.__name__)
