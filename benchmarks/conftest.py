"""Let pytest-benchmark run the cases and print what their providers did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import environment, harness, table

FIGURES = pytest.StashKey[list[dict[str, Any]]]()
ENVIRONMENT = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--case-seconds", type=float, default=3.0, help="time for the rounds of one benchmark case (default: 3)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    # Its table times a round, the sum over all providers; ours below tells them apart.
    config.option.benchmark_quiet = True
    config.stash[FIGURES] = []
    config.stash[ENVIRONMENT] = environment.describe(harness.default_device())


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["gan_fast"] = config.stash[ENVIRONMENT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash[FIGURES]:
        terminalreporter.section("providers by case")
        terminalreporter.write_line(environment.facts(config.stash[ENVIRONMENT]))
        terminalreporter.write_line(table.render(figures))


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Forget earlier cases: torch.compile makes a size dynamic, and slower, where it has seen two."""
    torch.compiler.reset()


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[harness.Case], dict[str, Any]]:
    """Check a case, time its rounds as pytest-benchmark's, keep the figures as its extra info and return them."""

    def run(case: harness.Case) -> dict[str, Any]:
        race = harness.Race(case, request.config.getoption("--case-seconds"))
        benchmark.pedantic(race.turn, rounds=race.rounds)
        benchmark.extra_info.update(race.figures())
        figures: dict[str, Any] = benchmark.extra_info
        request.config.stash[FIGURES].append(figures)
        return figures

    return run
