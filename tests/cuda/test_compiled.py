"""Every CUDA source compiles for every architecture, and no kernel spills."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURES = (80, 90, 100, 120)
SOURCES = sorted(path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
HOST_SOURCES = sorted(path.name for path in (ROOT / "csrc" / "cuda").glob("*.cpp"))

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@functools.cache
def toolkit() -> Path:
    """Return the folder of the CUDA toolkit, as nvcc reports it, since the nvcc on PATH may be a script."""
    dry = subprocess.run(["nvcc", "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    (top,) = re.findall(r"^#\$ TOP=(.+)$", dry.stderr, re.MULTILINE)
    return Path(top)


@pytest.mark.parametrize("source", SOURCES)
def test_compiles_without_spills(source: str, tmp_path: Path) -> None:
    command = ["nvcc", "-std=c++20", "-O3", "-Xptxas", "-v", "--threads", "2", "-c", f"csrc/cuda/{source}"]
    for architecture in ARCHITECTURES:
        command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    done = subprocess.run([*command, "-o", str(tmp_path / "x.o")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = done.stdout + done.stderr
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    assert {int(architecture) for _, architecture, *_ in found} == set(ARCHITECTURES)
    assert len(found) == report.count("Compiling entry function")
    spilling = [f"{name} on sm_{arch}" for name, arch, stores, loads, _ in found if (stores, loads) != ("0", "0")]
    assert not spilling
    most = max(int(registers) for *_, registers in found)
    print(f"{source}: {len(found)} kernels, at most {most} registers")


@pytest.mark.parametrize("source", HOST_SOURCES)
def test_host_code_compiles(source: str, tmp_path: Path) -> None:
    """Also with a torch built without CUDA: it has the same headers of the stable ABI."""
    from torch.utils import cpp_extension

    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Werror=return-type", "-fvisibility=hidden"]
    command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += [f"-I{path}" for path in cpp_extension.include_paths()] + [f"-I{toolkit() / 'include'}"]
    done = subprocess.run([*command, f"csrc/cuda/{source}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
