"""The house keeps its order: imports point one way, documents and code agree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gan_fast"

# A room may import itself and the rooms named here; docs/architecture.md draws the same.
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "choices": set(),
    "extension": set(),
    "memory_format": set(),
    "capture": set(),
    "files": set(),
    "fp32_precision": set(),
    "tuning": {"version", "capture"},
    "backends": {"extension", "triton_kernels", "tuning", "version"},
    "triton_kernels": {"memory_format"},
    "ops": {"backends", "extension", "fp32_precision", "memory_format"},
    "nn": {"backends", "ops", "memory_format"},
    "self_check": {"backends", "fp32_precision", "ops"},
    "models": {"choices", "nn", "ops"},
    "objectives": {"choices", "ops"},
    "data": set(),
    "metrics": set(),
    "train": {
        *("backends", "capture", "choices", "data", "files", "fp32_precision", "metrics", "models", "nn", "objectives"),
        *("ops", "version"),
    },
    "export": {"files", "backends", "ops", "nn"},
    "cli": {"train", "export", "files", "models", "data", "metrics", "backends", "self_check", "version"},
    "__main__": {"cli"},
    "__init__": {"backends", "export", "models", "nn", "ops", "train", "version"},
}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.stem if len(relative.parts) == 1 else relative.parts[0]


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("gan_fast.")}
    return rooms


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(path)
    extra = imported_rooms(path) - MAY_IMPORT[room] - {room}
    assert not extra, f"{room} imports {sorted(extra)}"


def test_every_op_has_its_files() -> None:
    """One op, end to end: kernel, Python, test, benchmark, as CONTRIBUTING.md lists them."""
    for kernel in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
        op = kernel.stem
        for file in (f"gan_fast/ops/{op}.py", f"tests/ops/test_{op}.py", f"benchmarks/bench_{op}.py"):
            assert (ROOT / file).exists(), f"{op} has no {file}"


def test_every_native_op_has_a_schema_a_kernel_and_a_fake() -> None:
    schemas = set(re.findall(r'"(\w+)\(', (ROOT / "csrc" / "schema.cpp").read_text()))
    kernels = {
        name
        for path in (ROOT / "csrc" / "cpu").glob("*.cpp")
        for name in re.findall(r'm\.impl\("(\w+)"', path.read_text())
    }
    fakes = {
        name
        for path in (PACKAGE / "ops").glob("*.py")
        for name in re.findall(r'dispatch\.register\(\s*"(\w+)"', path.read_text())
    }
    assert schemas == kernels == fakes


def test_documents_name_files_that_exist() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"`((?:csrc|gan_fast|tests|benchmarks|docs|examples)/[\w./-]+)`", document.read_text()):
            assert (ROOT / name).exists(), f"{document.name} names {name}"
        for link in re.findall(r"\]\(([\w./-]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
