"""Every Triton kernel compiles for every architecture within its registers and shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_device import needs_triton

ROOT = Path(__file__).parents[2]
# Architecture -> the most bytes of shared memory that one block can use.
SHARED = {80: 166912, 90: 232448, 100: 232448, 120: 101376}


@needs_triton
@pytest.mark.parametrize(("architecture", "first"), zip(SHARED, (0, 1, 0, 1)))
def test_compiles_without_spills(architecture: int, first: int, tmp_path: Path) -> None:
    """Each case on two of the four architectures, each kernel on all; ``benchmarks.compiled`` compiles all of it."""
    found = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.compiled", "--arch", str(architecture),
         "--every", "2", "--first", str(first), "--json", str(found)],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "0"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    binaries = json.loads(found.read_text())
    assert len({b["kernel"] for b in binaries}) == 24
    for b in binaries:
        assert b["spills"] == 0, b
        assert b["shared_bytes"] <= SHARED[architecture], b
        # Loads are 16 bytes wide if rows are aligned to 16 bytes. These cases have rows that are not:
        unaligned = any(size in b["case"] for size in ("67", "17 ->", "3 -> 64", "100 ->"))
        # These read little: a loss has a few hundred logits, a discrimination kernel some ten components.
        unaligned = unaligned or "adversarial" in b["case"] or "discrimination" in b["case"]
        # Merging kernels read few sums.
        if not unaligned and not b["kernel"].startswith(("finish", "merge_norms")):
            # A kernel that draws a number per value handles four adjacent values per thread.
            draws = b["kernel"].startswith(("perturb", "add_noise"))
            assert b["load_bits"] == (64 if draws and "float32" not in b["case"] else 128), b
        if b["kernel"].startswith("leaky_relu"):
            assert b["store_bits"] == 128, b
            # A multiprocessor's 65536 registers must suffice for 768 threads with eight loads in flight each.
            assert b["registers"] <= 80, b
            assert b["shared_bytes"] == 0, b
