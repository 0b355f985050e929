"""README's tables are those of the committed results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table

EMPTY = "<!-- {0}: python -m benchmarks.table -->\n<!-- end of {0} -->\n"
README = "before\n" + EMPTY.format("cpu") + "between\n" + EMPTY.format("gpu") + "after\n"


def figures(ms: float, speedup: float, **others: Any) -> dict[str, Any]:
    return {"time_ms": {"median": ms, "q1": ms, "q3": ms}, "speedup": {"median": speedup}, **others}


def suite() -> dict[str, Any]:
    def part(case: str, **providers: dict[str, Any]) -> dict[str, Any]:
        return {"seconds": 1.0, "records": [{"case": case, "baseline": "eager", "providers": providers}]}

    # By name one is quicker than what automatic choice has taken: no figure for users.
    ours = {"gan_fast": figures(0.02, 2.0, gb_per_s=3000.0), "gan_fast, cuda": figures(0.01, 4.0, gb_per_s=6e3)}
    step = {"gan_fast": figures(0.6, 3.0, peak_memory_mib=500.0, tflop_per_s=400.0), "broken": {"failed": "no"}}
    return {
        "device": "NVIDIA H200", "torch": "2.11", "triton": "3.6", "commit": "0123456789abc",
        "date": "2026-11-22T10:00:00Z",
        "parts": {
            "rates": part(table.COPY, ATen=figures(1.0, 1.0, gb_per_s=4000.0)),
            "norms": part("a norm", eager=figures(0.04, 1.0), **ours),
            "step": part("a step", eager=figures(1.8, 1.0, peak_memory_mib=900.0), **step),
        },
    }  # fmt: skip


def test_readme_is_up_to_date() -> None:
    """`python -m benchmarks.table` mends it."""
    text = table.README.read_text()
    assert table.with_tables(text, table.read_results()) == text


def test_nothing_is_printed_where_there_are_no_results() -> None:
    assert table.with_tables(README, []) == README


def test_what_stood_between_the_markers_goes() -> None:
    stale = README.replace("-->\n<!-- end of gpu", "-->\nold figures\n<!-- end of gpu")
    assert table.with_tables(stale, []) == README


@pytest.mark.parametrize("marker", ["<!-- cpu: python -m benchmarks.table -->", "<!-- end of gpu -->"])
def test_a_missing_marker_is_an_error(marker: str) -> None:
    with pytest.raises(ValueError, match="table: expected README to have one"):
        table.with_tables(README.replace(marker, ""), [])


def test_a_gpu_s_tables() -> None:
    found = suite()
    table.add_shares(found)
    text = " ".join(table.with_tables(README, [found]).split())
    assert "NVIDIA H200, torch 2.11, Triton 3.6, commit 0123456789, 2026-11-22; measured there: 4000 GB/s:" in text
    assert "| a norm | 40 | | 20 | 2.00x | 75% |" in text
    assert "| a step | eager | 1.8 | 1.00x | 900 | |" in text
    assert "| a step | gan_fast | 0.6 | 3.00x | 500 | |" in text
    assert "broken" not in text
    assert text.endswith("<!-- end of gpu --> after")


def test_figures_that_failed_are_not_shown() -> None:
    found = copy.deepcopy(suite())
    found["parts"]["norms"]["records"][0]["providers"]["gan_fast"]["failed"] = "wrong"
    assert "a norm" not in table.gpu_section([found])


def test_the_command_keeps_results_and_writes_readme(tmp_path: Path) -> None:
    readme, source, results = tmp_path / "README.md", tmp_path / "suite.json", tmp_path / "results"
    readme.write_text(README)
    source.write_text(json.dumps({**suite(), "dry": False}))
    table.main(["--add", str(source), "--results", str(results), "--readme", str(readme)])
    assert (results / "nvidia-h200.json").exists()
    assert "| a norm" in readme.read_text()


def test_fused_networks_are_a_line_of_each_kind() -> None:
    kinds = table.FUSED_KINDS
    ratios = {f"a, {kinds[0]}": 1.5, f"b, {kinds[0]}": 1.1, f"c, {kinds[1]}": 0.9}
    cases = [
        {
            "case": f"fuse: {name}, float32", "baseline": "eager",
            "providers": {"eager": figures(1.0, 1.0), "gan_fast": figures(1.0, ratio)},
        }
        for name, ratio in ratios.items()
    ]  # fmt: skip
    facts = {"device": "x", "cores": 2, "instruction_set": "avx512", "torch": "2.13", "commit": "0", "date": "2026"}
    run = {**facts, "cases": cases}
    text = table.cpu_section([run])
    assert "2 networks" in text
    assert "median 1.30x, from 1.10x (b) to 1.50x (a)" in text
    assert "1 networks as people write them (other), forward + backward: median 0.90x" in text
