"""Turn pytest-benchmark's JSON into ``results/<device>.json`` and a Markdown table.

Usage: python -m benchmarks.report BENCH.json [BENCH.json ...] > table.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment, table

RESULTS = table.RESULTS


def summarize(run: dict[str, Any]) -> dict[str, Any]:
    """Reduce a run of pytest-benchmark to its machine, commit and date and the figures of its cases."""
    commit = run["commit_info"]
    return {
        **run["machine_info"]["gan_fast"],
        "commit": commit["id"] + (", with uncommitted changes" if commit["dirty"] else ""),
        "date": run["datetime"],
        "cases": [benchmark["extra_info"] for benchmark in run["benchmarks"]],
    }


def merge(summaries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join runs of different cases on one device; the later run of a case replaces the earlier one.

    Raises:
        ValueError: two runs on one device differ in commit, versions or threads, so that their figures cannot be
            compared.
    """
    merged: dict[str, dict[str, Any]] = {}
    for summary in sorted(summaries, key=lambda summary: summary["date"]):
        earlier = merged.get(summary["device"])
        if earlier is None:
            merged[summary["device"]] = summary
            continue
        for key in sorted(summary.keys() - {"cases", "date", "load_before"}):
            if summary[key] != earlier[key]:
                raise ValueError(
                    f"report: expected one {key} for {summary['device']}, got {earlier[key]!r} and {summary[key]!r}"
                )
        cases = {case["case"]: case for case in (*earlier["cases"], *summary["cases"])}
        merged[summary["device"]] = {**summary, "cases": list(cases.values())}
    return list(merged.values())


def markdown(summary: dict[str, Any]) -> str:
    facts = environment.facts({key: value for key, value in summary.items() if key not in ("device", "cases")})
    return f"### {summary['device']}\n\n{facts}\n\n{table.render(summary['cases'])}\n"


def write(summary: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{table.slug(summary['device'])}.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="BENCH.json", help="files written by --benchmark-json")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the results (default: {RESULTS})")
    options = parser.parse_args(arguments)
    for summary in merge(summarize(json.loads(path.read_text())) for path in options.runs):
        print(f"wrote {write(summary, options.out)}", file=sys.stderr)
        print(markdown(summary))


if __name__ == "__main__":
    main()
