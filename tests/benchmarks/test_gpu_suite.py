from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_suite


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="gpu_suite: expected a GPU"):
        gpu_suite.main()


def test_keeps_what_was_found_when_a_part_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_part(name: str, out: Path) -> dict[str, Any]:
        if name == "norms":
            case = {"case": "a norm", "time_ms": {"median": 0.5, "q1": 0.4, "q3": 0.6}, "gb_per_s": 3000.0}
            return {"seconds": 1.0, "result": [case]}
        if name == "rates":
            return {"seconds": 1.0, "result": {"copy_gb_per_s": 4000.0, "bfloat16_tflop_per_s": 700.0}}
        return {"failed": "out of luck"}

    monkeypatch.setattr(gpu_suite, "run_part", run_part)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path), "--parts", "rates", "norms", "convolutions"])
    with pytest.raises(SystemExit) as ended:
        gpu_suite.main()
    assert ended.value.code
    found = json.loads((tmp_path / "suite.json").read_text())
    assert list(found) == ["rates", "norms", "convolutions"]
    printed = capsys.readouterr().out
    assert "| a norm | 0.5000 [0.4000, 0.6000] | 3000 GB/s | 75%" in " ".join(printed.split())
    assert "convolutions: FAILED: out of luck" in printed


def test_a_part_runs_alone_and_names_what_went_wrong(tmp_path: Path) -> None:
    found = gpu_suite.run_part("rates", tmp_path)
    assert ("failed" in found) != torch.cuda.is_available()


def test_all_parts_end_within_eight_minutes() -> None:
    assert sum(seconds for _, seconds in gpu_suite.PARTS.values()) <= 480
