"""The roofline's bytes and operations against counts by hand."""

from __future__ import annotations

import sys

import pytest

from benchmarks import roofline

# GFLOP and bfloat16 megabytes of input, output and weight at batch 128, by hand.
BY_HAND = {"G1": (0.21, 3.8), "G2": (8.59, 10.5), "G3": (8.59, 13.6), "G4": (8.59, 25.4), "G5": (0.81, 19.9),
           "D1": (0.81, 19.9), "D2": (8.59, 25.4), "D3": (8.59, 13.6), "D4": (8.59, 10.5)}  # fmt: skip


def test_convolutions_match_counts_by_hand() -> None:
    convolutions = {k.layer: k for k in roofline.kernels(128) if k.name == "convolution"}
    for layer, (gflop, megabytes) in BY_HAND.items():
        assert convolutions[layer].flop / 1e9 == pytest.approx(gflop, abs=0.01)
        assert convolutions[layer].bytes / 1e6 == pytest.approx(megabytes, abs=0.06)


def test_times_are_bytes_and_operations_over_rates() -> None:
    (kernel,) = [k for k in roofline.kernels(128) if (k.layer, k.name) == ("G4", "normalize and activate")]
    assert kernel.bytes == 2 * 2 * 128 * 64 * 32 * 32
    assert kernel.memory_us(4800) == pytest.approx(33.55e6 / 4.8e12 * 1e6, rel=1e-3)
    assert kernel.compute_us(989) == 0


def test_iteration_matches_count_by_hand() -> None:
    assert roofline.step_flop(128) / 1e9 == pytest.approx(291, abs=0.5)
    assert roofline.step_flop(128) / roofline.NOMINAL_TFLOPS / 1e6 == pytest.approx(294, abs=1)  # us


def test_every_kernel_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["roofline", "--batch", "64"])
    roofline.main()
    printed = capsys.readouterr().out
    assert printed.count("| convolution ") == len(roofline.LAYERS)
    assert "at batch 64" in printed
