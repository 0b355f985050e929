"""Run benchmark cases under pytest-benchmark and print the figures of their providers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import environment, harness, table

FIGURES = pytest.StashKey[list[dict[str, Any]]]()
ENVIRONMENT = pytest.StashKey[dict[str, Any]]()
REPEATED_S = pytest.StashKey[float]()
COSTLIEST = 8
# Limits all repeats of unstable cases together, so that a noisy machine cannot make the run much longer.
MAX_REPEATED_S = 180.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--case-seconds", type=float, default=2.0, help="time for the rounds of one benchmark case (default: 2)"
    )
    parser.addoption(
        "--all-networks", action="store_true", help="fuse every network of tests/zoo, not only one of each kind"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    # A warning that became an error would make torch.compile look unavailable.
    config.addinivalue_line("filterwarnings", "default")
    # pytest-benchmark's own table shows the time of a round, which is the sum over all providers.
    config.option.benchmark_quiet = True
    config.stash[FIGURES] = []
    config.stash[REPEATED_S] = 0.0
    config.stash[ENVIRONMENT] = environment.describe(harness.default_device())


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["gan_fast"] = config.stash[ENVIRONMENT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash[FIGURES]:
        terminalreporter.section("providers by case")
        terminalreporter.write_line(environment.facts(config.stash[ENVIRONMENT]))
        terminalreporter.write_line(table.render(figures))
        terminalreporter.write_line(table.costliest(figures, COSTLIEST))


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Reset torch.compile: a function that was compiled for two sizes is compiled for any size, and is slower."""
    torch.compiler.reset()


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[harness.Case], dict[str, Any]]:
    """Check and measure a case; return its figures, which also become pytest-benchmark's extra info."""
    started = time.perf_counter()

    def run(case: harness.Case) -> dict[str, Any]:
        measurement = harness.Measurement(case, request.config.getoption("--case-seconds"))
        benchmark.pedantic(measurement.run_round, rounds=measurement.rounds)
        stash = request.config.stash
        stash[REPEATED_S] += measurement.repeat_until_stable(MAX_REPEATED_S - stash[REPEATED_S])
        benchmark.extra_info.update(measurement.figures())
        figures: dict[str, Any] = benchmark.extra_info
        figures["case_s"] = harness.significant(time.perf_counter() - started)
        stash[FIGURES].append(figures)
        return figures

    return run
