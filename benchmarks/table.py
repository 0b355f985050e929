"""Render measured figures as Markdown tables, for the terminal, README.md and docs/benchmarks.md.

Usage: python -m benchmarks.table [--add SUITE.json]

Rewrites the text between the markers of README.md and docs/benchmarks.md from benchmarks/results. With --add it first
copies a result of benchmarks.gpu_suite there.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED, significant, stable

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results"

README_BEGIN = "<!-- readme-table -->"
DOCS_BEGIN = "<!-- benchmark-tables -->"
END = "<!-- end -->"

HEADER = ("case", "provider", "median ms [q1, q3]", "vs eager", "peak MiB", f"{GAN_FAST} against the others")
NOT_MEASURED, NOT_AVAILABLE = "not measured", "not available"


def gan_fast_speedup(provider: Mapping[str, Any]) -> Mapping[str, float] | None:
    """Return quartiles of a provider's time / gan_fast's time; results of before 2026-12 name them differently."""
    return provider.get("gan_fast_speedup", provider.get("ours_speedup"))


def unavailable(figures: Mapping[str, Any]) -> Mapping[str, str]:
    return figures.get("unavailable", figures.get("skipped", {}))


def ratio_text(ratio: Mapping[str, float]) -> str:
    """Return a ratio's median; its range where it is not stable."""
    if stable(ratio):
        return f"{ratio['median']:.2f}x"
    return f"not stable: {ratio['q1']:.2g} to {ratio['q3']:.2g}"


def time_text(ms: Mapping[str, float]) -> str:
    return f"{ms['median']:.3g}" if stable(ms) else f"{ms['q1']:.3g} to {ms['q3']:.3g}"


def rivals(figures: Mapping[str, Any], outcome: str) -> dict[str, Mapping[str, float]]:
    """Return the providers against which gan_fast has an outcome, "loses" or "level", with the ratios of times.

    gan_fast loses where the other was quicker in at least three rounds of four, and is level where it was quicker in
    one to three of four.
    """
    found = {}
    for name, provider in figures["providers"].items():
        speedup = gan_fast_speedup(provider)
        if name == GAN_FAST or speedup is None:
            continue
        if {"loses": speedup["q3"] < 1, "level": speedup["q1"] <= 1 <= speedup["q3"]}[outcome]:
            found[name] = speedup
    return found


def verdict(figures: Mapping[str, Any]) -> str:
    """Return the providers to which gan_fast loses or with which it is level, with the ratios of times."""
    parts = []
    for outcome, words in (("loses", "LOSES to"), ("level", "level with")):
        parts += [f"{words} {name}: {ratio_text(ratio)}" for name, ratio in rivals(figures, outcome).items()]
    return "; ".join(parts) or "fastest"


def saved_memory(figures: Mapping[str, Any]) -> str:
    """Return a line about the memory between forward and backward (see benchmarks/saved_memory.py)."""
    baseline, *others = figures["held"]
    words = {"process_mib": "of process memory", "allocated_mib": "allocated", "saved_mib": "in saved tensors"}
    parts = []
    for key, word in words.items():
        base = figures["held"][baseline][key]
        rest = ", ".join(f"{name} {figures['held'][name][key]:.1f}" for name in others)
        share = figures["held"][others[-1]][key] / base
        parts.append(f"{baseline} {base:.1f} MiB {word}, {rest} ({share:.2f})")
    return f"{figures['case']}, memory before backward: {'; '.join(parts)}."


def markdown(rows: Sequence[tuple[str, ...]], *, padded: bool = True) -> list[str]:
    """Return the lines of a table, ``padded`` for reading as text; the first row is the header."""
    widths = [max(map(len, column)) if padded else 1 for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def render(cases: Iterable[Mapping[str, Any]]) -> str:
    """Return a row for every provider of every case, then what was not available and why, then the counts."""
    cases = list(cases)
    rows: list[tuple[str, ...]] = [HEADER]
    notes = []
    for figures in cases:
        label = figures["case"]
        for name, provider in figures["providers"].items():
            ms = provider["time_ms"]
            variant = f" ({provider['variant']})" if "variant" in provider else ""
            rows.append(
                (
                    label,
                    name + variant,
                    f"{ms['median']:.4g} [{ms['q1']:.4g}, {ms['q3']:.4g}]",
                    ratio_text(provider["speedup"]),
                    f"{provider['peak_memory_mib']:.3g}",
                    verdict(figures) if name == GAN_FAST else "",
                )
            )
            label = ""
        notes += [saved_memory(figures)] if "held" in figures else []
        notes += [f"{figures['case']}: {name} {NOT_AVAILABLE}: {why}" for name, why in unavailable(figures).items()]
    return "\n".join([*markdown(rows), "", *notes, counts(cases)])


def counts(cases: Iterable[Mapping[str, Any]]) -> str:
    compared = [figures for figures in cases if GAN_FAST in figures["providers"]]
    lost = sum(bool(rivals(figures, "loses")) for figures in compared)
    level = sum(bool(rivals(figures, "level")) and not rivals(figures, "loses") for figures in compared)
    fastest = len(compared) - lost - level
    return f"{GAN_FAST}: {len(compared)} cases, fastest in {fastest}, level in {level}, lost {lost}."


def costliest(cases: Iterable[Mapping[str, Any]], count: int) -> str:
    """Return the cases that took longest and the part of it before timing, mostly torch.compile."""
    cases = list(cases)
    longest = sorted(cases, key=lambda figures: figures["case_s"], reverse=True)[:count]
    lines = [f"  {c['case_s']:.0f} s, of which {c['setup_s']:.0f} s before timing: {c['case']}" for c in longest]
    total = sum(figures["case_s"] for figures in cases)
    return "\n".join([f"{len(cases)} cases took {total / 60:.1f} minutes. The costliest:", *lines])


def column_of(provider: str) -> str | None:
    """Return the column that a provider belongs to, earlier names included; None for providers without a column."""
    if provider in (GAN_FAST, COMPILED):
        return provider
    if "our modules" in provider or not provider.startswith(EAGER):
        return None
    return TUNED if provider == TUNED or provider.startswith("eager tuned") else EAGER


def columns(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the quickest provider of each column; one that was not measured is missing."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, provider in figures["providers"].items():
        column = column_of(name)
        if column and (column not in found or provider["time_ms"]["median"] < found[column]["time_ms"]["median"]):
            found[column] = provider
    return found


def row(label: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a case's row: the time of each column in ms, then the quickest other column's time / gan_fast's time."""
    found = columns(figures)

    def cell(column: str) -> str:
        if column not in found:
            return NOT_AVAILABLE if column in unavailable(figures) else NOT_MEASURED
        return time_text(found[column]["time_ms"])

    others = [found[column] for column in (EAGER, TUNED, COMPILED) if column in found]
    ratio = None
    if others and GAN_FAST in found:
        ratio = gan_fast_speedup(min(others, key=lambda provider: provider["time_ms"]["median"]))
    cells = [cell(column) for column in (EAGER, TUNED, COMPILED, GAN_FAST)]
    return (label, *cells, ratio_text(ratio) if ratio else NOT_MEASURED)


def header(what: str) -> tuple[str, ...]:
    return (f"{what}, ms", EAGER, TUNED, COMPILED, GAN_FAST, "best other / gan_fast")


# README's rows and the beginnings of the names of their cases.
README_ROWS = {
    "DCGAN-64 generator": "DCGAN-64 generator forward + backward, batch 32 float32",
    "discriminator written by hand, after `fuse`": "fuse: handwritten_discriminator,",
    "transposed 4x4/2 block, 128 to 64 channels": "transposed 4x4/2 block 128 -> 64 channels, forward + backward",
    "batch norm and LeakyReLU, 64 maps of 32x32": "batch_norm_act forward + backward (32x64x32x32) float32",
    "WGAN-GP critic: losses, penalty, gradients": "WGAN-GP critic iteration, DCGAN-64 critic",
    "DCGAN-64 training step": "DCGAN iteration 64 px",
}
# The kinds of networks that are fused, by what takes most of their time (benchmarks/bench_fuse.py).
FUSED_KINDS = ("blocks of convolution, norm, activation", "other")


def readme_table(results: Iterable[Mapping[str, Any]]) -> str:
    """Return README's six rows from the latest run on a CPU; empty without one."""
    runs = [run for run in results if "cases" in run]
    if not runs:
        return ""
    run = max(runs, key=lambda run: run["date"])
    rows = [header("batch 32, forward and backward")]
    for label, beginning in README_ROWS.items():
        matching = [figures for figures in run["cases"] if figures["case"].startswith(beginning)]
        if matching:
            rows.append(row(label, min(matching, key=lambda figures: len(figures["case"]))))
    caption = f"Above 1x gan_fast wins. {_cpu_facts(run)}."
    return "\n".join([*markdown(rows, padded=False), "", *textwrap.wrap(caption, 120)])


def _cpu_facts(run: Mapping[str, Any]) -> str:
    return f"{run['device']}, {run['cores']} cores, {run['instruction_set']}, torch {run['torch']}, {_origin(run)}"


def docs_tables(results: Iterable[Mapping[str, Any]]) -> str:
    """Return docs/benchmarks.md's section of every machine."""
    return "\n\n".join(_cpu_section(run) if "cases" in run else _gpu_section(run) for run in results)


def _cpu_section(run: Mapping[str, Any]) -> str:
    cases = run["cases"]
    notes = [counts(cases)]
    notes += [_saved_memory_briefly(figures) for figures in cases if "held" in figures]
    notes += _fused_briefly(cases)
    reasons: dict[str, int] = {}
    for figures in cases:
        for name, why in unavailable(figures).items():
            reasons[f"{name}: {why}"] = reasons.get(f"{name}: {why}", 0) + 1
    notes += [f"{NOT_AVAILABLE} in {count} cases: {reason}" for reason, count in reasons.items()]
    rows = [header("case"), *(row(figures["case"], figures) for figures in cases)]
    lines = [f"- {note}" for note in notes]
    return "\n".join([f"### {run['device']}", "", f"{_cpu_facts(run)}.", "", *lines, "", *markdown(rows)])


def _saved_memory_briefly(figures: Mapping[str, Any]) -> str:
    mib = {provider: f"{kept['process_mib']:.1f} MiB" for provider, kept in figures["held"].items()}
    name = figures["case"].replace(" forward + backward", "")
    sizes = ", ".join(f"{provider} {size}" for provider, size in mib.items())
    return f"{name}: process memory kept between forward and backward: {sizes}."


def _fused_briefly(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each kind of fused networks, with the ratio to the quickest other provider."""
    lines = []
    for kind in FUSED_KINDS:
        ratios = {}
        for figures in cases:
            if figures["case"].startswith("fuse: ") and kind in figures["case"]:
                others = [p for column, p in columns(figures).items() if column != GAN_FAST]
                ratio = gan_fast_speedup(min(others, key=lambda p: p["time_ms"]["median"])) if others else None
                if ratio and stable(ratio):
                    ratios[figures["case"].removeprefix("fuse: ").split(",")[0]] = ratio["median"]
        if ratios:
            slow, quick = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
            lines.append(
                f"`fuse`, {len(ratios)} networks with stable ratios ({kind}): median "
                f"{statistics.median(ratios.values()):.2f}x, from {ratios[slow]:.2f}x ({slow}) to {ratios[quick]:.2f}x "
                f"({quick})."
            )
    return lines


def _origin(run: Mapping[str, Any]) -> str:
    commit, *changes = run["commit"].split(", ")
    return f"commit {', '.join([commit[:10], *changes])}, {run['date'][:10]}"


# What benchmarks.gpu_suite measures of the chip itself, and the rates that are compared with it.
COPY, PRODUCT = "copy", "product of bfloat16 matrices"
LIMITS = {"gb_per_s": COPY, "tflop_per_s": PRODUCT}
# The parts of benchmarks.gpu_suite that docs/benchmarks.md shows.
STEP_PARTS = ("step", "critic_iteration", "compiled_step", "autotuned_step", "large_step")
OP_PARTS = ("norms", "blocks", "losses", "leaky_relu", "penalty", "sample_norm_penalty", "noise")


def providers_of(suite: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield part, case, provider and its figures, of everything that benchmarks.gpu_suite found."""
    for part, found in suite["parts"].items():
        for record in found["records"]:
            for provider, figures in record.get("providers", {}).items():
                yield part, record["case"], provider, figures


def add_shares(suite: Mapping[str, Any]) -> None:
    """Add each rate as a share of the rate measured for the chip."""
    every = list(providers_of(suite))
    limits = {case: figures for part, case, _, figures in every if part == "rates"}
    for _, _, _, figures in every:
        for key, case in LIMITS.items():
            if key in figures and key in limits.get(case, {}):
                figures["share"] = significant(figures[key] / limits[case][key], 3)


class Failure(NamedTuple):
    where: str
    reason: str


def failures(suite: Mapping[str, Any]) -> list[Failure]:
    """Return every failed part, check and provider."""
    found = [Failure(name, part["failed"]) for name, part in suite["parts"].items() if "failed" in part]
    for name, part in suite["parts"].items():
        found += [Failure(f"{name}: {r['case']}", r["failed"]) for r in part["records"] if "failed" in r]
    found += [Failure(f"{part}: {case}: {name}", p["failed"]) for part, case, name, p in providers_of(suite)
              if "failed" in p]  # fmt: skip
    return found


def suite(found: Mapping[str, Any]) -> str:
    """Return all figures of benchmarks.gpu_suite as text, followed by what failed or was skipped."""
    rows: list[tuple[str, ...]] = [
        ("case", "provider", "median us [q1, q3]", "vs first", "rate", "of the chip's", "peak MiB")
    ]
    notes = []
    label = ""
    for _, case, provider, figures in providers_of(found):
        if "skipped" in figures:
            notes.append(f"{case}: {provider} {NOT_AVAILABLE}: {figures['skipped']}")
        if "launches" in figures:
            notes.append(f"{case}: {provider}: {figures['launches']}")
        if "time_ms" not in figures:
            continue
        us = {key: 1e3 * ms for key, ms in figures["time_ms"].items()}
        rows.append(
            (
                "" if case == label else case,
                provider,
                f"{us['median']:.4g} [{us['q1']:.4g}, {us['q3']:.4g}]",
                f"{figures['speedup']['median']:.2f}x",
                _rate(figures),
                _share(figures),
                f"{figures['peak_memory_mib']:.0f}" if "peak_memory_mib" in figures else "",
            )
        )
        label = case
    for name, part in found["parts"].items():
        for record in part["records"]:
            shown = {k: v for k, v in record.items() if k not in ("case", "providers", "baseline", "failed", "files")}
            notes += [f"{name}: {record['case']}: {json.dumps(shown)}"] if "providers" not in record else []
        notes.append(f"{name}: " + (f"skipped: {part['skipped']}" if "skipped" in part else f"{part['seconds']} s"))
    notes += [f"FAILED {failure.where}: {failure.reason.strip()}" for failure in failures(found)]
    facts = ", ".join(f"{key} {value}" for key, value in found.items() if key != "parts")
    return "\n".join([facts, "", *markdown(rows), "", *notes])


def _rate(figures: Mapping[str, Any]) -> str:
    parts = [f"{figures['gb_per_s']:.4g} GB/s"] if "gb_per_s" in figures else []
    parts += [f"{figures['tflop_per_s']:.4g} TFLOP/s"] if "tflop_per_s" in figures else []
    return ", ".join(parts)


def _share(figures: Mapping[str, Any]) -> str:
    return f"{figures['share']:.0%}" if "share" in figures else ""


def _gpu_section(run: Mapping[str, Any]) -> str:
    facts = f"{run['device']}, torch {run['torch']}, Triton {run['triton']}, {_origin(run)}"
    rates = [_rate(p) for part, _, _, p in providers_of(run) if part == "rates" and "time_ms" in p]
    facts += f"; measured rates: {', '.join(rates)}" if rates else ""
    lines = [f"### {run['device']}", "", f"{facts}."]
    for rows in (_step_rows(run), _op_rows(run)):
        lines += ["", *markdown(rows)] if len(rows) > 1 else []
    return "\n".join(lines)


def _gpu_ratio(speedup: Mapping[str, float]) -> str:
    return ratio_text(speedup) if {"q1", "q3"} <= speedup.keys() else f"{speedup['median']:.2f}x"


def _step_rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("step", "provider", "ms", "ratio", "peak MiB", "of the matrix rate")]
    seen = set()
    for part, case, provider, p in providers_of(run):
        if part in STEP_PARTS and "time_ms" in p and "failed" not in p and (case, provider) not in seen:
            seen.add((case, provider))
            ms = f"{p['time_ms']['median']:.3g}"
            rows.append((case, provider, ms, _gpu_ratio(p["speedup"]), f"{p['peak_memory_mib']:.0f}", _share(p)))
    return rows


def _op_rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("op", "eager us", "torch.compile us", f"{GAN_FAST} us", "ratio", "of the chip's rate")
    ]
    for part in OP_PARTS:
        for record in run["parts"].get(part, {"records": []})["records"]:
            timed = {n: p for n, p in record["providers"].items() if "time_ms" in p and "failed" not in p}
            if GAN_FAST not in timed or record["baseline"] not in timed:
                continue
            us = {name: f"{1e3 * p['time_ms']['median']:.3g}" for name, p in timed.items()}
            absent = NOT_AVAILABLE if COMPILED in record["providers"] else NOT_MEASURED
            rows.append(
                (record["case"], us[record["baseline"]], us.get(COMPILED, absent), us[GAN_FAST],
                 _gpu_ratio(timed[GAN_FAST]["speedup"]), _share(timed[GAN_FAST]))
            )  # fmt: skip
    return rows


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def between_markers(text: str, begin: str, body: str, file: str = "README.md") -> str:
    """Replace the text from a begin marker to the next end marker.

    Raises:
        ValueError: there is not exactly one begin marker, or no end marker after it.
    """
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended or begin in rest:
        raise ValueError(f"table: expected {file} to have one {begin} with {END} after it, got {text.count(begin)}")
    return before + begin + (f"\n\n{body}\n\n" if body else "\n") + END + after


def slug(device: str) -> str:
    """Return a device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", device).lower()).strip("-")


def add(path: Path, folder: Path = RESULTS) -> Path:
    """Copy a result of benchmarks.gpu_suite to the results, under its device's name.

    Raises:
        ValueError: the file is from a dry run, whose figures mean nothing.
    """
    found = json.loads(path.read_text())
    if found.get("dry", True):
        raise ValueError(f"table: expected {path} to be from a GPU, got a dry run")
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(path, folder / f"{slug(found['device'])}.json"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__.partition("\n")[0])
    parser.add_argument("--add", type=Path, metavar="SUITE.json", help="a result of benchmarks.gpu_suite")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder of results (default: {RESULTS})")
    parser.add_argument("--readme", type=Path, default=README, help=f"file with the small table (default: {README})")
    parser.add_argument("--docs", type=Path, default=DOCS, help=f"file with the full tables (default: {DOCS})")
    options = parser.parse_args(arguments)
    if options.add is not None:
        print(f"wrote {add(options.add, options.results)}", file=sys.stderr)
    results = read_results(options.results)
    for path, begin, body in (
        (options.docs, DOCS_BEGIN, docs_tables(results)),
        (options.readme, README_BEGIN, readme_table(results)),
    ):
        path.write_text(between_markers(path.read_text(), begin, body, path.name))


if __name__ == "__main__":
    main()
