"""The GPU suite without a GPU: every part at tiny sizes on the CPU, time limits, and results after failures."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from triton_device import interpreted

from benchmarks import gpu_checks, gpu_machine, gpu_ops, gpu_step, gpu_suite, table
from benchmarks.gpu_machine import GpuCase, Machine
from gan_fast import backends
from gan_fast.capture import CudaGraphs

CPU = torch.device("cpu")
HALVES = torch.full((3,), 0.5)
# Parts that run kernels or steps; the other parts run commands and have separate tests below.
MEASURING = ("rates", "losses", "norms", "blocks", "penalty", "leaky_relu", "sample_norm_penalty", "noise",
             "discrimination", "convolutions", "step", "critic_iteration", "compiled_step", "large_step",
             "autotuned_step")  # fmt: skip
# Providers that do not exist on a CPU, with the reason.
ABSENT = {"leaky_relu": "no Triton kernel for this op"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False


def dry(name: str, tmp_path: Path) -> list[dict[str, Any]]:
    lines = tmp_path / f"{name}.jsonl"
    assert gpu_suite.run_here(name, lines, CPU, 1000.0, []) == 0
    return [json.loads(line) for line in lines.read_text().splitlines()]


def suite_of(**parts: dict[str, Any]) -> dict[str, Any]:
    return {"device": "a GPU", "torch": "2", "triton": "3", "commit": "abc", "date": "2026-01-01", "parts": parts}


# torch.compile warns about inputs that are not leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", [pytest.param(name, marks=interpreted) for name in MEASURING])
def test_dry_run_of_every_measuring_part_succeeds(name: str, tmp_path: Path, one_thread: None) -> None:
    records = dry(name, tmp_path)
    found = suite_of(**{name: {"seconds": 1.0, "records": records}})
    assert records
    assert table.failures(found) == []
    for _, case, provider, figures in table.providers_of(found):
        if "skipped" in figures:
            assert any(why in figures["skipped"] for why in ABSENT.values()), (case, provider, figures)
        else:
            assert figures.get("launches", 0) > 0 or figures["time_ms"]["median"] > 0, (case, provider)
    assert records[0]["case"] in table.suite(found)


def test_every_part_is_tested() -> None:
    assert {*gpu_suite.PARTS} == {*MEASURING, "build", "facts", "tests", "sanitizer", "cases"}


def test_dry_run_of_facts_and_tests_succeeds(tmp_path: Path) -> None:
    (facts,) = dry("facts", tmp_path)
    assert any("requested backend" in line for line in facts["info"])
    (ran,) = dry("tests", tmp_path)
    assert ran["passed"] >= 4
    assert "failed" not in ran


@interpreted[0]
def test_sanitizer_script_runs_every_kernel(tmp_path: Path) -> None:
    triton, cpp = dry("sanitizer", tmp_path)
    for checked in (triton, cpp):
        assert "failed" not in checked
        assert {line.split(":")[0] for line in checked["checked"]} >= {"batch_norm_act", "minimax_d_loss"}
    files = {name for name, file in backends._triton_files.items() if f"{name}:" in " ".join(triton["checked"])}
    assert {backends._triton_files[name] for name in files} == {*backends._triton_files.values()}
    assert triton["absent"] == []


def test_benchmark_cases_are_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAN_FAST_SUITE_OUT", str(tmp_path))
    (collected,) = dry("cases", tmp_path)
    assert collected["status"] == 0


def fake_run(outcomes: Sequence[int]) -> tuple[list[Any], Callable[..., tuple[int, str]]]:
    calls: list[Any] = []

    def run(command: Sequence[str], seconds: float, **settings: str) -> tuple[int, str]:
        calls.append((list(command), settings))
        return outcomes[len(calls) - 1], "nvcc fatal"

    return calls, run


def test_failed_build_is_recorded_and_repeated_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = fake_run((1, 1, 0))
    monkeypatch.setattr(gpu_checks, "run", run)
    machine = mock.Mock(dry=False, left_s=100.0)
    *failed, built = gpu_checks.build(machine)
    assert [record["failed"] for record in failed] == ["nvcc fatal"] * 2
    assert built == {"case": "build by setup.py, no CUDA kernels", "status": 0}
    assert "pip" in calls[0][0]
    assert {"--no-build-isolation", "--no-deps"} <= {*calls[0][0]}
    assert calls[2][1] == {"GAN_FAST_NATIVE": "1", "FORCE_CUDA": "0"}


@pytest.mark.parametrize("left_s", [130.0, 60.0])
def test_slow_build_leaves_time_for_a_build_without_cuda(left_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, given = mock.Mock(dry=False, left_s=left_s), []

    def run(command: Sequence[str], seconds: float, **settings: str) -> tuple[int, str]:
        given.append(seconds)
        machine.left_s -= seconds
        return (0 if "FORCE_CUDA" in settings else 124), ""

    monkeypatch.setattr(gpu_checks, "run", run)
    *others, built = gpu_checks.build(machine)
    assert built["status"] == 0
    assert given[-1] >= min(gpu_checks.FALLBACK_S, left_s - gpu_checks.SUMMARY_S - 2)
    assert len(others) == 2
    assert all("skipped" in record or record["failed"].startswith("took too long") for record in others)


def test_successful_build_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = fake_run((0,))
    monkeypatch.setattr(gpu_checks, "run", run)
    assert list(gpu_checks.build(mock.Mock(dry=False, left_s=100.0))) == [{"case": "build by pip", "status": 0}]
    assert len(calls) == 1


def test_gpu_tests_include_all_kernel_tests() -> None:
    files = gpu_checks.gpu_tests()
    assert len(files) == len({*files}) >= 12
    for path in gpu_checks.TESTS.rglob("*.py"):
        if "triton_device" in path.read_text() and "triton_kernels" in path.parts and path.name.startswith("test_"):
            assert (str(path.relative_to(gpu_checks.ROOT)) in files) == (path.name != "test_compiled.py")
    assert {"tests/cuda/test_batch_norm_act.py", "tests/train/test_graph.py"} <= {*files}
    assert not any("benchmarks" in file or "test_compiled" in file for file in files)


@pytest.mark.parametrize(
    ("missing", "file", "kept"),
    [("PIL", "tests/train/test_graph.py", "tests/triton_kernels/test_conv.py"),
     ("PIL", "tests/data/test_device_loader.py", "tests/triton_kernels/test_conv.py"),
     ("hypothesis", "tests/triton_kernels/test_conv.py", None)],
)  # fmt: skip
def test_file_with_missing_package_is_left_out(
    missing: str, file: str, kept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may import the package directly, through files of this repository, or through conftest.py."""
    assert {
        name for path in gpu_checks.gpu_tests() for name in gpu_checks.not_installed(gpu_checks.ROOT / path)
    } == set()
    monkeypatch.setattr(gpu_checks, "find_spec", lambda name: None if name == missing else find_spec(name))
    calls, run = fake_run((0,))
    monkeypatch.setattr(gpu_checks, "run", run)
    (record,) = gpu_checks.tests(mock.Mock(dry=False, left_s=100.0))
    assert record["left_out"][file] == f"needs {missing}"
    if kept is None:
        assert not calls
        assert record["skipped"]
        return
    ((command, _),) = calls
    assert "--continue-on-collection-errors" in command
    assert kept in command
    assert file not in command


def test_failed_tests_are_recorded_with_their_output() -> None:
    output = "E  boom\nFAILED tests/a.py::b - boom\n1 failed, 3 passed, 2 skipped in 1.0s\n"
    record = gpu_checks.test_record(1, output, ["tests/a.py"])
    assert (record["passed"], record["skipped"]) == (3, 2)
    assert record["failed_tests"] == ["tests/a.py::b - boom"]
    assert "E  boom" in record["failed"]
    assert gpu_checks.test_record(124, output, [])["failed"].startswith("stopped at its time limit")


def test_command_past_its_time_limit_can_still_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "SUMMARY_S", 5.0)
    # Background jobs of a shell ignore the signal, and so do their children.
    listens = "import signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script = f"{listens}try:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  print('so far')"
    start = time.monotonic()
    # Long enough for Python to start while other tests run.
    assert gpu_checks.run([sys.executable, "-c", script], 3.0) == (124, "so far\n")
    assert time.monotonic() - start < 30


SLEEPER = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); "


def ends_soon(process: int) -> bool:
    """Whether a process ends soon; a zombie that its new parent has not reaped has ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("rest", "seconds"), [("sys.exit(1)", 30.0), ("import time; time.sleep(60)", 1.0)])
def test_children_of_a_command_end_with_it(rest: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "SUMMARY_S", 1.0)
    # The child holds no pipe, so that the command's output ends when the command fails.
    script = SLEEPER.replace("'60']", "'60'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL") + rest
    status, output = gpu_checks.run([sys.executable, "-c", script], seconds)
    assert status
    assert ends_soon(int(output.split()[0]))


def test_commands_of_a_part_end_with_it(tmp_path: Path) -> None:
    """The commands of a part run in separate sessions."""
    inner = f"{SLEEPER}import time; time.sleep(60)"
    script = (
        "import os, signal, sys; from benchmarks import gpu_checks; "
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))\n"
        f"with gpu_checks.child([sys.executable, '-c', {inner!r}], os.environ) as process:\n"
        "  print(process.stdout.readline(), flush=True); process.wait()"
    )
    with gpu_checks.child([sys.executable, "-c", script], dict(os.environ)) as process:
        assert process.stdout is not None
        sleeper = int(process.stdout.readline())
        assert not Path(f"/proc/{sleeper}/stat").read_text().endswith("Z")
    assert ends_soon(sleeper)


@pytest.mark.parametrize("have_tool", [True, False])
def test_sanitizer_runs_if_installed(have_tool: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = fake_run((0, 9, 0, 0))
    monkeypatch.setattr(gpu_checks, "run", run)
    monkeypatch.setattr(gpu_checks, "sanitizer", lambda: "/opt/compute-sanitizer" if have_tool else None)
    records = [*gpu_checks.sanitize(mock.Mock(dry=False, left_s=100.0, backends=("triton", "cuda")))]
    assert [record["case"] for record in records] == [
        f"compute-sanitizer {check}, {backend}" for check in ("memcheck", "racecheck") for backend in ("triton", "cuda")
    ]
    if have_tool:
        assert calls[0][0][:3] == ["/opt/compute-sanitizer", "--tool", "memcheck"]
        assert [command[-1] for command, _ in calls] == ["triton", "cuda"] * 2
        assert records[0]["skipped"] == "no kernels for this device"
        assert records[1]["failed"] == "nvcc fatal"
    else:
        assert not calls
        assert all("compute-sanitizer" in record["skipped"] for record in records)


class Clock:
    """A clock that advances only while a part runs, by ``part_s`` at most."""

    def __init__(self, part_s: float) -> None:
        self.now, self.part_s = 0.0, part_s
        self.limits: dict[str, float] = {}

    def run(self, name: str, out: Path, device: torch.device, seconds: float) -> dict[str, Any]:
        self.limits[name] = seconds
        spent = min(seconds, self.part_s)
        self.now += spent
        return {"seconds": spent, "records": []}


@pytest.mark.parametrize("part_s", [1e9, 45.0, 1.0], ids=["every part hangs", "slow parts", "quick parts"])
def test_all_parts_together_end_within_eight_minutes(part_s: float, tmp_path: Path) -> None:
    clock = Clock(part_s)
    found = suite_of()
    gpu_suite.run_parts(list(gpu_suite.PARTS), tmp_path, torch.device("cuda"), found, clock.run, lambda: clock.now)
    assert clock.now <= gpu_suite.TOTAL_S == 480
    assert all(seconds <= gpu_suite.PARTS[name].limit_s for name, seconds in clock.limits.items())
    assert list(found["parts"]) == list(gpu_suite.PARTS)
    left_out = [name for name, part in found["parts"].items() if "skipped" in part]
    assert bool(left_out) == (part_s > 30)
    assert {*left_out} == {*gpu_suite.PARTS} - {*clock.limits}


def test_each_part_of_a_default_run_gets_its_full_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if every part uses all of its time and then the time for ending its children."""
    clock = Clock(1e9)

    def run(name: str, out: Path, device: torch.device, seconds: float) -> dict[str, Any]:
        found = clock.run(name, out, device, seconds)
        clock.now += gpu_checks.ENDING_S
        return found

    monkeypatch.setattr(gpu_suite.table, "suite", lambda found: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_suite, "origin", lambda device, commit: suite_of() | {"dry": False})
    parts = gpu_suite.run_parts
    monkeypatch.setattr(gpu_suite, "run_parts", lambda *given: parts(*given, run, lambda: clock.now))
    with pytest.raises(SystemExit, match="False"):
        gpu_suite.main(["--out", str(tmp_path)])
    assert clock.limits == {name: gpu_suite.PARTS[name].limit_s for name in gpu_suite.DEFAULT_PARTS}
    assert {"build", "tests", "step"} <= {*clock.limits}
    assert clock.now <= gpu_suite.TOTAL_S


def test_results_are_kept_when_a_part_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    timed = {"time_ms": {"median": 0.5, "q1": 0.4, "q3": 0.6}, "speedup": {"median": 1.0, "q1": 1.0, "q3": 1.0}}
    norm = {"case": "a norm", "baseline": "eager", "providers": {"eager": {**timed, "gb_per_s": 3000.0}}}
    copy = {"case": "copy", "baseline": "ATen", "providers": {"ATen": {**timed, "gb_per_s": 4000.0}}}

    def run(name: str, out: Path, device: torch.device, seconds: float) -> dict[str, Any]:
        if name == "tests":
            assert json.loads((tmp_path / "suite.json").read_text())["parts"]["rates"]["records"]
            return {"seconds": 1.0, "records": [], "failed": "out of luck"}
        return {"seconds": 1.0, "records": [copy if name == "rates" else norm]}

    found = suite_of()
    gpu_suite.run_parts(["rates", "tests", "norms"], tmp_path, CPU, found, run)
    kept = json.loads((tmp_path / "suite.json").read_text())
    assert kept["parts"]["norms"]["records"][0]["providers"]["eager"]["share"] == 0.75
    assert table.failures(kept) == [("tests", "out of luck")]
    text = " ".join(table.suite(kept).split())
    assert "| a norm | eager | 500 [400, 600] | 1.00x | 3000 GB/s | 75% |" in text
    assert "FAILED tests: out of luck" in text


def test_part_runs_in_a_separate_process_and_records_its_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_suite.main(["--out", str(tmp_path), "--dry", "--parts", "rates"])
    assert not ended.value.code
    found = json.loads((tmp_path / "suite.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["suite.json"]
    assert found["dry"]
    assert [record["case"] for record in found["parts"]["rates"]["records"]] == [table.COPY, table.PRODUCT]
    if not torch.cuda.is_available():
        failed = gpu_suite.run_part("rates", tmp_path, torch.device("cuda"), 200.0)["failed"]
        assert "CUDA" in failed or "NVIDIA" in failed


def test_parts_of_one_commit_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    origin = {**gpu_suite.origin(CPU, "abc"), "parts": {}}
    assert gpu_suite.earlier_parts(path, origin) == {}
    path.write_text(json.dumps({**origin, "parts": {"rates": {"seconds": 1.0, "records": []}}}))
    assert list(gpu_suite.earlier_parts(path, origin)) == ["rates"]
    assert gpu_suite.earlier_parts(path, {**origin, "commit": "another"}) == {}


@pytest.mark.parametrize(("name", "word"), [("rates", "failed"), ("autotuned_step", "skipped")])
def test_running_out_of_time_is_recorded(name: str, word: str, tmp_path: Path) -> None:
    found = gpu_suite.run_part(name, tmp_path, CPU, 0.2)
    assert found[word].startswith("took longer than 0 s")
    assert found["records"] == []


def test_missing_gpu_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="gpu_suite: expected a GPU"):
        gpu_suite.main(["--out", str(tmp_path)])


def test_part_runs_again_without_a_provider_that_broke_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run_process(
        name: str, out: Path, device: torch.device, seconds: float, without: list[str], records: dict[str, Any]
    ) -> str:
        ran.append(list(without))
        lines = out / "lines"
        provider = {"skipped": "it broke the device in an earlier run"} if without else {"failed": "illegal access"}
        record = {"case": "a", "baseline": "eager", "providers": {"eager": {"run": len(ran)}, "gan_fast": provider}}
        lines.write_text(json.dumps(record if without else {**record, "fatal": "gan_fast"}) + '\n{"case": "half a li')
        gpu_suite.merge(records, lines)
        return "" if without else "exit status -6"

    monkeypatch.setattr(gpu_suite, "_run_process", run_process)
    found = gpu_suite.run_part("norms", tmp_path, CPU, 100.0)
    assert ran == [[], ["gan_fast"]]
    assert found["broke_the_device"] == ["gan_fast"]
    assert "failed" not in found
    assert found["records"][0]["providers"] == {"eager": {"run": 2}, "gan_fast": {"failed": "illegal access"}}


def copies(value: float) -> Callable[[], list[Callable[[], torch.Tensor]]]:
    return lambda: [lambda: torch.full((3,), value)]


def test_failing_provider_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise RuntimeError("op: expected backend cuda to be available, got: no kernel for device cuda")

    case = GpuCase("c", {"eager": copies(1.0), "close": copies(1.001), "wrong": copies(2.0), "absent": absent}, 0.01)
    providers = gpu_machine.measure(Machine(CPU), case)["providers"]
    assert providers["close"]["time_ms"]["median"] > 0
    assert providers["close"]["distance"] == pytest.approx(0.001, rel=1e-2)
    assert "expected 0 within" in providers["wrong"]["failed"]
    assert "no kernel for device cuda" in providers["absent"]["skipped"]
    monkeypatch.setattr(Machine, "alive", lambda self: False)
    broken = [*gpu_machine.measure_all(Machine(CPU), iter([case, case]))]
    assert [record["fatal"] for record in broken] == ["wrong"]
    left = gpu_machine.measure(Machine(CPU, without=["wrong", "absent"]), case)
    assert left["providers"]["wrong"] == {"skipped": "it broke the device in an earlier run"}


def test_too_many_launches_are_a_failure() -> None:
    def two() -> list[Any]:
        return [lambda: HALVES.neg().neg()]

    makers = {"eager": two, "gan_fast": two, "gan_fast, triton": two, "gan_fast, cpu": lambda: [lambda: HALVES.neg()]}
    record = gpu_ops.count_launches(Machine(CPU), "c", makers, 1)
    assert [found["launches"] for found in record["providers"].values()] == [2, 2, 2, 1]
    assert "expected at most 1 kernel launched, got 2" in record["providers"]["gan_fast, triton"]["failed"]
    # Automatic choice may have chosen the reference.
    assert [name for name, found in record["providers"].items() if "failed" in found] == ["gan_fast, triton"]
    with pytest.raises(RuntimeError, match="expected kernels"):
        gpu_ops.launched(Machine(CPU), lambda: None)


def step_of(loss: float, captured: bool | None = None) -> Callable[[], gpu_step.Step]:
    by_now = None if captured is None else lambda: captured
    return lambda: gpu_step.Step(lambda: {"d_loss": torch.tensor(loss)}, False, by_now)


def test_steps_with_wrong_losses_fail() -> None:
    providers = {"eager": step_of(1.4), "close": step_of(1.41), "off": step_of(2.0), "nan": step_of(float("nan"))}
    *_, record = gpu_step.measure(Machine(CPU), "a step", 1e9, providers)
    found = record["providers"]
    assert found["close"]["d_loss"] == 1.41
    assert all("expected d_loss within 0.1" in found[name]["failed"] for name in ("off", "nan"))


def test_figures_of_a_step_are_yielded_before_the_next_begins() -> None:
    seen: list[set[str]] = []

    def late() -> gpu_step.Step:
        seen.append({name for name, found in records[-1]["providers"].items() if "time_ms" in found})
        return step_of(1.4)()

    records: list[dict[str, Any]] = []
    for record in gpu_step.measure(
        Machine(CPU), "a step", 1e9, {"eager": step_of(1.4), "gan_fast": step_of(1.4), "late": late}
    ):
        records.append(json.loads(json.dumps(record)))
    assert seen == [{"eager", "gan_fast"}]
    assert len(records) == 3
    assert records[-1]["providers"]["gan_fast"]["speedup"]["median"] > 0


def test_step_without_its_graph_fails_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(CPU)
    providers = {"eager": step_of(1.4), "kernel by kernel": step_of(1.4, False), "a graph": step_of(1.4, True)}
    *_, record = gpu_step.measure(machine, "a step", 1e9, providers)
    assert [found.get("captured") for found in record["providers"].values()] == [None, False, True]
    assert "failed" not in record["providers"]["kernel by kernel"]
    monkeypatch.setattr(machine, "dry", False)
    for name in ("synchronize", "reset_peak"):
        monkeypatch.setattr(machine, name, lambda: None)
    for name in ("allocated", "peak"):
        monkeypatch.setattr(machine, name, lambda: (0, 0))
    monkeypatch.setattr(machine, "time_ms", lambda work, repeats: 1.0)
    *_, record = gpu_step.measure(machine, "a step", 1e9, providers)
    assert "expected a CUDA graph after the warm-up" in record["providers"]["kernel by kernel"]["failed"]
    assert record["providers"]["a graph"]["captured"]


@pytest.mark.parametrize(("device", "wanted"), [("cpu", "off"), ("cuda", "on")])
def test_trainer_step_requires_a_graph_on_a_gpu(device: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = []
    monkeypatch.setattr(gpu_step, "Trainer", lambda config, *others: configs.append(config))
    machine = Machine(CPU)
    setting = gpu_step.Setting(machine, 4)
    monkeypatch.setattr(machine, "dry", device == "cpu")
    setting.trainer()
    assert [config.cuda_graph for config in configs] == [wanted]


def timed_by(times: Callable[[str], float]) -> Machine:
    """A machine on which work returns its name, from which ``times`` computes its ms."""
    machine = Machine(CPU)
    machine.rounds = 20
    machine.time_ms = lambda work, repeats: times(work())  # type: ignore[method-assign]
    return machine


def test_order_of_providers_is_random() -> None:
    order: list[str] = []
    machine = timed_by(lambda name: order.append(name) or 1.0)  # type: ignore[func-returns-value]
    samples = machine.time_in_rounds({name: lambda name=name: name for name in "abc"})
    assert {name: len(ms) for name, ms in samples.items()} == {"a": 20, "b": 20, "c": 20}
    rounds = {"".join(order[begin : begin + 3]) for begin in range(0, 60, 3)}
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(rounds) > 3


@pytest.mark.parametrize("alive", [True, False])
def test_crash_during_timing_is_recorded_for_its_provider(alive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def times(name: str) -> float:
        calls.append(name)
        if name == "bad" and calls.count(name) > 5:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 1.0

    machine = timed_by(times)
    monkeypatch.setattr(machine, "alive", lambda: alive)
    record: dict[str, Any] = {"baseline": "bad", "providers": {name: {"distance": 0.0} for name in ("bad", "good")}}
    works = {name: lambda name=name: name for name in ("bad", "good")}
    samples = gpu_machine.time_survivors(machine, record, works)
    assert "illegal memory access" in record["providers"]["bad"]["failed"]
    assert ("fatal" in record) != alive
    assert list(samples) == (["good"] if alive else [])
    assert record["baseline"] == ("good" if alive else "bad")


def test_compiling_without_time_left_is_skipped() -> None:
    compiler = gpu_ops._Compiler(Machine(CPU, seconds=0.0))
    with pytest.raises(gpu_machine.SkippedError, match="no time left"):
        compiler.copies(torch.neg, copies(1.0))


def test_gpu_code_matches_the_signatures_of_torch_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs, events and memory statistics, replaced by mocks with the signatures of torch.cuda."""
    replayed: list[int] = []

    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, mock.create_autospec(getattr(torch.cuda, name)))
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, mock.create_autospec(getattr(torch.cuda, name), return_value=5))
    event = mock.create_autospec(torch.cuda.Event)
    event.return_value.elapsed_time.return_value = 0.5
    monkeypatch.setattr(torch.cuda, "Event", event)
    graph = mock.create_autospec(CudaGraphs)
    graph.return_value.capture.side_effect = lambda function, generator: (lambda: replayed.append(1), function())
    monkeypatch.setattr(gpu_machine, "CudaGraphs", graph)
    # torch.compile, which is imported here, requires a type.
    monkeypatch.setattr(torch, "Generator", type("Generator", (), {"__init__": lambda self, device: None}))
    monkeypatch.setattr(torch.cuda, "Stream", mock.create_autospec(torch.cuda.Stream))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    machine = Machine(torch.device("cuda"))
    with machine.stream():
        record = gpu_machine.measure(
            machine, GpuCase("c", {"eager": copies(1.0), "gan_fast": copies(1.0)}, 0.0, bytes=10**6)
        )
    assert record["providers"]["gan_fast"]["time_ms"]["median"] == 0.25
    assert record["providers"]["gan_fast"]["gb_per_s"] == 4.0
    assert graph.call_count == 1
    assert graph.return_value.capture.call_count == 2
    # For each provider: one check, one timing of one run and twenty timings of two runs, each after an untimed run.
    assert len(replayed) == 2 * (1 + 2 + 20 * 3)
    assert machine.allocated() == machine.peak() == (5, 5)
    machine.reset_peak()
    assert machine.copies(2**20) == gpu_machine.MAX_COPIES
    assert machine.copies(2**30) == 3
    assert callable(machine.compile(torch.neg, "max-autotune"))


def test_tensors_of_a_graph_stay_alive_while_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward passes read outputs and saved tensors that were made before the capture."""
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def function(x: torch.Tensor) -> torch.Tensor:
        output = (x * x).tanh()
        made.append(weakref.ref(output))
        return output

    class Graphs:
        def capture(self, function: Callable[[], Any], generator: Any) -> Any:
            return lambda: alive.append(all(output() is not None for output in made)), function()

    machine = Machine(CPU)
    monkeypatch.setattr(machine, "rounds", 1)
    monkeypatch.setattr(machine, "dry", False)
    monkeypatch.setattr(gpu_machine, "_graphs_here", lambda device: Graphs())
    for name in ("synchronize", "alive"):
        monkeypatch.setattr(machine, name, lambda: True)
    monkeypatch.setattr(machine, "time_ms", lambda work, repeats: work() or 1.0)
    inputs = [torch.randn(2, 3, 4, 4) for _ in range(3)]
    make = functools.partial(gpu_ops.backward_copies, function, inputs, ())
    providers = {"eager": make, "gan_fast": make}
    record = gpu_machine.measure(machine, GpuCase("c", providers, 0.1))
    assert "time_ms" in record["providers"]["gan_fast"]
    assert len(made) == 6
    assert len(alive) > 4
    assert all(alive)
    # The same for a single recording.
    replay, _ = machine.record(inputs[0].neg)
    held, inputs = weakref.ref(inputs[0]), []
    del providers, make
    gc.collect()
    assert held() is not None
    del replay
    assert held() is None


@pytest.mark.parametrize("provider", ["trainer", "graphed", "tuned"])
def test_gan_fast_and_tuned_baselines_use_channels_last(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both their models and their images are channels-last; eager as people write it stays contiguous."""
    setting = gpu_step.Setting(Machine(CPU), 4)
    seen: list[torch.Tensor] = []

    def spy(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)) and module.kernel_size != (1, 1):
            seen.append(module.weight)
            seen.extend(x for x in inputs if x is not None and x.size(1) == 3)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(spy)
    try:
        getattr(setting, provider)()()
    finally:
        handle.remove()
    assert len({t.data_ptr() for t in seen}) > 4
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen)
    assert not any(t.is_contiguous() for t in seen if min(t.shape[1:]) > 1)
    seen.clear()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(spy)
    try:
        setting.example_loop()()
    finally:
        handle.remove()
    assert all(t.is_contiguous() for t in seen)


def test_failed_capture_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """CudaGraphs restores the state after a failed capture; tests/train/test_graph.py tests that."""
    machine = Machine(CPU)
    monkeypatch.setattr(machine, "rounds", 1)
    monkeypatch.setattr(machine, "capture", lambda copies: machine.record(copies[0])[0])

    class Graphs:
        def capture(self, function: Callable[[], Any], generator: Any) -> Any:
            if function().sum() > 3:
                raise RuntimeError("operation not permitted when stream is capturing")
            return lambda: None, function()

    monkeypatch.setattr(gpu_machine, "_graphs_here", lambda device: Graphs())
    record = Machine.record

    def on_a_gpu(self: Machine, work: Any) -> Any:
        self.dry = False
        try:
            return record(self, work)
        finally:
            self.dry = True

    monkeypatch.setattr(Machine, "record", on_a_gpu)
    found = gpu_machine.measure(machine, GpuCase("c", {"eager": copies(1.0), "bad": copies(1.001)}, 0.01))["providers"]
    assert "not permitted" in found["bad"]["failed"]
    assert found["eager"]["time_ms"]


def test_rates_and_speedups_are_computed_from_times() -> None:
    record: dict[str, Any] = {"baseline": "eager", "providers": {"eager": {}, "gan_fast": {}}}
    samples = {"eager": np.array([4.0, 8.0]), "gan_fast": np.array([1.0, 4.0])}
    gpu_machine.add_times(record, samples, bytes=10**6, flop=10**9)
    assert record["providers"]["gan_fast"]["speedup"]["median"] == 3.0
    assert record["providers"]["gan_fast"]["gb_per_s"] == 0.4
    assert record["providers"]["gan_fast"]["tflop_per_s"] == 0.4


def test_results_of_a_dry_run_are_not_added(tmp_path: Path) -> None:
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({**suite_of(), "dry": True}))
    with pytest.raises(ValueError, match="to be from a GPU, got a dry run"):
        table.add(path, tmp_path / "results")
    path.write_text(json.dumps({**suite_of(), "dry": False, "device": "NVIDIA H200"}))
    assert table.add(path, tmp_path / "results").name == "nvidia-h200.json"
