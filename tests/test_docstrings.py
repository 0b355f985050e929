"""Public modules have an example that runs; public names say what they do and what each argument is."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest

import gan_fast
from gan_fast import ops

PACKAGES = ("", "ops", "nn", "models", "objectives", "data", "metrics", "train", "export")


def _public_names() -> dict[str, object]:
    """Return the functions and classes that the public packages export, by full name."""
    found: dict[str, object] = {}
    for package in (importlib.import_module(".".join(filter(None, ("gan_fast", name)))) for name in PACKAGES):
        # A module without __all__ exports what it defines.
        names = getattr(package, "__all__", None) or [
            name
            for name, value in vars(package).items()
            if not name.startswith("_") and getattr(value, "__module__", "") == package.__name__
        ]
        for name in names:
            value = getattr(package, name)
            if isinstance(value, (type, FunctionType)):
                found[f"{package.__name__}.{name}"] = value
    return found


PUBLIC = _public_names()
EXCEPTIONS = {name for name, v in PUBLIC.items() if isinstance(v, type) and issubclass(v, BaseException)}
# The definition of an exception needs no example.
MODULES = sorted({v.__module__ for name, v in PUBLIC.items() if name not in EXCEPTIONS})


@pytest.mark.parametrize("name", MODULES)
def test_example_of_module_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    docstring = importlib.import_module(name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(docstring, {}, name, None, None)
    assert example.examples, f"{name}: expected an example (>>>) in the module docstring"
    log: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(example, out=log.append).failed
    assert not failed, "".join(log)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring(name: str) -> None:
    # inspect.getdoc would also find the docstring of a base class.
    assert vars(PUBLIC[name]).get("__doc__") if isinstance(PUBLIC[name], type) else PUBLIC[name].__doc__


def _documented(docstring: str) -> set[str]:
    """Return the parameters that the section "Args:" describes: entries such as "weight, bias: (C,) or None."."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n|\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    if section is None:
        return set()
    entries = re.findall(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):", section.group(1), re.MULTILINE)
    return {name.lstrip("*") for entry in entries for name in entry.split(", ")}


@pytest.mark.parametrize("name", [name for name in ops.__all__ if f"gan_fast.ops.{name}" not in EXCEPTIONS])
def test_op_documents_every_parameter(name: str) -> None:
    op = getattr(gan_fast.ops, name)
    missing = set(inspect.signature(op).parameters) - _documented(op.__doc__ or "")
    assert not missing, f"ops.{name}: expected Args to describe {', '.join(sorted(missing))}"
