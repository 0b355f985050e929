"""Every Triton kernel compiles for every architecture, in registers and shared memory that it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_device import needs_triton

ROOT = Path(__file__).parents[2]
# Bytes of shared memory that one block may have.
SHARED = {80: 166912, 90: 232448, 100: 232448, 120: 101376}


@needs_triton
@pytest.mark.parametrize("architecture", SHARED)
def test_compiles_without_spills(architecture: int, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks.compiled", "--arch", str(architecture), "--json", str(found)],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "0"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    binaries = json.loads(found.read_text())
    assert len({b["kernel"] for b in binaries}) == 24
    for b in binaries:
        assert b["spills"] == 0, b
        assert b["shared_bytes"] <= SHARED[architecture], b
        # Sixteen bytes at a time where rows begin at sixteen bytes.
        ragged = any(size in b["case"] for size in ("67", "17 ->", "3 -> 64", "100 ->"))
        # A loss is a few hundred bytes, a sample's components under one kernel are some ten.
        ragged = ragged or "adversarial" in b["case"] or "discrimination" in b["case"]
        # What merges sums reads few of them.
        if not ragged and not b["kernel"].startswith(("finish", "merge_norms")):
            # Of what is drawn for itself a thread has four neighbours.
            draws = b["kernel"].startswith(("perturb", "add_noise"))
            assert b["load_bits"] == (64 if draws and "float32" not in b["case"] else 128), b
        if b["kernel"].startswith("leaky_relu"):
            assert b["store_bits"] == 128, b
            # Of a multiprocessor's 65536 registers at least 768 threads, each with eight loads under way.
            assert b["registers"] <= 80, b
            assert b["shared_bytes"] == 0, b
