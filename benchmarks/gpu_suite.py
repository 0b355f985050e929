"""Build, test and measure on a machine with an NVIDIA GPU, with one command, no network, in eight minutes.

    python -m benchmarks.gpu_suite --out DIR [--commit ID]                        # build, tests, losses, whole steps
    python -m benchmarks.gpu_suite --out DIR --parts norms blocks [--commit ID]   # other parts, in a later run
    python -m benchmarks.gpu_suite --out DIR --dry        # tiny sizes on the CPU; the times mean nothing

Parts run one after the other, each in a separate process with a time limit. The results of finished parts are in
DIR/suite.json at any time, those of the running part in DIR/running.jsonl. If a provider breaks the device, its part
runs once more without it. The measurements of automatic choice are in DIR/choices, shared by all parts and separate
from the user's. The table of all results is printed last. Needs torch with CUDA, Triton, and for the build a C++
compiler, pybind11 and ninja; uses nvcc, pytest and compute-sanitizer if they are installed.

`python -m benchmarks.table --add DIR/suite.json` adds the results to benchmarks/results and to docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, gpu_checks, table
from benchmarks.gpu_machine import Machine, Record
from gan_fast import tuning

ROOT = Path(__file__).parent.parent
TOTAL_S = 480.0
# With less time a part would not get beyond importing torch.
LEAST_S = 15.0
# A dry run has longer time limits, because only its results matter.
DRY_FACTOR = 10.0
# A part gets a shorter limit than its process, so that it can end normally.
MARGIN_S = 3.0
FATAL = 3
RAN_OUT = "took longer than "
# The results so far of the running part, in case the whole suite is killed.
RUNNING = "running.jsonl"


def ops_part(name: str) -> Callable[[Machine], Iterator[Record]]:
    def run(machine: Machine) -> Iterator[Record]:
        from benchmarks import gpu_ops

        yield from getattr(gpu_ops, name)(machine)

    return run


def step_part(name: str) -> Callable[[Machine], Iterator[Record]]:
    def run(machine: Machine) -> Iterator[Record]:
        from benchmarks import gpu_step

        yield from getattr(gpu_step, name)(machine)

    return run


def cases(machine: Machine) -> Iterator[Record]:
    """Run the cases of `make bench`, with short measurements."""
    absent = [name for name in ("pytest", "pytest_benchmark") if find_spec(name) is None]
    if absent:
        yield {"case": "make bench", "skipped": f"needs {', '.join(absent)}"}
        return
    out = Path(os.environ.get("GAN_FAST_SUITE_OUT", "."))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "--case-seconds=0.3",
               f"--benchmark-json={out / 'BENCH.json'}", "benchmarks"]  # fmt: skip
    if machine.dry:
        command += ["--collect-only"]
    status, output = gpu_checks.run(command, machine.left_s - gpu_checks.SUMMARY_S)
    record: Record = {"case": "make bench", "status": status, "end_of_output": output[-3000:]}
    yield {**record, "failed": output[-3000:]} if status else record


@dataclass(frozen=True)
class Part:
    run: Callable[[Machine], Iterator[Record]]
    limit_s: float
    # Whether running out of time counts as skipped, not failed: the time of torch.compile is hard to predict.
    may_run_out: bool = False


PARTS: dict[str, Part] = {
    "build": Part(gpu_checks.build, 150),
    "facts": Part(gpu_checks.facts, 20),
    "rates": Part(ops_part("rates"), 30),
    "losses": Part(ops_part("losses"), 38),
    "tests": Part(gpu_checks.tests, 105),
    # gan_fast's first step measures about twenty classes of shapes and compiles the kernels of each.
    "step": Part(step_part("step"), 120),
    "norms": Part(ops_part("norms"), 80),
    "critic_iteration": Part(step_part("critic_iteration"), 60),
    "blocks": Part(ops_part("blocks"), 90),
    "compiled_step": Part(step_part("compiled_step"), 60, may_run_out=True),
    "penalty": Part(ops_part("penalty"), 30),
    "leaky_relu": Part(ops_part("leaky_relu"), 25),
    "sample_norm_penalty": Part(ops_part("sample_norm_penalty"), 25),
    "noise": Part(ops_part("noise"), 25),
    "discrimination": Part(ops_part("discrimination"), 30),
    "large_step": Part(step_part("large_step"), 60),
    "sanitizer": Part(gpu_checks.sanitize, 160),
    "convolutions": Part(ops_part("convolutions"), 50),
    "autotuned_step": Part(step_part("autotuned_step"), 120, may_run_out=True),
    "cases": Part(cases, 120, may_run_out=True),
}
# Their limits fit into TOTAL_S together, so that each of them has its full time.
DEFAULT_PARTS = ("build", "facts", "rates", "losses", "tests", "step")


def origin(device: torch.device, commit: str | None) -> dict[str, Any]:
    """Return the machine, versions, date and commit of the figures."""
    found: dict[str, Any] = {
        "device": environment.device_name(device),
        "kind": "gpu_suite",
        "dry": device.type == "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": tuning._triton_version(),
        "commit": commit or _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "memory_mib": properties.total_memory // 2**20,
            "processors": properties.multi_processor_count,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        }
    return found


def _commit() -> str:
    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return (commit + ", with uncommitted changes" * bool(changed)) if commit else "not a git checkout"


def run_here(name: str, lines: Path, device: torch.device, seconds: float, without: list[str]) -> int:
    """Run a part in this process and write each record at once; return the exit status."""
    machine = Machine(device, seconds, without)
    with lines.open("a") as file, machine.stream():
        for record in PARTS[name].run(machine):
            file.write(json.dumps(record) + "\n")
            file.flush()
            if "fatal" in record:
                return FATAL
    return 0


def run_part(name: str, out: Path, device: torch.device, seconds: float) -> dict[str, Any]:
    """Run a part in a separate process; return its records, its duration and, if it failed, the reason."""
    start = time.monotonic()
    without: list[str] = []
    records: dict[str, Record] = {}
    while True:
        left = seconds - (time.monotonic() - start)
        failed = _run_process(name, out, device, left, without, records)
        # The exit status does not matter here: a process with a broken device can also crash on exit.
        broken = [record["fatal"] for record in records.values() if record.get("fatal") not in (None, *without)]
        if not broken or seconds - (time.monotonic() - start) < LEAST_S:
            break
        without += broken
    found: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1), "records": list(records.values())}
    if without or broken:
        found["broke_the_device"] = sorted({*without, *broken})
    if failed:
        ran_out = failed.startswith(RAN_OUT) and PARTS[name].may_run_out
        found["skipped" if ran_out else "failed"] = failed
    return found


def _run_process(
    name: str, out: Path, device: torch.device, seconds: float, without: list[str], records: dict[str, Record]
) -> str:
    lines = out / RUNNING
    lines.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(out), "--only", name, "--device", device.type,
               "--seconds", str(seconds - MARGIN_S), "--without", *without]  # fmt: skip
    settings = {**os.environ, "GAN_FAST_SUITE_OUT": str(out), "GAN_FAST_CACHE": str(out / "choices")}
    if device.type == "cpu":
        settings["TRITON_INTERPRET"] = "1"
    with gpu_checks.child(command, settings) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
            failed = (output[-3000:] or f"exit status {process.returncode}") if process.returncode else ""
        except subprocess.TimeoutExpired as expired:
            output = (expired.output or b"").decode(errors="replace")
            failed = f"{RAN_OUT}{seconds:.0f} s: {output[-1000:]}"
    merge(records, lines)
    lines.unlink(missing_ok=True)
    return failed


def merge(records: dict[str, Record], lines: Path) -> None:
    """Add the records that a process wrote, except an incomplete line; a second run replaces what it measured."""
    for line in lines.read_text().splitlines() if lines.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            earlier = records.get(record["case"], {})
            kept = {
                name: found
                for name, found in earlier.get("providers", {}).items()
                if "skipped" in record.get("providers", {}).get(name, {})
            }
            records[record["case"]] = {**earlier, **record}
            if kept:
                records[record["case"]]["providers"] = {**record["providers"], **kept}


def run_parts(
    names: list[str],
    out: Path,
    device: torch.device,
    found: dict[str, Any],
    run: Callable[[str, Path, torch.device, float], dict[str, Any]] = run_part,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run parts within TOTAL_S in total; after each of them suite.json has all results so far."""
    start = clock()
    factor = DRY_FACTOR if device.type == "cpu" else 1.0
    write(out, found)
    for name in names:
        left = factor * TOTAL_S - (clock() - start)
        print(f"{name} ...", file=sys.stderr, flush=True)
        if left < LEAST_S:
            found["parts"][name] = {"seconds": 0.0, "records": [], "skipped": "no time was left"}
        else:
            found["parts"][name] = run(name, out, device, min(factor * PARTS[name].limit_s, left))
        table.add_shares(found)
        write(out, found)


def write(out: Path, found: dict[str, Any]) -> None:
    """Write suite.json atomically: the suite may be killed while it writes."""
    unfinished = out / "suite.tmp"
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    unfinished.replace(out / "suite.json")


def earlier_parts(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an earlier run of the same commit on the same device, so that parts can run one at a time."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    same = all(earlier[key] == found[key] for key in ("device", "torch", "triton", "commit", "dry"))
    return dict(earlier["parts"]) if same else {}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for suite.json and BENCH.json")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(DEFAULT_PARTS),
                        help=f"parts to run (default: {' '.join(DEFAULT_PARTS)})")  # fmt: skip
    parser.add_argument("--commit", help="the measured commit, if the folder is no git checkout")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help=argparse.SUPPRESS)
    parser.add_argument("--without", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.only:
        device = torch.device(options.device)
        sys.exit(run_here(options.only, out / RUNNING, device, options.seconds, options.without))
    device = torch.device("cpu" if options.dry else "cuda")
    if not options.dry and not torch.cuda.is_available():
        sys.exit("gpu_suite: expected a GPU that torch can use, got none")
    found: dict[str, Any] = {**origin(device, options.commit), "parts": {}}
    found["parts"] = earlier_parts(out / "suite.json", found)
    run_parts(options.parts, out, device, found)
    print(table.suite(found))
    sys.exit(bool(table.failures(found)))


if __name__ == "__main__":
    # On SIGTERM end the child processes, too: SystemExit runs the ``finally`` blocks.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    main()
