"""Build, test and measure on a machine with an NVIDIA GPU, with one command and no network.

    python -m benchmarks.gpu_suite --out DIR [--parts rates norms ...]

Parts run one after the other, each in a process of its own with a time limit; what one has found is in DIR/suite.json
when it ends, whatever happens to the next. The table of all is printed last. Needs torch with CUDA, Triton, and for
the build a C++ compiler, pybind11 and ninja.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, roofline, table

ROOT = Path(__file__).parent.parent
# Larger than any GPU's second-level cache: what is rotated through this much memory is not in it.
BEYOND_CACHE = 512 * 2**20


def time_ms(work: Callable[[int], Any], rounds: int = 30, inside: int = 10) -> dict[str, float]:
    """Median and quartiles of one call's time on the GPU; ``work`` is given the number of its turn."""
    for turn in range(3):
        work(turn)
    times = []
    for first in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for turn in range(inside):
            work(first * inside + turn)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / inside)
    q1, median, q3 = statistics.quantiles(times, n=4)
    return {"median": median, "q1": q1, "q3": q3}


def facts() -> dict[str, Any]:
    """What this machine is."""
    import triton

    import gan_fast

    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        **environment.describe(device),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "memory_mib": properties.total_memory // 2**20,
        "processors": properties.multi_processor_count,
        "commit": commit or "not a git checkout",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "info": gan_fast.info(),
    }


def rates() -> dict[str, Any]:
    """What the chip really does: bandwidth of a copy, products of bfloat16 matrices."""
    source, target = (torch.empty(BEYOND_CACHE, dtype=torch.uint8, device="cuda") for _ in range(2))
    copy = time_ms(lambda _: target.copy_(source))
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = time_ms(lambda _: a @ b, rounds=15, inside=5)
    return {
        "copy_gb_per_s": 2 * BEYOND_CACHE / copy["median"] / 1e6,
        "bfloat16_tflop_per_s": 2 * size**3 / product["median"] / 1e9,
    }


def _norm(shape: tuple[int, ...], layout: torch.memory_format) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Work on inputs that no cache holds, and how often each reads or writes a tensor of the input's size."""
    import torch.nn.functional as F

    from gan_fast.triton_kernels import batch_norm_act

    copies = min(32, max(2, BEYOND_CACHE // (2 * math.prod(shape))))
    inputs = [
        torch.randn(shape, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=layout) for _ in range(copies)
    ]
    mean, var, weight, bias = (torch.rand(shape[1], device="cuda") + 0.5 for _ in range(4))
    affine, act = (weight, bias), ("leaky_relu", 0.2)
    _, batch_mean, invstd = batch_norm_act.forward(inputs[0], None, None, *affine, True, 0.1, 1e-5, *act)

    def forward(turn: int) -> Any:
        return batch_norm_act.forward(inputs[turn % copies], mean, var, *affine, True, 0.1, 1e-5, *act)

    def backward(turn: int) -> Any:
        x, grad = inputs[turn % copies], inputs[(turn + 1) % copies]
        return batch_norm_act.backward(grad, x, batch_mean, invstd, *affine, True, *act, True, True)

    def eager(turn: int) -> Any:
        return F.leaky_relu_(F.batch_norm(inputs[turn % copies], mean, var, *affine, True, 0.1, 1e-5), 0.2)

    # Forward reads twice and writes once, backward reads two tensors twice and writes one.
    return {"forward": (forward, 3), "backward": (backward, 5), "eager forward": (eager, 3)}


def norms() -> list[dict[str, Any]]:
    """batch_norm_act, forward and backward, in bfloat16: times, and the bandwidth of the bytes that must move."""
    found = []
    for shape in ((128, 64, 32, 32), (128, 128, 16, 16), (512, 64, 32, 32), (128, 512, 4, 4)):
        for layout in (torch.channels_last, torch.contiguous_format):
            for name, (work, passes) in _norm(shape, layout).items():
                case = f"batch_norm_act {name} {'x'.join(map(str, shape))} bfloat16 {layout}"
                taken = time_ms(work)
                moved = passes * 2 * math.prod(shape)
                found.append(
                    {
                        "case": case.replace("torch.", ""),
                        "time_ms": taken,
                        "gb_per_s": moved / taken["median"] / 1e6,
                    }
                )
    return found


def _convolution(layer: roofline.Layer, batch: int) -> tuple[dict[str, Callable[[int], Any]], torch.Tensor]:
    """Who convolves, and the result in float64."""
    from gan_fast.triton_kernels import conv

    transposed = layer.out_size > layer.in_size
    stride, padding = (1, 0) if 1 in (layer.in_size, layer.out_size) else (2, 1)
    shape = (layer.c_in, layer.c_out) if transposed else (layer.c_out, layer.c_in)
    x = torch.randn(batch, layer.c_in, layer.in_size, layer.in_size, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(*shape, 4, 4, device="cuda", dtype=torch.bfloat16) * 0.02
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    aten = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    options = ((stride,) * 2, (padding,) * 2, (1, 1), transposed, (layer.out_size,) * 2)
    providers = {
        "ATen": lambda _: aten(x, weight, None, stride, padding),
        "Triton": lambda _: conv.convolve(x, weight, None, *options)[0],
        "Triton, with statistics": lambda _: conv.convolve(x, weight, None, *options, statistics=True)[0],
    }
    return providers, aten(x.double(), weight.double(), None, stride, padding)


def convolutions() -> list[dict[str, Any]]:
    """The layers of DCGAN-64 in bfloat16: cuDNN through ATen, and Triton with and without a norm's statistics."""
    found = []
    for batch in (128, 1024):
        for layer in roofline.LAYERS:
            providers, want = _convolution(layer, batch)
            for name, work in providers.items():
                taken = time_ms(work, rounds=15)
                found.append(
                    {
                        "case": f"{layer.name} batch {batch} {name}",
                        "time_ms": taken,
                        "tflop_per_s": layer.flop(batch) / taken["median"] / 1e9,
                        "distance": ((work(0) - want).norm() / want.norm()).item(),
                    }
                )
    return found


def _command(*arguments: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
        return {"status": done.returncode, "end_of_output": (done.stdout + done.stderr)[-6000:]}

    return run


# Name -> what to do, and seconds it may take; eight minutes in all.
PARTS: dict[str, tuple[Callable[[], Any], int]] = {
    "build": (_command(sys.executable, "setup.py", "-q", "build_ext", "--inplace"), 90),
    "facts": (facts, 20),
    "tests": (_command(sys.executable, "-m", "pytest", "-q", "tests/triton_kernels", "-k", "not compiles"), 90),
    "rates": (rates, 20),
    "norms": (norms, 40),
    "convolutions": (convolutions, 60),
    "cases": (
        _command(sys.executable, "-m", "pytest", "-q", "benchmarks", "--case-seconds=0.5",
                 f"--benchmark-json={Path(os.environ.get('GAN_FAST_SUITE_OUT', '.')) / 'BENCH.json'}"),
        160,
    ),
}  # fmt: skip


def run_part(name: str, out: Path) -> dict[str, Any]:
    """One part in a process of its own: what it found, or why it found nothing."""
    seconds = PARTS[name][1]
    start = time.monotonic()
    environment_of_part = {**os.environ, "GAN_FAST_SUITE_OUT": str(out)}
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--out", str(out), "--only", name]
    # A session of its own, so that what a part has started ends with it and does not run beside the next.
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment_of_part, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        return {"failed": f"took longer than {seconds} s: {(output + errors)[-1000:]}"}
    found: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1)}
    if process.returncode:
        return {**found, "failed": (output + errors)[-3000:]}
    result = json.loads(output.splitlines()[-1])
    if isinstance(result, dict) and result.get("status"):
        return {**found, "failed": result["end_of_output"]}
    return {**found, "result": result}


def summary(found: dict[str, Any]) -> str:
    """All figures as text, shares of what the chip does where that was measured."""
    rates_found = found.get("rates", {}).get("result", {})
    rows = [("case", "median ms [q1, q3]", "rate", "share of the chip's")]
    for part in ("norms", "convolutions"):
        for case in found.get(part, {}).get("result", []):
            ms = case["time_ms"]
            key, unit, limit = (
                ("gb_per_s", "GB/s", "copy_gb_per_s") if "gb_per_s" in case else
                ("tflop_per_s", "TFLOP/s", "bfloat16_tflop_per_s")
            )  # fmt: skip
            share = f"{case[key] / rates_found[limit]:.0%}" if limit in rates_found else ""
            rows.append(
                (case["case"], f"{ms['median']:.4f} [{ms['q1']:.4f}, {ms['q3']:.4f}]", f"{case[key]:.0f} {unit}", share)
            )
    lines = table.markdown(rows)
    lines += [f"{name}: {value:.0f}" for name, value in rates_found.items()]
    for name, part in found.items():
        lines.append(f"{name}: " + (f"FAILED: {part['failed']}" if "failed" in part else f"{part['seconds']} s"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for suite.json and BENCH.json")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="which parts (default: all)")
    parser.add_argument("--only", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(PARTS[arguments.only][0]()))
        return
    if not torch.cuda.is_available():
        sys.exit("gpu_suite: expected a GPU that torch can use, got none")
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out.resolve()
    found: dict[str, Any] = {}
    for name in arguments.parts:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = run_part(name, out)
        (out / "suite.json").write_text(json.dumps(found, indent=1) + "\n")
    print(summary(found))
    sys.exit(any("failed" in part for part in found.values()))


if __name__ == "__main__":
    main()
