"""Choose the kernel that a call uses.

A call requests a backend: the one of ``use_backend``, else of GAN_FAST_BACKEND, else "auto".

- "cpu", "cuda" and "triton" use that backend's kernel, or raise a RuntimeError that says why it cannot run.
- "reference" uses plain PyTorch (ATen's ops).
- "auto" uses, for each op, device and dtype, the first of these that applies:
  1. ATen's ops under functorch transforms and forward-mode AD, and for small tensors where they are faster;
  2. on a GPU with several candidates, the fastest, timed at the first call of each class of shapes;
  3. the compiled extension's kernel for the device, which PyTorch's dispatcher finds;
  4. Triton's kernel on a GPU;
  5. the reference, with a warning that is logged once.

>>> import torch, gan_fast
>>> with gan_fast.use_backend("reference"):
...     gan_fast.ops.leaky_relu(torch.tensor([-1.0, 2.0]), 0.2)
tensor([-0.2000,  2.0000])
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import platform
import re
import shutil
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from gan_fast import extension, tuning
from gan_fast.triton_kernels import DTYPES
from gan_fast.version import __version__

logger = logging.getLogger("gan_fast")

NAMES = ("auto", "reference", "cpu", "cuda", "triton")

# Bound once, since every op call uses them.
_functorch_active = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state

# Public op -> the op of torch.ops.gan_fast whose kernel it uses, or None for autograd functions that also work with
# ATen's kernels alone. The files of ops/ register their entries at import.
_torch_ops: dict[str, str | None] = {}
# Public op -> the file of triton_kernels/ that has its Triton kernels.
_triton_files: dict[str, str] = {}
# Public ops that draw random numbers. The numbers depend on the kernel, so it is never chosen by its time.
_random_ops: set[str] = set()
# Public ops that call :func:`is_small`, directly or through other ops.
_aten_when_small: set[str] = set()
# (Op of torch.ops.gan_fast, device type) pairs that the dispatcher sends to Triton.
_by_triton: set[tuple[str, str]] = set()


def register(
    op: str, torch_op: str | None, triton_file: str | None = None, random: bool = False, aten_when_small: bool = False
) -> None:
    _torch_ops[op] = torch_op
    if aten_when_small:
        _aten_when_small.add(op)
    if random:
        _random_ops.add(op)
    if triton_file is not None:
        _triton_files[op] = triton_file


def _check_name(name: str, origin: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{origin}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


# Empty if GAN_FAST_BACKEND is invalid: that is reported on first use, so that the command line can print it cleanly.
_requested = os.environ.get("GAN_FAST_BACKEND", "auto")
_requested = _requested if _requested in NAMES else ""

# The backend of a measured choice, for calls of one thread.
_thread = threading.local()


def requested() -> str:
    """Return the backend that a call requests now.

    Raises:
        ValueError: GAN_FAST_BACKEND is not the name of a backend.
    """
    name = getattr(_thread, "name", None) or _requested
    return name or _check_name(os.environ["GAN_FAST_BACKEND"], "GAN_FAST_BACKEND")


def use_backend(name: str) -> AbstractContextManager[None]:
    """Request one backend for every op inside the ``with`` block.

    Args:
        name: "auto" (a fused kernel where there is one, else the reference), "reference" (plain PyTorch), or "cpu",
            "cuda" or "triton" (that backend's kernel or an error, never a silent fallback).

    Raises:
        ValueError: ``name`` is not one of these.

    Notes:
        The request holds for the whole process. The backend is chosen when an op is called, and backward uses the
        backend of its forward. ``GAN_FAST_BACKEND`` is the request outside of any block.
    """
    # Check the name here and not on entering the block, so that a call without `with` also raises.
    return _use(_check_name(name, "use_backend"))


@contextlib.contextmanager
def _use(name: str) -> Iterator[None]:
    global _requested
    previous, _requested = _requested, name
    try:
        yield
    finally:
        _requested = previous


@contextlib.contextmanager
def use_backend_in_thread(name: str) -> Iterator[None]:
    """Use a backend in this thread only: for a measured choice, which must not change the user's request."""
    previous, _thread.name = getattr(_thread, "name", None), name
    try:
        yield
    finally:
        _thread.name = previous


def _extension_unavailable(op: str, device_type: str) -> str | None:
    """Return why the compiled extension cannot run ``op`` on a device, or None."""
    torch_op = _torch_ops[op]
    if torch_op is None:
        return None
    if not extension.available():
        return f"the compiled extension is not built (build: {extension.BUILD_COMMAND})"
    if not extension.has_kernel(torch_op, device_type) or (torch_op, device_type) in _by_triton:
        return f"no kernel for device {device_type}"
    return None


_TRITON_MISSING = "Triton is not installed (install: pip install triton)"


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_unavailable(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Return why Triton cannot run ``op`` on a device, or None."""
    if op not in _triton_files:
        return "no Triton kernel for this op"
    if not _triton_is_installed():
        return _TRITON_MISSING
    if not extension.available():
        return f"the compiled extension, which defines the ops, is not built (build: {extension.BUILD_COMMAND})"
    if dtype not in DTYPES:
        return f"no Triton kernel for {dtype}"
    if device_type == "cuda":
        return _launch_failure()
    if device_type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        return f"no Triton for device {device_type} (TRITON_INTERPRET=1 runs it on a CPU, slowly, for tests)"
    return None


# Why Triton cannot launch a kernel on this machine: empty if it can, None before the first attempt.
_launch_error: str | None = None


def _launch_failure() -> str | None:
    """Return why Triton cannot launch kernels here, or None: launches an empty kernel, once.

    Triton needs a C compiler for its launchers, and a driver and a GPU that it supports.
    """
    global _launch_error
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    if _launch_error is None:
        if torch.cuda.is_current_stream_capturing():
            # The graph would record the empty kernel, and a capture may not load kernels.
            return None
        try:
            importlib.import_module("gan_fast.triton_kernels.launch").launch_empty_kernel()
        except Exception as error:  # an import, the compiler or the driver: of any type
            first_line = (str(error).splitlines() or [""])[0]
            _launch_error = f"Triton cannot launch a kernel: {type(error).__name__}: {first_line}"
            logger.warning("not using Triton kernels: %s", _launch_error)
        else:
            _launch_error = ""
    return _launch_error or None


# (Op, device, dtype) -> whether the Triton kernels of an op that is never measured have passed their trial.
_tried: dict[tuple[str, torch.device, torch.dtype], bool] = {}


def runs_on_triton(
    op: str, input: torch.Tensor, trial: Callable[[], tuple[list[torch.Tensor], list[torch.Tensor]]]
) -> bool:
    """Whether the Triton kernels of an op that is never measured run here; a failure is logged once.

    Args:
        trial: runs the kernels on fixed values and returns the results and the expected results. It draws no random
            numbers from torch's generators.

    Notes:
        The trial runs at the first call, before that call draws anything: the kernels, and so the numbers of a seed, do
        not change within a process. It is skipped during CUDA graph capture and under a dispatch mode.
    """
    key = (op, input.device, input.dtype)
    if key not in _tried:
        capturing = input.is_cuda and torch.cuda.is_current_stream_capturing()
        if capturing or torch._C._len_torch_dispatch_stack():
            return True

        def find_fault(_: str) -> str | None:
            with torch.no_grad():
                actual, expected = trial()
            return tuning.disagreement(actual, expected, expected)

        _tried[key] = tuning.runs_correctly(input.device, op, str(input.dtype), "triton", find_fault)
    return _tried[key]


# Results of :func:`_default_backend`: read on every op call, and each fallback is logged once.
_default_backends: dict[tuple[str, str, torch.dtype], str] = {}


def _default_backend(op: str, device_type: str, dtype: torch.dtype) -> str:
    """Return the backend that "auto" uses without measuring: ``device_type``, "triton" or "reference"."""
    key = (op, device_type, dtype)
    if key not in _default_backends:
        reason = _extension_unavailable(op, device_type)
        if reason is None and op not in _random_ops:
            _default_backends[key] = device_type
        elif device_type == "cuda" and _triton_unavailable(op, device_type, dtype) is None:
            _default_backends[key] = "triton"
        elif reason is None:
            _default_backends[key] = device_type
        else:
            # If the extension is missing, extension.py has already logged that once for all ops.
            if extension.available():
                logger.warning("%s on %s: using the reference (plain PyTorch): %s", op, device_type, reason)
            _default_backends[key] = "reference"
    return _default_backends[key]


# What torch.compiler.assume_constant_result does; calling it would import all of torch.compile, which takes seconds.
_default_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_transformed() -> bool:
    """Whether functorch (vmap, grad, jvp) or forward-mode AD is active: they cannot trace an autograd.Function."""
    return _functorch_active() or forward_ad._current_level >= 0


def uses_kernel(op: str, device_type: str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether this call uses a fused kernel; otherwise it uses the reference.

    Raises:
        RuntimeError: the requested backend cannot run the op; the message says why and what to install.
    """
    name = requested()
    if name == "auto":
        # The reference is correct under all transforms.
        return not is_transformed() and _default_backend(op, device_type, dtype) != "reference"
    if name == "reference":
        return False
    if name == "triton":
        reason = _triton_unavailable(op, device_type, dtype)
    elif name != device_type:
        raise RuntimeError(f"{op}: expected input on a {name} device for backend {name}, got {device_type}")
    else:
        reason = _extension_unavailable(op, device_type)
    if reason is not None:
        raise RuntimeError(f"{op}: expected backend {name} to be available, got: {reason}")
    return True


def check_requested(device_type: str) -> None:
    """Check that GAN_FAST_BACKEND or :func:`use_backend` names a backend that runs on a device.

    Raises:
        ValueError: it does not; the message says why.
    """
    try:
        uses_kernel("conv2d", device_type)
    except RuntimeError as error:
        reason = str(error).removeprefix("conv2d: ")
        raise ValueError(f"GAN_FAST_BACKEND: {reason}; unset GAN_FAST_BACKEND to use the fastest available") from error


def uses_cpu_kernel(op: str) -> bool:
    """Whether a call with plain CPU tensors uses the extension's CPU kernel.

    A faster test than :func:`uses_kernel`. If it is False, call :func:`uses_kernel`, which raises the right error.
    """
    name = requested()
    return (
        (name == "auto" or name == "cpu")
        and not _functorch_active()
        and _default_backend(op, "cpu", torch.float32) == "cpu"
    )


def dispatch_to_triton(torch_op: str, file: str, function: str) -> Callable[..., Any] | None:
    """Return the function to register with the dispatcher for ``torch_op`` on a GPU, or None if it has a CUDA kernel.

    This makes direct calls and compiled graphs of ``torch.ops.gan_fast.*`` work on a GPU.
    """
    if not extension.available() or extension.has_kernel(torch_op, "cuda"):
        return None
    _by_triton.add((torch_op, "cuda"))

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(f"gan_fast.triton_kernels.{file}"), function)(*args)

    return call


# Other tensor classes may have no memory that Triton can read.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def triton_module(op: str) -> ModuleType:
    """Return the module with the Triton functions of an op."""
    return importlib.import_module(f"gan_fast.triton_kernels.{_triton_files[op]}")


def triton_kernels(op: str, input: torch.Tensor) -> ModuleType | None:
    """Return the module whose Triton functions this call uses, or None to call the op through the dispatcher."""
    name = requested()
    if type(input) not in _PLAIN:
        if name == "triton" and not isinstance(input, FakeTensor):
            raise RuntimeError(f"{op}: expected input type Tensor for backend triton, got {type(input).__name__}")
        return None
    if name == "auto" and not input.is_cpu:
        return triton_module(op) if _default_backend(op, input.device.type, input.dtype) == "triton" else None
    return triton_module(op) if name == "triton" else None


# Up to this number of values ATen's chain of ops is faster: an autograd function in Python costs more than a fused
# kernel saves.
SMALL = 8192


def is_small(input: object, *others: object) -> bool:
    """Whether "auto" leaves this call to ATen: tensors (or None) on one device, each of at most SMALL values."""
    if requested() != "auto" or not isinstance(input, torch.Tensor) or _tracing() or torch.compiler.is_compiling():
        # Reading a size would fix it in the trace or add a guard to the compiled graph.
        return False
    if input.numel() > SMALL or not input.dtype.is_floating_point:
        return False
    device = input.device
    for t in others:
        if t is not None and not (isinstance(t, torch.Tensor) and t.numel() <= SMALL and t.device == device):
            return False
    return True


# Device types on which "auto" measures: those where an op has kernels of several backends.
_MEASURED_ON = ("cuda",)
# Class of calls -> the backend that was fastest.
_fastest: dict[tuple[Any, ...], str] = {}


def is_measured(input: torch.Tensor) -> bool:
    """Whether a call with this input chooses its backend by measured times.

    False under functorch, tracing, dispatch modes or saved-tensor hooks, which would observe the measurements.
    """
    return (
        requested() == "auto"
        and input.device.type in _MEASURED_ON
        and type(input) in _PLAIN
        and not torch.compiler.is_compiling()
        and not (is_transformed() or _tracing())
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def candidates(op: str, device_type: str, dtype: torch.dtype) -> list[str]:
    """Return the backends that can run an op; the first is what "auto" uses without measuring."""
    found = [device_type] if _extension_unavailable(op, device_type) is None else []
    found += ["triton"] if _triton_unavailable(op, device_type, dtype) is None else []
    return [*found, "reference"]


def call_fastest(
    op: str,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    shape_class: Callable[[], tuple[Any, ...]],
    unmeasured: str | None = None,
) -> Any:
    """Return ``call(*arguments)``, under the fastest backend where calls are measured.

    Args:
        call, arguments: as in :func:`call_fastest_of`.
        shape_class: returns the ``shape_class`` of :func:`call_fastest_of`.
        unmeasured: the backend to use while nothing may be measured, if it can run the op.
    """
    input = arguments[0]
    if not is_measured(input):
        return call(*arguments)
    names = candidates(op, input.device.type, input.dtype)
    names.sort(key=lambda name: name != unmeasured)
    return call_fastest_of(op, names, shape_class(), call, arguments)


def call_fastest_of(
    op: str,
    names: list[str],
    shape_class: tuple[Any, ...],
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    trial: tuple[Any, ...] | None = None,
) -> Any:
    """Return ``call(*arguments)`` under the fastest of some backends.

    Args:
        names: the candidates. The first is used while nothing may be measured.
        shape_class: calls of one class use the same backend.
        call: follows :func:`use_backend`. Its first argument is a tensor on the device. It returns a tensor to
            differentiate, or a tuple that begins with one.
        trial: arguments to measure with, if calling with ``arguments`` would have side effects. Measurements run on
            random copies of them.

    Notes:
        A class is measured at its first call: forward and, if gradients are needed, backward. Nothing is measured
        during CUDA graph capture. With GAN_FAST_TUNE=0 nothing is timed, and the first candidate that runs and agrees
        with the reference is used.
    """
    device = arguments[0].device
    needs_grad = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in arguments)
    call_class = (op, device, *names, *shape_class, needs_grad)
    name = _fastest.get(call_class)
    if name is None:
        key = f"{' '.join(map(str, shape_class))} {'with gradient' if needs_grad else 'alone'} of {' '.join(names)}"
        times_ms = tuning.known_times(device, op, key) if tuning.enabled() else None
        if times_ms is None and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            find_fault = _fault_finder(call, trial or arguments, needs_grad)
            if tuning.enabled():
                work = _work(call, trial or arguments, needs_grad)
                times_ms = tuning.measure(device, op, key, names, work, find_fault)
            else:
                only = len(names) == 1  # a single candidate is used without a check
                usable = (n for n in names if only or tuning.runs_correctly(device, op, key, n, find_fault))
                times_ms = dict.fromkeys(itertools.islice(usable, 1), 0.0)
        name = min(times_ms, key=times_ms.__getitem__) if times_ms else names[0]
        if times_ms is not None:
            _fastest[call_class] = name
    if name == "auto":
        return call(*arguments)
    with use_backend_in_thread(name):
        return call(*arguments)


def _work(call: Callable[..., Any], arguments: tuple[Any, ...], gradient: bool) -> Callable[[str], Callable[[], Any]]:
    """Return a function that gives, for a backend, the work to time: the call and, with ``gradient``, its backward."""

    def work(name: str) -> Callable[[], Any]:
        copies = tuple(map(tuning.random_like, arguments))
        differentiable = [t for t in copies if isinstance(t, torch.Tensor) and t.requires_grad]

        def run() -> None:
            with use_backend_in_thread(name), torch.set_grad_enabled(gradient):
                output = call(*copies)
            output = output[0] if isinstance(output, tuple) else output
            if gradient:
                torch.autograd.grad(output, differentiable, torch.ones_like(output), allow_unused=True)

        return run

    return work


def _fault_finder(call: Callable[..., Any], arguments: tuple[Any, ...], gradient: bool) -> Callable[[str], str | None]:
    """Return a function that says how a backend's results differ from the reference's, or None if they agree."""

    def results(name: str, perturbed: bool = False) -> tuple[list[Any], list[Any]]:
        copies = tuple(tuning.random_like(argument, perturbed) for argument in arguments)
        with use_backend_in_thread(name), torch.set_grad_enabled(gradient):
            output = call(*copies)
        outputs = output if isinstance(output, tuple) else (output,)
        grads: tuple[torch.Tensor | None, ...] = ()
        if gradient:
            differentiable = [t for t in copies if isinstance(t, torch.Tensor) and t.requires_grad]
            # Random: for a constant output gradient the sums in a norm's backward vanish.
            grad = tuning.random_like(outputs[0].detach())
            grads = torch.autograd.grad(outputs[0], differentiable, grad, allow_unused=True)
        # Tensors written in place, such as running statistics.
        written = [t for t in copies if isinstance(t, torch.Tensor) and not t.requires_grad]
        return [t.detach() if isinstance(t, torch.Tensor) else None for t in outputs], [*grads, *written]

    @functools.cache
    def expected() -> tuple[tuple[list[Any], list[Any]], tuple[list[Any], list[Any]]] | None:
        try:
            return results("reference"), results("reference", perturbed=True)
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            logger.warning("kernel results are not checked: the reference failed: %s", first_line)
            return None

    def find_fault(name: str) -> str | None:
        # For a convolution "auto" is ATen's kernel.
        if name in ("reference", "auto"):
            return None
        outputs, others = results(name)
        if (references := expected()) is None:
            return None
        # A kernel may return None for a second output that is not needed.
        present = [index for index, t in enumerate(outputs) if t is not None]
        compared = [[first[index] for index in present] + rest for first, rest in ((outputs, others), *references)]
        return tuning.disagreement(*compared)

    return find_fault


def _explain(op: str, device_type: str) -> str:
    """Return what runs an op on a device and why, for :func:`info`."""
    name = requested()
    if name == "reference":
        return "reference (plain PyTorch): requested by name"
    if name != "auto":
        try:
            uses_kernel(op, device_type)
        except RuntimeError as error:
            return f"error: {error}"
        return f"{'Triton' if name == 'triton' else device_type} kernel: requested by name"
    backend, reason = _default_backend(op, device_type, torch.float32), _extension_unavailable(op, device_type)
    if op in _random_ops:
        if backend == "triton":
            return "Triton kernel: the only fused kernel of this op"
        missing = _triton_unavailable(op, device_type, torch.float32) if device_type == "cuda" else None
        return f"ATen's ops: {missing or f'no kernel for device {device_type}'}"
    small = f"; ATen's ops for tensors of up to {SMALL} values" if op in _aten_when_small else ""
    names = candidates(op, device_type, torch.float32)
    if device_type in _MEASURED_ON and len(names) > 2:
        return f"the fastest of {', '.join(names)}: measured for each class of shapes{small}"
    if backend == "triton":
        return f"Triton kernel: {reason} in the compiled extension{small}"
    if backend == "reference":
        return f"reference (plain PyTorch): {reason}"
    if _torch_ops[op] is not None:
        return f"{device_type} kernel: compiled extension{small}"
    if not extension.available():
        return f"ATen's kernels: the compiled extension is not built; gan_fast's autograd functions call them{small}"
    return f"ATen's or gan_fast's kernel: the faster one for the shape{small}"


def _measurements(device: torch.device) -> list[str]:
    lines = [f"measured on {device}:"] if (found := tuning.all_times(device)) else []
    for call, times_ms in found:
        shown = ", ".join(f"{name} {ms:.4f} ms" for name, ms in sorted(times_ms.items(), key=lambda item: item[1]))
        lines.append(f"  {call}: {shown or 'all candidates failed'}")
    return lines


def devices() -> list[str]:
    """Return the types of the devices that torch can use here."""
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def op_names() -> list[str]:
    """Return the ops that have kernels besides ATen's."""
    return sorted(_torch_ops)


def _triton_version() -> str:
    if not _triton_is_installed():
        return _TRITON_MISSING
    # Importing Triton would fix its settings from the environment. Some builds of torch install it under another name.
    for distribution in ("triton", "pytorch-triton", "triton-windows"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"Triton {importlib.metadata.version(distribution)}"
    return "Triton of an unknown version"


def _nvcc_version() -> str:
    """Return the version of the nvcc that a build would use, searched for as torch.utils.cpp_extension does."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    nvcc = nvcc or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return "nvcc not found (CUDA C++ kernels cannot be built without it)"
    try:
        output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvcc does not run: {error}"
    release = re.search(r"release ([\d.]+)", output)
    return f"nvcc {release[1] if release else 'of an unknown version'}"


def _count(number: int | None, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _machine() -> list[str]:
    """Return the lines of :func:`info` about software and hardware."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    # A container or scheduler may allow fewer CPUs than os.cpu_count() and torch count.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"gan_fast {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"torch {torch.__version__}, {cuda}; {_triton_version()}; {_nvcc_version()}",
        f"{_count(torch.get_num_threads(), 'CPU thread')} on {_count(cpus, 'CPU')}",
    ]
    if build := extension.build_info():
        used, best = build["instruction_set"], build["best_instruction_set"]
        which = "the best of this CPU" if used == best else f"set by GAN_FAST_ISA; the best of this CPU is {best}"
        lines.append(
            f"compiled extension: {build['compiler']}, built with torch {build['torch']}, "
            f"CPU instruction set {used} ({which}), CUDA {build['cuda_architectures'] or 'not built'}"
        )
    else:
        lines.append(f"compiled extension: not loaded: {extension.load_error} (build: {extension.BUILD_COMMAND})")
    return lines


def info() -> str:
    """Return a text that lists what runs each op on this machine, and why.

    The command ``gan-fast info`` prints it and also checks the ops.
    """
    lines = _machine()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    lines += [f"GPU {index}: {torch.cuda.get_device_name(index)}" for index in gpus]
    lines += [f"requested backend: {requested()}", "what runs each op, and why:"]
    ops_by_reason: dict[tuple[str, str], list[str]] = {}
    for device in devices():
        for op in op_names():
            ops_by_reason.setdefault((device, _explain(op, device)), []).append(op)
    for (device, reason), ops in ops_by_reason.items():
        lines.append(f"  {device:<4}  {reason}")
        lines += textwrap.wrap(", ".join(ops), 116, initial_indent=" " * 10, subsequent_indent=" " * 10)
    for index in gpus:
        lines += _measurements(torch.device("cuda", index))
    return "\n".join(lines)
