"""The benchmark harness: results are checked first, ratios are formed within rounds, unstable cases are repeated."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.exc import InvalidCxxCompiler

from benchmarks import environment, harness, report, saved_memory, table
from benchmarks.harness import GAN_FAST, Case, Measurement, WrongResultError
from benchmarks.memory import allocated_mib, largest_rise, peak_mib
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


def case(tolerance: float = 1e-6, **providers: Any) -> Case:
    return Case("case", providers, tolerance, CPU)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[harness.Work], float]], list[harness.Work]]:
    """Replace the clock by a function of the work; return the list of timed work."""

    def replace(ms: Callable[[harness.Work], float]) -> list[harness.Work]:
        timed: list[harness.Work] = []

        def time_ms(work: harness.Work, repeats: int, device: torch.device) -> float:
            timed.append(work)
            return ms(work)

        monkeypatch.setattr(harness, "time_ms", time_ms)
        return timed

    return replace


def measured(case: Case, seconds: float = 0.0) -> Measurement:
    measurement = Measurement(case, seconds)
    for _ in range(measurement.rounds):
        measurement.run_round()
    return measurement


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
def test_wrong_result_raises_before_anything_is_timed(clock, wrong, message):
    timed = clock(lambda work: 1.0)
    with pytest.raises(WrongResultError, match=message):
        Measurement(case(0.01, eager=results, gan_fast=lambda: wrong))
    assert timed == []


def test_wrong_result_of_one_variant_raises():
    variants = {"contiguous": results, "channels_last": lambda: results(2.0)}
    with pytest.raises(WrongResultError, match="eager channels_last"):
        harness.check(case(0.01, eager=variants))


def test_results_within_the_tolerance_pass():
    checked = harness.check(case(0.01, eager=results, gan_fast=lambda: results(1.009)))
    assert list(checked.variants) == ["eager", "gan_fast"]
    assert checked.unavailable == {}
    assert checked.distances == {"eager": 0.0, "gan_fast": pytest.approx(0.009, rel=1e-3)}


def test_providers_start_from_the_same_random_state():
    draw = {"first": lambda: {"z": torch.randn(4)}, "second": lambda: {"z": torch.randn(4)}}
    harness.check(case(**draw))


def fails_to_compile() -> dict[str, Tensor]:
    raise InvalidCxxCompiler


def test_provider_that_does_not_compile_is_reported_as_not_available():
    measurement = measured(case(eager=busy(1), compiled=fails_to_compile))
    assert list(measurement.providers) == ["eager"]
    assert "C++" in measurement.unavailable["compiled"]
    text = table.render([measurement.figures()])
    assert f"compiled not available: {measurement.unavailable['compiled']}" in text


def test_provider_is_available_if_one_variant_compiles():
    checked = harness.check(case(eager=results, compiled={"broken": fails_to_compile, "working": results}))
    assert list(checked.variants["compiled"]) == ["working"]
    assert checked.unavailable == {}


def test_reason_given_by_the_case_is_reported():
    reason = {"torch.compile": "no double backward"}
    checked = harness.check(Case("case", {"eager": results}, 0.0, CPU, reason))
    assert checked.unavailable == reason


def test_missing_cpp_compiler_counts_as_a_failure_to_compile(monkeypatch, tmp_path):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/compiler"))
    # Code that was compiled earlier must not be found.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    work = harness.compiled(lambda: {"output": torch.ones(3).cos().sin()})
    with pytest.raises(harness.CANNOT_COMPILE, match="C\\+\\+ compiler"):
        work()
    torch.compiler.reset()


def test_other_failures_are_raised():
    def fails() -> dict[str, Tensor]:
        raise RuntimeError("kernel")

    with pytest.raises(RuntimeError, match="kernel"):
        harness.check(case(eager=results, gan_fast=fails))


def test_compiled_function_has_no_double_backward():
    """The reason why benchmarks of penalties compile torch.func.grad; should this pass one day, they can change."""
    torch.compiler.reset()
    critic = harness.compiled(lambda x: (x**3).sum(), backend="aot_eager")
    x = torch.ones(3, requires_grad=True)
    (grad,) = torch.autograd.grad(critic(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()
    torch.compiler.reset()


def test_compiling_is_not_timed(clock):
    """The first call, in which torch.compile compiles, is the check of results."""
    called: list[str] = []

    def compiling() -> dict[str, Tensor]:
        called.append("call")
        return results()

    timed = clock(lambda work: float("inf") if work is compiling and not called else 1.0)
    measurement = measured(case(eager=results, gan_fast=compiling))
    assert called == ["call"]
    assert compiling in timed
    assert measurement.figures()["providers"]["gan_fast"]["time_ms"]["q3"] == 1.0


def test_quickest_variant_is_measured(clock):
    times = {"contiguous": 3.0, "channels_last": 2.0, "not in place": 4.0}
    works = {name: (lambda: results()) for name in times}
    by_work = {work: times[name] for name, work in works.items()}
    timed = clock(lambda work: by_work.get(work, 1.0))
    measurement = Measurement(case(eager=works, gan_fast=results), 0.0)
    timed.clear()
    measurement.run_round()
    assert {*timed} == {works["channels_last"], results}
    figures = measurement.figures()["providers"]
    assert figures["eager"]["variant"] == "channels_last"
    assert figures["eager"]["variants_ms"] == times
    assert "variant" not in figures["gan_fast"]


def test_providers_alternate_in_random_order(clock):
    timed = clock(lambda work: 1.0)
    measurement = Measurement(case(a=lambda: results(), b=lambda: results(), c=lambda: results()), seconds=0)
    timed.clear()
    for _ in range(20):
        measurement.run_round()
    rounds = [tuple(timed[i : i + 3]) for i in range(0, 60, 3)]
    assert all(set(taken) == set(measurement.providers.values()) for taken in rounds)
    assert len(set(rounds)) == 6, "20 draws of 6 orders"


def test_ratios_are_formed_within_a_round(clock):
    slow, fast = (lambda: results()), (lambda: results())
    timed = clock(lambda work: 0.0)
    # The machine gets slower with every round.
    timed = clock(lambda work: (2.0 if work is slow else 1.0) * (1 + (len(timed) - 1) // 2))
    measurement = measured(case(eager=slow, gan_fast=fast))
    providers = measurement.figures()["providers"]
    assert providers["gan_fast"]["speedup"] == {"q1": 2, "median": 2, "q3": 2}
    assert providers["eager"]["gan_fast_speedup"] == {"q1": 2, "median": 2, "q3": 2}
    assert providers["gan_fast"]["time_ms"]["q3"] > providers["gan_fast"]["time_ms"]["q1"]
    assert measurement.is_stable()


def noisy(clock, eager: harness.Work, quiet_after: float) -> list[harness.Work]:
    """Eager takes 0.9 and 1.2 ms in turn, and 1 ms after ``quiet_after`` timings; gan_fast always takes 1 ms."""
    turns = itertools.cycle([0.9, 1.2])
    timed: list[harness.Work] = []

    def ms(work: harness.Work) -> float:
        return next(turns) if work is eager and len(timed) <= quiet_after else 1.0

    timed = clock(ms)
    return timed


@pytest.mark.parametrize(
    ("quiet_after", "measurements", "stable"), [(0, 1, True), (34, 2, True), (float("inf"), 3, False)],
    ids=["stable at once", "stable when repeated", "never stable"],
)  # fmt: skip
def test_unstable_case_is_measured_again_at_most_twice(clock, quiet_after, measurements, stable):
    eager = busy(0)
    timed = noisy(clock, eager, quiet_after)
    measurement = measured(case(eager=eager, gan_fast=results))
    before = len(timed)
    measurement.repeat_until_stable()
    assert measurement.is_stable() is stable
    figures = measurement.figures()
    assert figures["measurements"] == measurements <= 1 + harness.MAX_REPEATS
    # Each repeat takes all rounds again, and only the last measurement counts.
    assert len(timed) - before == 2 * harness.MIN_ROUNDS * (measurements - 1)
    assert figures["rounds"] == harness.MIN_ROUNDS
    ratio = table.row("case", figures)[-1]
    assert ratio == ("1.00x" if stable else "not stable: 0.9 to 1.2")


def test_no_repeat_begins_after_the_time_limit(clock):
    eager = busy(0)
    noisy(clock, eager, float("inf"))
    measurement = measured(case(eager=eager, gan_fast=results))
    assert measurement.repeat_until_stable(seconds=0.0) < 1.0
    assert measurement.figures()["measurements"] == 1
    assert not measurement.is_stable()


@pytest.mark.parametrize(("half_spread", "stable"), [(0.07, True), (0.08, False)])
def test_spread_of_15_percent_is_the_limit(clock, monkeypatch, half_spread, stable):
    """A third of the ratios is at either end, so that the quartiles are the ends."""
    monkeypatch.setattr(harness, "MIN_ROUNDS", 15)
    eager = busy(0)
    turns = itertools.cycle([1.0 - half_spread, 1.0, 1.0 + half_spread])
    clock(lambda work: next(turns) if work is eager else 1.0)
    measurement = measured(case(eager=eager, gan_fast=results))
    ratio = measurement.figures()["providers"]["eager"]["gan_fast_speedup"]
    assert ratio == pytest.approx({"q1": 1.0 - half_spread, "median": 1.0, "q3": 1.0 + half_spread})
    assert harness.stable(ratio) is measurement.is_stable() is stable


def test_measured_time_is_at_least_the_real_time():
    measurement = measured(case(eager=busy(4), gan_fast=busy(2)))
    assert measurement.rounds == harness.MIN_ROUNDS
    figures = measurement.figures()
    assert figures["rounds"] == measurement.rounds
    # Other work on the machine can end a spin late, but never early.
    assert figures["providers"]["gan_fast"]["time_ms"]["q1"] >= 2
    assert figures["providers"]["eager"]["time_ms"]["q1"] >= 4


def test_short_work_is_repeated_within_a_sample():
    calls = 0

    def work() -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return shared

    shared = results()
    measurement = Measurement(case(short=work, long=busy(2 * harness.MIN_SAMPLE_MS)), seconds=0)
    assert measurement.repeats["short"] > 100
    assert measurement.repeats["long"] == 1
    calls = 0
    measurement.run_round()
    assert calls == measurement.repeats["short"]


def test_garbage_collection_is_off_during_a_round():
    states = []

    def work() -> dict[str, Tensor]:
        states.append(gc.isenabled())
        return results()

    measurement = Measurement(case(eager=work), seconds=0)
    states.clear()
    measurement.run_round()
    assert set(states) == {False}
    assert gc.isenabled()


def test_forward_backward_clears_gradients():
    x = torch.ones(3, requires_grad=True)
    work = harness.forward_backward(lambda: (x * x).sum(), {"x": x})
    for _ in range(2):
        assert torch.equal(work()["x.grad"], torch.full((3,), 2.0))


def test_peak_memory_counts_what_exists_at_once():
    mib = 2**18

    def work() -> tuple[Tensor, Tensor]:
        first = torch.ones(4 * mib)
        second = torch.ones(2 * mib)
        del first
        return second, torch.ones(mib)

    assert peak_mib(work, CPU) == pytest.approx(6, rel=1e-3)


@pytest.mark.parametrize(("changes", "rise"), [([], 0), ([4, 2, -4, 1], 6), ([-8, 4, 4], 8), ([3, -5, 4], 4)])
def test_largest_rise_of_a_running_sum_is_found(changes, rise):
    assert largest_rise(changes) == rise


def figures(**speedups: tuple[float, float, float]) -> dict[str, Any]:
    """Figures of a case in which gan_fast is quicker than each other provider by these quartiles."""

    def provider(speedup: tuple[float, float, float]) -> dict[str, Any]:
        q = dict(zip(("q1", "median", "q3"), speedup))
        return {"time_ms": q, "speedup": q, "gan_fast_speedup": q, "peak_memory_mib": 1.5}

    providers = {name: provider(speedup) for name, speedup in speedups.items()}
    providers[GAN_FAST] = provider((1, 1, 1))
    return {"case": "some case", "tolerance": 0, "rounds": 15, "unavailable": {}, "baseline": "eager",
            "providers": providers}  # fmt: skip


def test_table_marks_a_loss():
    text = table.render([figures(eager=(1.9, 2, 2.1), compiled=(0.79, 0.8, 0.9), tuned=(0.95, 1.01, 1.05))])
    assert "LOSES to compiled: 0.80x; level with tuned: 1.01x" in text
    assert text.endswith("gan_fast: 1 cases, fastest in 0, level in 0, lost 1.")


def test_table_counts_wins():
    text = table.render([figures(eager=(1.9, 2, 2.1)), figures(eager=(0.9, 1, 1.1))])
    assert "LOSES" not in text
    assert text.endswith("gan_fast: 2 cases, fastest in 1, level in 1, lost 0.")


def test_costliest_cases_are_listed():
    cases = [
        figures(eager=(1, 1, 1)) | {"case": name, "case_s": s, "setup_s": s / 2} for name, s in (("a", 9), ("b", 81))
    ]
    text = table.costliest(cases, 1)
    assert text == "2 cases took 1.5 minutes. The costliest:\n  81 s, of which 40 s before timing: b"


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


def test_report_joins_only_runs_of_one_commit():
    first = report.summarize(RUN)
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


def test_block_saves_one_activation_and_plain_layers_two():
    """One convolution with norm: eager saves the raw output and the activation, gan_fast the raw output."""
    x = torch.randn(8, 64, 16, 16)
    plain = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 1, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU())
    plain.append(torch.nn.Conv2d(64, 64, 16))
    blocks = torch.nn.Sequential(ConvBNAct2d(64, 64, 1, activation="relu"), Conv2d(64, 64, 16))
    activation_mib = x.numel() * 4 / 2**20
    for model, kept in ((plain, 2), (blocks, 1)):
        output = model(x)
        # The input is saved, too.
        assert saved_memory.saved_mib(output, model) == pytest.approx((kept + 1) * activation_mib, rel=0.02)
        del output
        assert allocated_mib(lambda model=model: model(x), CPU) == pytest.approx(kept * activation_mib, rel=0.05)


def test_saved_memory_is_printed_below_the_table():
    figures = {"process_mib": 10.0, "allocated_mib": 10.0, "saved_mib": 10.0}
    text = table.saved_memory({"case": "G", "held": {"eager": figures, "gan_fast": dict.fromkeys(figures, 5.0)}})
    assert text.startswith("G, memory before backward: eager 10.0 MiB of process memory, gan_fast 5.0 (0.50); ")
