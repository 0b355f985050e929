"""What the GPU suite builds and checks: the package itself, the tests that use a GPU, kernels under a sanitizer."""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import environment
from benchmarks.gpu_machine import Machine, Record

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests"
# What pytest gets to write its summary once it is told to stop.
SUMMARY_S = 12.0
# What a command that is told to end gets for ending what it has started.
ENDING_S = 2.0
PARALLEL_TESTS = 14
# What a build without the CUDA kernels needs: kept for it whatever the attempts before it take.
FALLBACK_S = 50.0
INSTALL = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-e", ".")
IN_PLACE = ("setup.py", "-q", "build_ext", "--inplace")


@contextlib.contextmanager
def child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command in the repository, in a session of its own: whatever it started ends with the ``with`` block.

    It is told first, since commands that it runs by this function are in sessions that it alone ends.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDING_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def run(command: Sequence[str], seconds: float, **settings: str) -> tuple[int, str]:
    """Run a command in the repository; past its time interrupt it, then kill it. Return its status and output."""
    with child(command, {**os.environ, **settings}) as process:
        try:
            output, _ = process.communicate(timeout=max(1.0, seconds))
            return process.returncode, output
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=SUMMARY_S)
        except subprocess.TimeoutExpired as expired:
            output = (expired.output or b"").decode(errors="replace")
    return 124, output


def build(machine: Machine) -> Iterator[Record]:
    """Build in place without network; without pip, or without the CUDA kernels, where that fails, and say so."""
    attempts = (
        ("pip", INSTALL, {"GAN_FAST_NATIVE": "1"}),
        ("setup.py", IN_PLACE, {"GAN_FAST_NATIVE": "1"}),
        ("setup.py, no CUDA kernels", IN_PLACE, {"GAN_FAST_NATIVE": "1", "FORCE_CUDA": "0"}),
    )
    attempts = attempts[1:2] if machine.dry else attempts
    for index, (name, arguments, settings) in enumerate(attempts):
        seconds = machine.left_s - SUMMARY_S - 2 - FALLBACK_S * (index < len(attempts) - 1)
        if seconds < 1:
            yield {"case": f"build by {name}", "skipped": "the time left is kept for a build without CUDA kernels"}
            continue
        status, output = run([sys.executable, *arguments], seconds, **settings)
        record = {"case": f"build by {name}", "status": status}
        slow = "took too long: " if status == 124 else ""
        yield record if status == 0 else {**record, "failed": slow + output[-3000:]}
        if status == 0:
            return


def facts(machine: Machine) -> Iterator[Record]:
    """What runs here, as the package sees it once it is built."""
    import gan_fast

    yield {"case": "facts", **environment.describe(machine.device), "info": gan_fast.info().splitlines()}


# The tests of kernels, captures and copies to a GPU. Further files name a GPU; with theirs, which compile many kernels
# more, the part would not end within its time.
GPU_TESTS = ("triton_kernels/test_*.py", "cuda/test_*.py", "train/test_graph.py", "data/test_device_loader.py")


def gpu_tests() -> list[str]:
    """Test files that run on a GPU where there is one."""
    found = [path for pattern in GPU_TESTS for path in sorted(TESTS.glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in found if path.name != "test_compiled.py"]


def _sources(module: str) -> list[Path]:
    """This repository's files that importing a module runs; none where it is another's."""
    for root in (ROOT, TESTS):
        names = module.split(".")
        if (root / names[0]).is_dir() or (root / f"{names[0]}.py").is_file():
            stems = [root.joinpath(*names[: count + 1]) for count in range(len(names))]
            places = [place for stem in stems for place in (stem / "__init__.py", stem.with_suffix(".py"))]
            return [place for place in places if place.is_file()]
    return []


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Modules that a file imports when it is imported itself; names taken from a module count, as they may be some."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def not_installed(path: Path) -> set[str]:
    """What a test file needs, itself or through files of this repository, and cannot import here."""
    reached, waiting, missing = set(), [TESTS / "conftest.py", path], set()
    while waiting:
        source = waiting.pop()
        if source in reached:
            continue
        reached.add(source)
        for module in _imports(source):
            package = module.partition(".")[0]
            sources = _sources(module)
            waiting += sources
            if not sources and not (ROOT / package).is_dir() and find_spec(package) is None:
                missing.add(package)
    return missing


def tests(machine: Machine) -> Iterator[Record]:
    """The tests that use a GPU, stopped in time to tell what failed until then; without those that lack a library."""
    chosen = ["tests/benchmarks/test_roofline.py"] if machine.dry else gpu_tests()
    lacking = {file: sorted(not_installed(ROOT / file)) for file in chosen}
    files = [file for file in chosen if not lacking[file]]
    left_out = {file: f"needs {', '.join(names)}" for file, names in lacking.items() if names}
    if not files:
        yield {"case": "pytest", "skipped": "no test file can be imported here", "left_out": left_out}
        return
    # Warnings of other versions of libraries are no failures of ours.
    options = ["-q", "--tb=short", "-rfE", "-W", "default", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if find_spec("xdist") and not machine.dry:
        options += ["-n", str(min(PARALLEL_TESTS, os.cpu_count() or 1)), "--dist", "worksteal"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    # The GPU runs what an emulator shows elsewhere.
    found = run(command, machine.left_s - 2 * SUMMARY_S, GAN_FAST_EMULATE="0")
    yield {**test_record(*found, files), "left_out": left_out}


def test_record(status: int, output: str, files: Sequence[str]) -> Record:
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", output)}
    record: Record = {"case": "pytest", "status": status, "files": list(files), **counts}
    if status:
        record["failed_tests"] = re.findall(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE)
        record["failed"] = ("stopped at its time limit: " if status == 124 else "") + output[-8000:]
    return record


def sanitizer() -> str | None:
    """Path of compute-sanitizer, on PATH or beside nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    homes += [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    folders = [str(Path(home) / place) for home in homes if home for place in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def sanitize(machine: Machine) -> Iterator[Record]:
    """memcheck and racecheck of Triton's and the native GPU kernels on small tensors."""
    tool = sanitizer()
    checks = [
        (check, backend)
        for check in (("no tool",) if machine.dry else ("memcheck", "racecheck"))
        for backend in machine.backends
    ]
    for index, (check, backend) in enumerate(checks):
        script = [sys.executable, "-m", "benchmarks.gpu_sanitized", "--backend", backend]
        record: Record = {"case": f"compute-sanitizer {check}, {backend}"}
        if tool is None and not machine.dry:
            yield {**record, "skipped": "compute-sanitizer is neither on PATH nor in CUDA's folder"}
            continue
        command = script if tool is None or machine.dry else [tool, "--tool", check, "--error-exitcode", "9", *script]
        # Every tensor in an allocation of its own, so that writing past one is seen.
        status, output = run(
            command, machine.left_s / (len(checks) - index) - SUMMARY_S, PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        record["status"] = status
        record["checked"] = re.findall(r"^checked (.*)$", output, re.MULTILINE)
        record["absent"] = re.findall(r"^absent (.*)$", output, re.MULTILINE)
        if "Device not supported" in output:
            record["skipped"] = "compute-sanitizer does not support this device here"
        elif status:
            record["failed"] = ("took too long: " if status == 124 else "") + output[-4000:]
        elif not record["checked"]:
            record["skipped"] = "no kernels for this device"
        yield record
