"""The benchmark harness does what its figures claim."""

from __future__ import annotations

import copy
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import InvalidCxxCompiler

from benchmarks import environment, harness, held, report, table
from benchmarks.harness import OURS, Case, Race, WrongResultError
from benchmarks.memory import held_mib, largest_rise, peak_mib
from gan_fast.nn import Conv2d, ConvBNAct2d

CPU = torch.device("cpu")


def results(value: float = 1.0) -> dict[str, Tensor]:
    return {"output": torch.full((3,), value)}


def busy(ms: float) -> harness.Work:
    def work() -> dict[str, Tensor]:
        end = time.perf_counter() + ms / 1e3
        while time.perf_counter() < end:
            pass
        return results()

    return work


def case(tolerance: float = 1e-6, **providers: harness.Work) -> Case:
    return Case("case", providers, tolerance, CPU)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[harness.Work], float]], list[harness.Work]]:
    """Replace the clock by a function of the work; return the list of what was timed."""

    def replace(ms: Callable[[harness.Work], float]) -> list[harness.Work]:
        timed: list[harness.Work] = []

        def time_ms(work: harness.Work, repeats: int, device: torch.device) -> float:
            timed.append(work)
            return ms(work)

        monkeypatch.setattr(harness, "time_ms", time_ms)
        return timed

    return replace


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output": torch.tensor([1.0, 1.0, 1.1])}, "output within 0.01"),
        ({"output": torch.tensor([1.0, 1.0, float("nan")])}, "output within 0.01"),
        ({"output": torch.ones(3, dtype=torch.float64)}, "float64"),
        ({"output": torch.ones(1)}, r"\(1,\)"),
        ({"other": torch.ones(3)}, r"\['output'\]"),
    ],
    ids=["value", "nan", "dtype", "shape", "missing"],
)
def test_a_wrong_result_is_refused_before_anything_is_timed(clock, wrong, message):
    timed = clock(lambda work: 1.0)
    with pytest.raises(WrongResultError, match=message):
        Race(case(0.01, eager=results, gan_fast=lambda: wrong))
    assert timed == []


def test_results_within_the_tolerance_pass():
    working, skipped, distances = harness.check(case(0.01, eager=results, gan_fast=lambda: results(1.009)))
    assert list(working) == ["eager", "gan_fast"]
    assert skipped == {}
    assert distances == {"eager": 0.0, "gan_fast": pytest.approx(0.009, rel=1e-3)}


def test_providers_are_checked_from_one_random_state():
    draw = {"first": lambda: {"z": torch.randn(4)}, "second": lambda: {"z": torch.randn(4)}}
    harness.check(case(**draw))


def test_a_failure_to_compile_is_reported_not_raised():
    def fails() -> dict[str, Tensor]:
        raise InvalidCxxCompiler

    working, skipped, _ = harness.check(case(eager=results, compiled=fails))
    assert list(working) == ["eager"]
    assert "C++" in skipped["compiled"]
    race = Race(case(eager=busy(1), compiled=fails), seconds=0)
    race.turn()
    assert f"no compiled: {skipped['compiled']}" in table.render([race.figures()])


def test_other_failures_are_raised():
    def fails() -> dict[str, Tensor]:
        raise RuntimeError("kernel")

    with pytest.raises(RuntimeError, match="kernel"):
        harness.check(case(eager=results, gan_fast=fails))


def test_providers_take_turns_in_changing_order(clock):
    timed = clock(lambda work: 1.0)
    race = Race(case(a=lambda: results(), b=lambda: results(), c=lambda: results()), seconds=0)
    timed.clear()
    for _ in range(20):
        race.turn()
    rounds = [tuple(timed[i : i + 3]) for i in range(0, 60, 3)]
    assert all(set(taken) == set(race.providers.values()) for taken in rounds)
    assert len(set(rounds)) == 6, "20 draws of 6 orders"


def test_ratios_are_formed_within_a_round(clock):
    slow, fast = (lambda: results()), (lambda: results())
    timed = clock(lambda work: 0.0)
    # The machine gets slower with every round.
    timed = clock(lambda work: (2.0 if work is slow else 1.0) * (1 + (len(timed) - 1) // 2))
    race = Race(case(eager=slow, gan_fast=fast), seconds=0)
    for _ in range(race.rounds):
        race.turn()
    providers = race.figures()["providers"]
    assert providers["gan_fast"]["speedup"] == {"q1": 2, "median": 2, "q3": 2}
    assert providers["eager"]["ours_speedup"] == {"q1": 2, "median": 2, "q3": 2}
    assert providers["gan_fast"]["time_ms"]["q3"] > providers["gan_fast"]["time_ms"]["q1"]


def test_real_times_and_their_ratio():
    race = Race(case(eager=busy(4), gan_fast=busy(2)), seconds=0)
    assert race.rounds == harness.MIN_ROUNDS
    for _ in range(race.rounds):
        race.turn()
    figures = race.figures()
    assert figures["rounds"] == race.rounds
    # Others may use this machine: a spin ends late, never early.
    assert figures["providers"]["gan_fast"]["time_ms"]["q1"] >= 2
    assert figures["providers"]["gan_fast"]["speedup"]["median"] == pytest.approx(2, rel=0.25)


def test_short_work_is_repeated_within_a_sample():
    calls = 0

    def work() -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return shared

    shared = results()
    race = Race(case(short=work, long=busy(2 * harness.MIN_SAMPLE_MS)), seconds=0)
    assert race.repeats["short"] > 100
    assert race.repeats["long"] == 1
    calls = 0
    race.turn()
    assert calls == race.repeats["short"]


def test_garbage_collection_waits_for_the_end_of_a_turn():
    states = []

    def work() -> dict[str, Tensor]:
        states.append(gc.isenabled())
        return results()

    race = Race(case(eager=work), seconds=0)
    states.clear()
    race.turn()
    assert set(states) == {False}
    assert gc.isenabled()


def test_forward_backward_clears_gradients():
    x = torch.ones(3, requires_grad=True)
    work = harness.forward_backward(lambda: (x * x).sum(), {"x": x})
    for _ in range(2):
        assert torch.equal(work()["x.grad"], torch.full((3,), 2.0))


def test_peak_memory_counts_what_is_held_at_once():
    mib = 2**18

    def work() -> tuple[Tensor, Tensor]:
        first = torch.ones(4 * mib)
        second = torch.ones(2 * mib)
        del first
        return second, torch.ones(mib)

    assert peak_mib(work, CPU) == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize(("changes", "rise"), [([], 0), ([4, 2, -4, 1], 6), ([-8, 4, 4], 8), ([3, -5, 4], 4)])
def test_largest_rise(changes, rise):
    assert largest_rise(changes) == rise


def figures(**speedups_of_ours: tuple[float, float, float]) -> dict[str, Any]:
    """Figures of a case in which ours beats each rival by these quartiles."""

    def provider(ours: tuple[float, float, float]) -> dict[str, Any]:
        q = dict(zip(("q1", "median", "q3"), ours))
        return {"time_ms": q, "speedup": q, "ours_speedup": q, "peak_memory_mib": 1.5}

    providers = {name: provider(ours) for name, ours in speedups_of_ours.items()}
    providers[OURS] = provider((1, 1, 1))
    return {"case": "some case", "tolerance": 0, "rounds": 15, "skipped": {}, "baseline": "eager",
            "providers": providers}  # fmt: skip


def test_the_table_marks_a_loss():
    text = table.render([figures(eager=(1.9, 2, 2.1), compiled=(0.7, 0.8, 0.9), tuned=(0.9, 1.01, 1.1))])
    assert "LOSES to compiled: 0.80x; level with tuned: 1.01x" in text
    assert text.endswith("gan_fast: 1 cases, fastest in 0, level in 0, lost 1.")


def test_the_table_counts_wins():
    text = table.render([figures(eager=(1.9, 2, 2.1)), figures(eager=(0.9, 1, 1.1))])
    assert "LOSES" not in text
    assert text.endswith("gan_fast: 2 cases, fastest in 1, level in 1, lost 0.")


RUN = {
    "machine_info": {
        "gan_fast": {"device": "Some(R) CPU @ 2", "cores": 2, "threads": 2, "torch": "2.13.0", "load_before": 0.1}
    },
    "commit_info": {"id": "abc123", "dirty": True},
    "datetime": "2026-01-02T03:04:05+00:00",
    "benchmarks": [{"stats": {"mean": 1.0}, "extra_info": figures(eager=(1.9, 2, 2.1))}],
}


def test_report_round_trip(tmp_path, capsys):
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(RUN))
    report.main([str(bench), "--out", str(tmp_path / "results")])
    saved = json.loads((tmp_path / "results" / "some-cpu-2.json").read_text())
    assert saved["commit"] == "abc123, with uncommitted changes"
    assert saved["date"] == RUN["datetime"]
    assert saved["cases"] == [RUN["benchmarks"][0]["extra_info"]]
    printed = capsys.readouterr().out
    assert printed.startswith("### Some(R) CPU @ 2\n")
    assert table.render(saved["cases"]) in printed


def test_report_joins_runs_of_one_state_only():
    first = report.summarise(RUN)
    later = copy.deepcopy(first) | {"date": "2026-01-03T00:00:00+00:00", "load_before": 0.3}
    later["cases"][0]["rounds"] = 99
    (joined,) = report.merge([later, first])
    assert [case["rounds"] for case in joined["cases"]] == [99]
    with pytest.raises(ValueError, match="expected one commit"):
        report.merge([first, later | {"commit": "def456"}])


def test_figures_from_a_busy_machine_carry_a_warning():
    described = environment.describe(CPU)
    assert "WARNING" in environment.facts(described | {"cores": 2, "load_before": 1.5})
    assert "WARNING" not in environment.facts(described | {"cores": 2, "load_before": 0.5})


def test_held_memory_of_a_network():
    """One norm and one convolution: eager keeps the raw output and the activation, ours the raw output."""
    x = torch.randn(8, 64, 16, 16)
    plain = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 1, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU())
    plain.append(torch.nn.Conv2d(64, 64, 16))
    blocks = torch.nn.Sequential(ConvBNAct2d(64, 64, 1, activation="relu"), Conv2d(64, 64, 16))
    activation_mib = x.numel() * 4 / 2**20
    for model, kept in ((plain, 2), (blocks, 1)):
        output = model(x)
        assert held.saved_mib(output, model) == pytest.approx((kept + 1) * activation_mib, rel=0.02)  # and x
        del output
        assert held_mib(lambda model=model: model(x), CPU) == pytest.approx(kept * activation_mib, rel=0.05)


def test_held_memory_is_told_below_the_table():
    figures = {"process_mib": 10.0, "allocated_mib": 10.0, "saved_mib": 10.0}
    text = table.held({"case": "G", "held": {"eager": figures, "gan_fast": dict.fromkeys(figures, 5.0)}})
    assert text.startswith("G, held before backward: eager 10.0 MiB of process memory, gan_fast 5.0 (0.50); ")
