"""Figures of cases as one Markdown table, padded so that it reads as well in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.harness import OURS

HEADER = ("case", "provider", "median ms [q1, q3]", "vs eager", "peak MiB", f"{OURS} against the others")


def rivals(figures: Mapping[str, Any], outcome: str) -> list[str]:
    """Name the providers against whom ours has an outcome, "loses" or "level".

    A rival that was faster in at least three rounds of four beats us; one faster in one to three of four is level.
    """
    names = []
    for name, provider in figures["providers"].items():
        speedup = provider.get("ours_speedup")
        if name == OURS or speedup is None:
            continue
        if {"loses": speedup["q3"] < 1, "level": speedup["q1"] <= 1 <= speedup["q3"]}[outcome]:
            names.append(name)
    return names


def verdict(figures: Mapping[str, Any]) -> str:
    """Say against whom ours loses or is level, and by what ratio of times."""
    parts = []
    for outcome, words in (("loses", "LOSES to"), ("level", "level with")):
        for name in rivals(figures, outcome):
            parts.append(f"{words} {name}: {figures['providers'][name]['ours_speedup']['median']:.2f}x")
    return "; ".join(parts) or "fastest"


def held(figures: Mapping[str, Any]) -> str:
    """Say what providers hold between forward and backward (see benchmarks/held.py)."""
    baseline, *others = figures["held"]
    words = {"process_mib": "of process memory", "allocated_mib": "allocated", "saved_mib": "in saved tensors"}
    parts = []
    for key, word in words.items():
        base = figures["held"][baseline][key]
        rivals = ", ".join(f"{name} {figures['held'][name][key]:.1f}" for name in others)
        share = figures["held"][others[-1]][key] / base
        parts.append(f"{baseline} {base:.1f} MiB {word}, {rivals} ({share:.2f})")
    return f"{figures['case']}, held before backward: {'; '.join(parts)}."


def markdown(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table whose first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def render(cases: Iterable[Mapping[str, Any]]) -> str:
    """Render the table, below it what was skipped and why, and the balance of cases."""
    cases = list(cases)
    rows: list[tuple[str, ...]] = [HEADER]
    notes = []
    for figures in cases:
        label = figures["case"]
        for name, provider in figures["providers"].items():
            ms = provider["time_ms"]
            rows.append(
                (
                    label,
                    name,
                    f"{ms['median']:.4g} [{ms['q1']:.4g}, {ms['q3']:.4g}]",
                    f"{provider['speedup']['median']:.2f}x",
                    f"{provider['peak_memory_mib']:.3g}",
                    verdict(figures) if name == OURS else "",
                )
            )
            label = ""
        notes += [held(figures)] if "held" in figures else []
        notes += [f"{figures['case']}: no {name}: {reason}" for name, reason in figures["skipped"].items()]
    lines = markdown(rows)
    ours = [figures for figures in cases if OURS in figures["providers"]]
    lost = sum(bool(rivals(figures, "loses")) for figures in ours)
    level = sum(bool(rivals(figures, "level")) and not rivals(figures, "loses") for figures in ours)
    notes.append(f"{OURS}: {len(ours)} cases, fastest in {len(ours) - lost - level}, level in {level}, lost {lost}.")
    return "\n".join([*lines, "", *notes])
