"""Figures as Markdown tables, padded so that they read as well in a terminal; and README's tables from results/.

Usage: python -m benchmarks.table [--add SUITE.json]

Writes what stands between README's markers anew. --add first keeps what benchmarks.gpu_suite has found.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import OURS, significant

README = Path(__file__).parent.parent / "README.md"
RESULTS = Path(__file__).parent / "results"

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


COPY, PRODUCT = "copy", "product of bfloat16 matrices"
LIMITS = {"gb_per_s": COPY, "tflop_per_s": PRODUCT}


def providers_of(suite: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Part, case, provider and what it has, of all that benchmarks.gpu_suite found."""
    for part, found in suite["parts"].items():
        for record in found["records"]:
            for provider, figures in record.get("providers", {}).items():
                yield part, record["case"], provider, figures


def add_shares(suite: Mapping[str, Any]) -> None:
    """Tell each rate as a share of what the chip was measured to do."""
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
    """All that went wrong: whole parts, checks, providers."""
    found = [Failure(name, part["failed"]) for name, part in suite["parts"].items() if "failed" in part]
    for name, part in suite["parts"].items():
        found += [Failure(f"{name}: {r['case']}", r["failed"]) for r in part["records"] if "failed" in r]
    found += [Failure(f"{part}: {case}: {name}", p["failed"]) for part, case, name, p in providers_of(suite)
              if "failed" in p]  # fmt: skip
    return found


def suite(found: Mapping[str, Any]) -> str:
    """All figures of benchmarks.gpu_suite as text, what failed or was skipped below."""
    rows: list[tuple[str, ...]] = [
        ("case", "provider", "median us [q1, q3]", "vs first", "rate", "of the chip's", "peak MiB")
    ]
    notes = []
    label = ""
    for _, case, provider, figures in providers_of(found):
        if "skipped" in figures:
            notes.append(f"{case}: no {provider}: {figures['skipped']}")
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


# What README shows of a CPU's cases, where there are results of them.
README_CASES = (
    "batch_norm_act forward + backward (32x64x32x32) float32 contiguous",
    "batch_norm_act forward + backward (32x64x32x32) float32 channels_last",
    "batch_norm_act forward + backward (32x64x32x32) bfloat16 contiguous",
    "instance norm and relu, 64 channels, forward + backward (8x64x64x64) float32 contiguous",
    "DCGAN-64 generator forward + backward, batch 32 float32",
    "DCGAN-64 discriminator forward + backward, batch 32 float32",
    "DCGAN-64 generator forward + backward, batch 32 bfloat16 autocast",
    "DCGAN-64 discriminator forward + backward, batch 32 bfloat16 autocast",
    "transposed 4x4/2 block 512 -> 256 channels, forward + backward (32x512x4x4) float32 contiguous",
    "transposed 4x4/2 block 128 -> 64 channels, forward + backward (32x128x16x16) float32 contiguous",
    "last layer of G, transposed 4x4/2 64 -> 3 channels, tanh, forward eval (32x64x32x32) float32 contiguous",
    "4x4/2 block 64 -> 128 channels, forward eval (32x64x32x32) float32 contiguous",
    "tiny 3x3 block 16 -> 16 channels, forward + backward (1x16x8x8) float32 contiguous",
    "gradient penalty, critic of 5 convolutions (32x3x64x64) float32 contiguous",
    "gradient penalty, critic of 5 convolutions (32x3x64x64) float32 channels_last",
    "gradient penalty, DCGAN-64 critic without norm, batch 32 float32",
    "WGAN-GP critic iteration, DCGAN-64 critic without norm, batch 32 float32",
    "logistic loss and R1 on real images, DCGAN-64 critic without norm, batch 32 float32",
    "minimax_d_loss forward + backward (128) float32",
    "minimax_d_loss forward + backward (16x1x30x30) float32",
    "minimax_d_loss and what is logged with it, forward + backward (128) float32",
    "minimax_d_loss and what is logged with it, forward + backward (16x1x30x30) float32",
    "minimax_g_loss forward + backward (128) float32",
    "hinge_d_loss forward + backward (128) float32",
    "least_squares_d_loss forward + backward (128) float32",
    "relativistic_d_loss average forward + backward (128) float32",
    "sample_norm_penalty center 1 forward + backward (32x3x64x64) float32",
    "DCGAN iteration 16 px, 1 channels, width 64, batch 64 float32",
    "DCGAN iteration 64 px, 3 channels, width 64, batch 32 float32",
    "one-stage DCGAN iteration against our alternating one, 64 px, batch 32, no norm in D, float32",
)
# What takes most of the time in networks that are fused: benchmarks/bench_fuse.py.
FUSED_KINDS = ("blocks of convolution, norm, activation", "other")
# What README shows of a GPU's parts; the others' figures are in the results.
README_STEPS = ("step", "critic_iteration", "compiled_step", "autotuned_step", "large_step")
README_OPS = ("norms", "blocks", "losses", "leaky_relu", "penalty", "sample_norm_penalty", "noise")


def cpu_section(results: Iterable[Mapping[str, Any]]) -> str:
    """README's table of a CPU: eager as most people write it, and ours."""
    sections = []
    for run in results:
        if "cases" not in run:
            continue
        by_name = {figures["case"]: figures for figures in run["cases"]}
        rows: list[tuple[str, ...]] = [
            ("forward + backward where nothing else is said", "eager ms", f"{OURS} ms", "ratio")
        ]
        for name in README_CASES:
            if name in by_name:
                eager, ours = (by_name[name]["providers"][key] for key in (by_name[name]["baseline"], OURS))
                rows.append(
                    (re.sub(",? forward \\+ backward", "", name), f"{eager['time_ms']['median']:.3g}",
                     f"{ours['time_ms']['median']:.3g}", f"{ours['speedup']['median']:.2f}x")
                )  # fmt: skip
        facts = f"{run['device']}, {run['cores']} cores, {run['instruction_set']}, torch {run['torch']}, {_when(run)}"
        kept = [_held_briefly(figures) for figures in run["cases"] if "held" in figures]
        kept += _fused_briefly(run["cases"])
        sections += [f"{facts}:", "", *markdown(rows), "", *kept, ""]
    return "\n".join(sections).rstrip("\n")


def _held_briefly(figures: Mapping[str, Any]) -> str:
    mib = {provider: f"{kept['process_mib']:.1f} MiB" for provider, kept in figures["held"].items()}
    baseline, *others = mib.items()
    name = figures["case"].replace(" forward + backward", "")
    held = ", ".join(f"{provider} {size}" for provider, size in others)
    return f"- {name}: between forward and backward {baseline[0]} holds {baseline[1]}, {held} (process memory)."


def _fused_briefly(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """The ratios of all fused networks in a few numbers: they are too many for rows."""
    lines = []
    for kind in FUSED_KINDS:
        ratios = {
            figures["case"].removeprefix("fuse: ").split(",")[0]: figures["providers"][OURS]["speedup"]["median"]
            for figures in cases
            if figures["case"].startswith("fuse: ") and kind in figures["case"]
        }
        if ratios:
            slow, quick = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
            lines.append(
                f"- `fuse` on {len(ratios)} networks as people write them ({kind}), forward + backward: median "
                f"{statistics.median(ratios.values()):.2f}x, from {ratios[slow]:.2f}x ({slow}) to {ratios[quick]:.2f}x "
                f"({quick})."
            )
    return lines


def _when(run: Mapping[str, Any]) -> str:
    commit, *changes = run["commit"].split(", ")
    return f"commit {', '.join([commit[:10], *changes])}, {run['date'][:10]}"


def gpu_section(results: Iterable[Mapping[str, Any]]) -> str:
    """README's tables of a GPU: whole steps, then ops as automatic choice runs them."""
    sections = []
    for run in results:
        if "parts" not in run:
            continue
        facts = f"{run['device']}, torch {run['torch']}, Triton {run['triton']}, {_when(run)}"
        rates = [_rate(p) for part, _, _, p in providers_of(run) if part == "rates" and "time_ms" in p]
        sections += [f"{facts}" + (f"; measured there: {', '.join(rates)}" if rates else "") + ":", ""]
        for rows in (_step_rows(run), _op_rows(run)):
            sections += [*markdown(rows), ""] if len(rows) > 1 else []
    return "\n".join(sections).rstrip("\n")


def _step_rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("step", "by", "ms", "ratio", "peak MiB", "of the matrix rate")]
    seen = set()
    for part, case, provider, p in providers_of(run):
        if part in README_STEPS and "time_ms" in p and "failed" not in p and (case, provider) not in seen:
            seen.add((case, provider))
            ms, ratio = p["time_ms"]["median"], p["speedup"]["median"]
            rows.append((case, provider, f"{ms:.3g}", f"{ratio:.2f}x", f"{p['peak_memory_mib']:.0f}", _share(p)))
    return rows


def _op_rows(run: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("op", "eager us", "torch.compile us", f"{OURS} us", "ratio", "of the chip's rate")]
    for part in README_OPS:
        for record in run["parts"].get(part, {"records": []})["records"]:
            timed = {n: p for n, p in record["providers"].items() if "time_ms" in p and "failed" not in p}
            if OURS not in timed or record["baseline"] not in timed:
                continue
            us = {name: f"{1e3 * p['time_ms']['median']:.3g}" for name, p in timed.items()}
            rows.append(
                (record["case"], us[record["baseline"]], us.get("torch.compile", ""), us[OURS],
                 f"{timed[OURS]['speedup']['median']:.2f}x", _share(timed[OURS]))
            )  # fmt: skip
    return rows


SECTIONS = {"cpu": cpu_section, "gpu": gpu_section}


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def with_tables(text: str, results: Sequence[Mapping[str, Any]]) -> str:
    """README with what stands between its markers written from results: nothing where there are none.

    Raises:
        ValueError: a marker is missing.
    """
    for name, section in SECTIONS.items():
        begin, end = f"<!-- {name}: python -m benchmarks.table -->\n", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"table: expected README to have one {begin.strip()} and one {end}, got another number")
        body = section(results)
        before, _, rest = text.partition(begin)
        text = before + begin + (f"\n{body}\n\n" if body else "") + end + rest.partition(end)[2]
    return text


def slug(device: str) -> str:
    """A device's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((R|TM)\)", "", device).lower()).strip("-")


def add(path: Path, folder: Path = RESULTS) -> Path:
    """Keep what benchmarks.gpu_suite found as the results of its device.

    Raises:
        ValueError: a dry run: its figures mean nothing.
    """
    found = json.loads(path.read_text())
    if found.get("dry", True):
        raise ValueError(f"table: expected {path} from a GPU, got a dry run")
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(path, folder / f"{slug(found['device'])}.json"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__.partition("\n")[0])
    parser.add_argument("--add", type=Path, metavar="SUITE.json", help="what benchmarks.gpu_suite wrote")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder of the results (default: {RESULTS})")
    parser.add_argument("--readme", type=Path, default=README, help=f"file to write (default: {README})")
    options = parser.parse_args(arguments)
    if options.add is not None:
        print(f"wrote {add(options.add, options.results)}", file=sys.stderr)
    options.readme.write_text(with_tables(options.readme.read_text(), read_results(options.results)))


if __name__ == "__main__":
    main()
