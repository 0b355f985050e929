"""The package keeps its layers: imports point one way, and every op has the files that it needs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gan_fast"

# What each layer (a module or a folder of the package) may import besides itself; docs/architecture.md draws the same.
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "choices": set(),
    "extension": set(),
    "memory_format": set(),
    "capture": set(),
    "field_docs": set(),
    "files": set(),
    "fp32_precision": set(),
    "tuning": {"version", "capture"},
    "backends": {"extension", "triton_kernels", "tuning", "version"},
    "triton_kernels": {"choices", "memory_format"},
    "ops": {"backends", "choices", "extension", "fp32_precision", "memory_format"},
    "nn": {"backends", "ops", "memory_format"},
    "self_check": {"backends", "fp32_precision", "ops"},
    "models": {"choices", "nn", "ops"},
    "objectives": {"choices", "ops"},
    "data": set(),
    "metrics": set(),
    "train": {
        *("backends", "capture", "choices", "data", "field_docs", "files", "fp32_precision", "metrics", "models", "nn"),
        *("objectives", "ops", "version"),
    },
    "export": {"files", "backends", "ops", "nn"},
    "cli": {
        *("train", "export", "field_docs", "files", "models", "data", "metrics", "backends", "ops", "self_check"),
        "version",
    },
    "__main__": {"cli"},
    "__init__": {"backends", "data", "export", "models", "nn", "objectives", "ops", "train", "version"},
}


def layer_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.stem if len(relative.parts) == 1 else relative.parts[0]


def imported_layers(path: Path) -> set[str]:
    layers = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        layers |= {name.split(".")[1] for name in names if name.startswith("gan_fast.")}
    return layers


@pytest.mark.parametrize("layer", sorted({layer_of(path) for path in PACKAGE.rglob("*.py")}))
def test_imports_point_one_way(layer: str) -> None:
    for path in PACKAGE.rglob("*.py"):
        if layer_of(path) == layer:
            extra = imported_layers(path) - MAY_IMPORT[layer] - {layer}
            assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_every_op_has_its_files() -> None:
    for kernel in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
        op = kernel.stem
        for file in (f"gan_fast/ops/{op}.py", f"tests/ops/test_{op}.py", f"benchmarks/bench_{op}.py"):
            assert (ROOT / file).exists(), f"{op} has no {file}"


def test_every_registered_op_has_a_schema_a_cpu_kernel_and_a_fake() -> None:
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
