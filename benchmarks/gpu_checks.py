"""The GPU suite's build and checks: the package, the tests that use a GPU, kernels under a sanitizer."""

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
# Time for pytest to write its summary after an interrupt.
SUMMARY_S = 12.0
# Time for a terminated command to end its children.
ENDING_S = 2.0
PARALLEL_TESTS = 14
# Time reserved for a build without CUDA kernels, in case the attempts before it fail.
FALLBACK_S = 50.0
INSTALL = ("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-e", ".")
IN_PLACE = ("setup.py", "-q", "build_ext", "--inplace")


@contextlib.contextmanager
def child(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the repository in a new session, and kill the whole session at the end of the ``with`` block.

    The command is terminated first: it may have started commands with this function, whose sessions only it can end.
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
    """Run a command in the repository; interrupt it at its time limit, then kill it. Return its status and output."""
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
    """Build in place without network; after a failure build without pip, then without CUDA kernels, and record it."""
    attempts = (
        ("pip", INSTALL, {"GAN_FAST_NATIVE": "1"}),
        ("setup.py", IN_PLACE, {"GAN_FAST_NATIVE": "1"}),
        ("setup.py, no CUDA kernels", IN_PLACE, {"GAN_FAST_NATIVE": "1", "FORCE_CUDA": "0"}),
    )
    attempts = attempts[1:2] if machine.dry else attempts
    for index, (name, arguments, settings) in enumerate(attempts):
        seconds = machine.left_s - SUMMARY_S - 2 - FALLBACK_S * (index < len(attempts) - 1)
        if seconds < 1:
            yield {"case": f"build by {name}", "skipped": "the time left is reserved for a build without CUDA kernels"}
            continue
        status, output = run([sys.executable, *arguments], seconds, **settings)
        record = {"case": f"build by {name}", "status": status}
        slow = "took too long: " if status == 124 else ""
        yield record if status == 0 else {**record, "failed": slow + output[-3000:]}
        if status == 0:
            return


def facts(machine: Machine) -> Iterator[Record]:
    """Return what gan_fast.info() says after the build."""
    import gan_fast

    yield {"case": "facts", **environment.describe(machine.device), "info": gan_fast.info().splitlines()}


# The tests of kernels, captures and copies to a GPU. Other files have GPU tests, too, but they compile so many more
# kernels that the part would exceed its time limit.
GPU_TESTS = ("triton_kernels/test_*.py", "cuda/test_*.py", "train/test_graph.py", "data/test_device_loader.py")


def gpu_tests() -> list[str]:
    """Return the test files that run on a GPU."""
    found = [path for pattern in GPU_TESTS for path in sorted(TESTS.glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in found if path.name != "test_compiled.py"]


def _sources(module: str) -> list[Path]:
    """Return the files of this repository that importing a module runs; none for a module of another package."""
    for root in (ROOT, TESTS):
        names = module.split(".")
        if (root / names[0]).is_dir() or (root / f"{names[0]}.py").is_file():
            stems = [root.joinpath(*names[: count + 1]) for count in range(len(names))]
            places = [place for stem in stems for place in (stem / "__init__.py", stem.with_suffix(".py"))]
            return [place for place in places if place.is_file()]
    return []


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Return the modules that importing a file imports; an imported name counts, because it may be a module."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def not_installed(path: Path) -> set[str]:
    """Return the packages that a test file needs, directly or through this repository, and that are not installed."""
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
    """Run the tests that use a GPU, stopped early enough to report failures; leave out files that lack a package."""
    chosen = ["tests/benchmarks/test_roofline.py"] if machine.dry else gpu_tests()
    lacking = {file: sorted(not_installed(ROOT / file)) for file in chosen}
    files = [file for file in chosen if not lacking[file]]
    left_out = {file: f"needs {', '.join(names)}" for file, names in lacking.items() if names}
    if not files:
        yield {"case": "pytest", "skipped": "no test file can be imported here", "left_out": left_out}
        return
    # Other versions of libraries may warn, which is no failure of gan_fast.
    options = ["-q", "--tb=short", "-rfE", "-W", "default", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if find_spec("xdist") and not machine.dry:
        options += ["-n", str(min(PARALLEL_TESTS, os.cpu_count() or 1)), "--dist", "worksteal"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    # The GPU runs the kernels that an emulator runs elsewhere.
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
    """Return the path of compute-sanitizer, on PATH or beside nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    homes += [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    folders = [str(Path(home) / place) for home in homes if home for place in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def sanitize(machine: Machine) -> Iterator[Record]:
    """Run memcheck and racecheck on Triton's and CUDA's kernels with small tensors."""
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
        # Without the caching allocator every tensor is a separate allocation, so that a write past its end is detected.
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
