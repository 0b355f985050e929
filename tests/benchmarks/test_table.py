"""Tables of README.md and docs/benchmarks.md are rendered from the committed results."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from benchmarks.harness import COMPILED, EAGER, GAN_FAST, TUNED

README = f"before\n{table.README_BEGIN}\n{table.END}\nafter\n"


def figures(ms: float, speedup: float = 1.0, **others: Any) -> dict[str, Any]:
    return {"time_ms": {"median": ms, "q1": ms, "q3": ms}, "speedup": {"median": speedup}, **others}


def provider(ms: float, ratio: float, spread: float = 0.0) -> dict[str, Any]:
    """A provider that takes ``ms`` milliseconds, ``ratio`` times as long as gan_fast."""
    return figures(ms, gan_fast_speedup={"q1": ratio - spread, "median": ratio, "q3": ratio + spread})


def cpu_run(*cases: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"device": "a CPU", "cores": 2, "instruction_set": "avx512", "torch": "2.13", "commit": "0123456789abc",
            "date": "2026-12-01T00:00:00", "cases": list(cases), **facts}  # fmt: skip


def case(name: str, unavailable: dict[str, str] | None = None, **providers: dict[str, Any]) -> dict[str, Any]:
    return {"case": name, "baseline": EAGER, "unavailable": unavailable or {},
            "providers": {**providers, GAN_FAST: provider(1.0, 1.0)}}  # fmt: skip


def suite() -> dict[str, Any]:
    def part(case: str, **providers: dict[str, Any]) -> dict[str, Any]:
        return {"seconds": 1.0, "records": [{"case": case, "baseline": "eager", "providers": providers}]}

    # A backend chosen by name is quicker than automatic choice, which is what users get.
    norm = {"gan_fast": figures(0.02, 2.0, gb_per_s=3000.0), "gan_fast, cuda": figures(0.01, 4.0, gb_per_s=6e3)}
    step = {"gan_fast": figures(0.6, 3.0, peak_memory_mib=500.0, tflop_per_s=400.0), "broken": {"failed": "no"}}
    return {
        "device": "NVIDIA H200", "torch": "2.11", "triton": "3.6", "commit": "0123456789abc",
        "date": "2026-11-22T10:00:00Z",
        "parts": {
            "rates": part(table.COPY, ATen=figures(1.0, 1.0, gb_per_s=4000.0)),
            "norms": part("a norm", eager=figures(0.04, 1.0), **norm),
            "step": part("a step", eager=figures(1.8, 1.0, peak_memory_mib=900.0), **step),
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "begin", "body"),
    [(table.README, table.README_BEGIN, table.readme_table), (table.DOCS, table.DOCS_BEGIN, table.docs_tables)],
    ids=["README", "docs"],
)
def test_committed_tables_are_up_to_date(path: Path, begin: str, body: Any) -> None:
    """``python -m benchmarks.table`` updates them."""
    text = path.read_text()
    if path == table.README and begin not in text:
        pytest.skip(f"README.md has no {begin} yet")
    assert table.between_markers(text, begin, body(table.read_results())) == text


def test_text_between_the_markers_is_replaced() -> None:
    stale = README.replace("-->\n<!-- end", "-->\nold figures\n<!-- end")
    assert table.between_markers(stale, table.README_BEGIN, "") == README
    assert "\n\nnew\n\n" in table.between_markers(stale, table.README_BEGIN, "new")


@pytest.mark.parametrize("marker", [table.README_BEGIN, table.END])
def test_missing_marker_raises(marker: str) -> None:
    with pytest.raises(ValueError, match=r"table: expected README\.md to have one"):
        table.between_markers(README.replace(marker, ""), table.README_BEGIN, "")


def test_row_has_the_ratio_to_the_quickest_other_provider() -> None:
    providers = {EAGER: provider(3.0, 3.0), TUNED: provider(2.0, 2.0), COMPILED: provider(4.0, 4.0)}
    assert table.row("a", case("a", **providers)) == ("a", "3", "2", "4", "1", "2.00x")


def test_row_tells_unavailable_from_not_measured() -> None:
    found = case("a", {COMPILED: "no C++ compiler"}, **{EAGER: provider(3.0, 3.0)})
    assert table.row("a", found) == ("a", "3", "not measured", "not available", "1", "3.00x")
    text = table.docs_tables([cpu_run(found)])
    assert "- not available in 1 cases: torch.compile: no C++ compiler" in text


def test_unstable_figures_are_ranges() -> None:
    eager = provider(1.0, 1.05, spread=0.15)
    eager["time_ms"] = {"q1": 0.9, "median": 1.0, "q3": 1.2}
    assert table.row("a", case("a", **{EAGER: eager}))[1:] == (
        "0.9 to 1.2", "not measured", "not measured", "1", "not stable: 0.9 to 1.2",
    )  # fmt: skip


def test_results_with_earlier_provider_names_are_rendered() -> None:
    old = {
        "case": "a", "baseline": "eager", "skipped": {},
        "providers": {
            name: figures(ms, ours_speedup={"q1": ms, "median": ms, "q3": ms})
            for name, ms in {
                "eager": 5.0, "eager, channels_last": 4.0, "eager tuned": 3.0, "eager tuned, our modules": 0.5,
                "gan_fast": 1.0, "gan_fast, critic of torch.nn": 0.7,
            }.items()
        },
    }  # fmt: skip
    assert table.row("a", old) == ("a", "4", "3", "not measured", "1", "3.00x")


def test_readme_has_six_rows_of_the_latest_cpu_run() -> None:
    cases = [case(f"{name} and more", **{EAGER: provider(2.0, 2.0)}) for name in table.README_ROWS.values()]
    # The shortest matching name is the case without a fixed memory format.
    cases.append(case(f"{next(iter(table.README_ROWS.values()))}", **{EAGER: provider(7.0, 7.0)}))
    earlier = cpu_run(case("a"), device="another CPU", date="2026-11-01")
    text = table.readme_table([cpu_run(*cases), earlier, suite()])
    assert text.count("\n| ") == len(table.README_ROWS) == 6
    assert "| DCGAN-64 generator | 7 " in text
    assert text.endswith("a CPU, 2 cores, avx512, torch 2.13, commit 0123456789, 2026-12-01.")
    assert table.readme_table([suite()]) == ""


def test_gpu_results_are_rendered() -> None:
    found = suite()
    table.add_shares(found)
    text = " ".join(table.docs_tables([found]).split())
    assert "NVIDIA H200, torch 2.11, Triton 3.6, commit 0123456789, 2026-11-22; measured rates: 4000 GB/s." in text
    assert "| a norm | 40 | not measured | 20 | 2.00x | 75% |" in text
    assert "| a step | eager | 1.8 | 1.00x | 900 | |" in text
    assert "| a step | gan_fast | 0.6 | 3.00x | 500 | |" in text
    assert "broken" not in text


def test_failed_figures_are_not_shown() -> None:
    found = copy.deepcopy(suite())
    found["parts"]["norms"]["records"][0]["providers"]["gan_fast"]["failed"] = "wrong"
    assert "a norm" not in table.docs_tables([found])


def test_command_adds_results_and_writes_both_files(tmp_path: Path) -> None:
    readme, docs, source, results = (tmp_path / name for name in ("README.md", "docs.md", "suite.json", "results"))
    readme.write_text(README)
    docs.write_text(README.replace(table.README_BEGIN, table.DOCS_BEGIN))
    source.write_text(json.dumps({**suite(), "dry": False}))
    results.mkdir()
    row = next(iter(table.README_ROWS.values()))
    (results / "a-cpu.json").write_text(json.dumps(cpu_run(case(row, **{EAGER: provider(2.0, 2.0)}))))
    table.main(["--add", str(source), "--results", str(results), "--readme", str(readme), "--docs", str(docs)])
    assert (results / "nvidia-h200.json").exists()
    assert "| DCGAN-64 generator" in readme.read_text()
    assert "### a CPU" in docs.read_text()
    assert "| a norm" in docs.read_text()


def test_fused_networks_are_summarized_by_kind() -> None:
    kinds = table.FUSED_KINDS
    ratios = {f"a, {kinds[0]}": 1.5, f"b, {kinds[0]}": 1.1, f"c, {kinds[1]}": 0.9}
    cases = [case(f"fuse: {name}, float32", **{EAGER: provider(r, r)}) for name, r in ratios.items()]
    text = table.docs_tables([cpu_run(*cases)])
    assert "2 networks" in text
    assert "median 1.30x, from 1.10x (b) to 1.50x (a)" in text
    assert "1 networks with stable ratios (other): median 0.90x" in text
