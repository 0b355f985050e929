"""Which implementation serves an op here, and why.

Device choice is PyTorch's dispatcher's. What is chosen here is whether an op runs on our kernels at all, and on which:
the native module's for the tensors' device, Triton's where there is no such kernel, else the reference (plain ATen),
which says so once.
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

# Looked up once: this module stands before every call of an op.
_functorch_active = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state

# Public op -> the native op whose kernel serves it, or None where ours are autograd nodes that serve without one; ops/
# registers its entries at import.
_native_ops: dict[str, str | None] = {}
# Public op -> the file of triton_kernels/ that serves it.
_triton_files: dict[str, str] = {}
# Public ops that draw random numbers: what serves decides what is drawn, so that none is chosen by its time.
_random_ops: set[str] = set()
# Public ops that ask :func:`is_small`, themselves or in their parts.
_aten_when_small: set[str] = set()
# Native ops whose kernel for a device is Triton's.
_by_triton: set[tuple[str, str]] = set()


def register(
    op: str, native_op: str | None, triton_file: str | None = None, random: bool = False, aten_when_small: bool = False
) -> None:
    _native_ops[op] = native_op
    if aten_when_small:
        _aten_when_small.add(op)
    if random:
        _random_ops.add(op)
    if triton_file is not None:
        _triton_files[op] = triton_file


def _check_name(name: str, origin: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{origin}: expected name one of {', '.join(NAMES)}, got {name!r}")
    return name


# Empty where the environment asks for what there is not: an error of the first call that wants to know, so that the
# command line, which is part of what is imported, can say it in a line of its own.
_requested = os.environ.get("GAN_FAST_BACKEND", "auto")
_requested = _requested if _requested in NAMES else ""


# What a measured choice asks for, of the calls of its own thread.
_own = threading.local()


def requested() -> str:
    """The implementation that the running call asks for.

    Raises:
        ValueError: GAN_FAST_BACKEND has no name of one.
    """
    return getattr(_own, "name", None) or _requested or _check_name(os.environ["GAN_FAST_BACKEND"], "GAN_FAST_BACKEND")


def use_backend(name: str) -> AbstractContextManager[None]:
    """Ask for one implementation of every op inside the ``with`` block.

    Args:
        name: "auto" (our kernel where there is one, else the reference), "reference" (plain ATen), or "cpu", "cuda",
            "triton": that kernel or an error, never a silent fallback.

    Raises:
        ValueError: for another name.

    Notes:
        The choice is made when an op is called, for the whole process; backward runs on what its forward chose.
        ``GAN_FAST_BACKEND`` sets the choice outside of any block.
    """
    # Now, not on entering: a call without `with` does nothing else.
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
    """As :func:`use_backend`, for this thread alone: nobody has asked for it."""
    previous, _own.name = getattr(_own, "name", None), name
    try:
        yield
    finally:
        _own.name = previous


def _unavailable(op: str, device_type: str) -> str | None:
    """Why the native module cannot serve ``op`` on a device, or None where it can."""
    native_op = _native_ops[op]
    if native_op is None:
        return None
    if not extension.available():
        return f"the native module is not built (build: {extension.BUILD_COMMAND})"
    if not extension.has_kernel(native_op, device_type) or (native_op, device_type) in _by_triton:
        return f"no kernel for device {device_type}"
    return None


_TRITON_MISSING = "Triton is not installed (install: pip install triton)"


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_unavailable(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Why Triton cannot serve ``op`` on a device, or None where it can."""
    if op not in _triton_files:
        return "no Triton kernel for this op"
    if not _triton_is_installed():
        return _TRITON_MISSING
    if not extension.available():
        return f"the native module, which has the ops' schemas, is not built (build: {extension.BUILD_COMMAND})"
    if dtype not in DTYPES:
        return f"no Triton kernel for {dtype}"
    if device_type == "cuda":
        return _launch_failure()
    if device_type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        return f"no Triton for device {device_type} (on a CPU TRITON_INTERPRET=1 interprets it, for tests)"
    return None


# Why Triton launches nothing on this machine's GPUs, or None where it does; absent where it was not tried.
_launch_failures: dict[str, str | None] = {}


def _launch_failure() -> str | None:
    """Why Triton launches nothing here: no C compiler for its launchers, a driver or a GPU that it does not know.

    Tried once, on a kernel that does nothing.
    """
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    if "cuda" not in _launch_failures:
        if torch.cuda.is_current_stream_capturing():
            # A graph would hold the trial, and may not load kernels.
            return None
        try:
            importlib.import_module("gan_fast.triton_kernels.launch").nothing()
        except Exception as error:
            # Of any kind: an import, a compiler's, a driver's.
            first_line = (str(error).splitlines() or [""])[0]
            _launch_failures["cuda"] = f"Triton cannot launch a kernel: {type(error).__name__}: {first_line}"
            logger.warning("Triton's kernels are left out: %s", _launch_failures["cuda"])
        else:
            _launch_failures["cuda"] = None
    return _launch_failures["cuda"]


# Whether Triton's kernels of ops that are never measured run, for each op, device and dtype.
_tried: dict[tuple[str, torch.device, torch.dtype], bool] = {}


def runs_on_triton(
    op: str, input: torch.Tensor, trial: Callable[[], tuple[list[torch.Tensor], list[torch.Tensor]]]
) -> bool:
    """Whether Triton's kernels of an op that is never measured run here; where they do not, that is logged once.

    Args:
        trial: runs them on values of its own and returns the results beside those expected. It draws nothing.

    Notes:
        Tried at the first call, before anything is drawn: the kernels, and so what a seed gives, do not change within
        a run. Not tried while a graph is captured or under a mode that records what is called.
    """
    key = (op, input.device, input.dtype)
    if key not in _tried:
        capturing = input.is_cuda and torch.cuda.is_current_stream_capturing()
        if capturing or torch._C._len_torch_dispatch_stack():
            return True

        def fault(_: str) -> str | None:
            with torch.no_grad():
                found, want = trial()
            return tuning.disagreement(found, want, want)

        _tried[key] = tuning.runs(input.device, op, str(input.dtype), "triton", fault)
    return _tried[key]


# Answers of automatic choice, so that each falling back is logged once.
_default_backends: dict[tuple[str, str, torch.dtype], str] = {}


def _default_backend(op: str, device_type: str, dtype: torch.dtype) -> str:
    """What automatic choice takes: "native", "triton" or "reference"."""
    key = (op, device_type, dtype)
    if key not in _default_backends:
        reason = _unavailable(op, device_type)
        if reason is None and op not in _random_ops:
            _default_backends[key] = "native"
        elif device_type == "cuda" and _triton_unavailable(op, device_type, dtype) is None:
            _default_backends[key] = "triton"
        elif reason is None:
            _default_backends[key] = "native"
        else:
            # Without a native module extension.py has said so already, for all ops.
            if extension.available():
                logger.warning("%s on %s: the reference serves, because %s", op, device_type, reason)
            _default_backends[key] = "reference"
    return _default_backends[key]


# As torch.compiler.assume_constant_result does, which imports all of torch.compile for it: seconds, for every user.
_default_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_transformed() -> bool:
    """Whether functorch (vmap, grad, jvp) or forward-mode AD is active: neither can look into an autograd.Function."""
    return _functorch_active() or forward_ad._current_level >= 0


def uses_kernel(op: str, device_type: str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether kernels of ours serve this call; False sends it to the reference.

    Raises:
        RuntimeError: the backend asked for by name is not there; the message says how to get it.
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
        raise RuntimeError(f"{op}: expected input device {name} for backend {name}, got {device_type}")
    else:
        reason = _unavailable(op, device_type)
    if reason is not None:
        raise RuntimeError(f"{op}: expected backend {name} to be available, got: {reason}")
    return True


def uses_cpu_kernel(op: str) -> bool:
    """Whether the native CPU kernel serves plain CPU tensors, in a fraction of :func:`uses_kernel`'s time.

    False sends a call to :func:`uses_kernel`, which knows why.
    """
    name = requested()
    return (
        (name == "auto" or name == "cpu")
        and not _functorch_active()
        and _default_backend(op, "cpu", torch.float32) == "native"
    )


def dispatch_to_triton(native_op: str, file: str, function: str) -> Callable[..., Any] | None:
    """Return what the dispatcher shall call for ``native_op`` on a GPU: Triton's, where the native module has nothing.

    Called by hand and from compiled graphs ``torch.ops.gan_fast.*`` finds it.
    """
    if not extension.available() or extension.has_kernel(native_op, "cuda"):
        return None
    _by_triton.add((native_op, "cuda"))

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(f"gan_fast.triton_kernels.{file}"), function)(*args)

    return call


# Others stand for tensors that Triton could not read.
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def triton_module(op: str) -> ModuleType:
    """The Triton functions of an op that has some."""
    return importlib.import_module(f"gan_fast.triton_kernels.{_triton_files[op]}")


def triton_kernels(op: str, input: torch.Tensor) -> ModuleType | None:
    """The Triton functions that serve this call, or None where the dispatcher finds the kernel."""
    name = requested()
    if type(input) not in _PLAIN:
        if name == "triton" and not isinstance(input, FakeTensor):
            raise RuntimeError(f"{op}: expected input type Tensor for backend triton, got {type(input).__name__}")
        return None
    if name == "auto" and not input.is_cpu:
        return triton_module(op) if _default_backend(op, input.device.type, input.dtype) == "triton" else None
    return triton_module(op) if name == "triton" else None


# Up to so many values ATen's own chain of ops is the quicker one: nodes in Python cost more than our kernels save.
SMALL = 8192


def is_small(input: object, *beside: object) -> bool:
    """Whether automatic choice leaves a call to ATen: tensors (or None) on one device, of a few values each."""
    if requested() != "auto" or not isinstance(input, torch.Tensor) or _tracing() or torch.compiler.is_compiling():
        # Sizes that are looked at become part of a trace or a graph.
        return False
    if input.numel() > SMALL or not input.dtype.is_floating_point:
        return False
    device = input.device
    for t in beside:
        if t is not None and not (isinstance(t, torch.Tensor) and t.numel() <= SMALL and t.device == device):
            return False
    return True


# Devices on which automatic choice measures: where kernels of several kinds serve one op.
_MEASURED_ON = ("cuda",)
# What each class of calls was found to be served best by.
_fastest: dict[tuple[Any, ...], str] = {}


def is_measured(input: torch.Tensor) -> bool:
    """Whether calls with such an input go to :func:`call_fastest_of`.

    Not where others look on: transforms, tracers, modes that record or count, hooks that keep tensors their own way.
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
    """What can serve an op, as names for :func:`use_backend`; the first is what automatic choice takes unmeasured."""
    found = [device_type] if _unavailable(op, device_type) is None else []
    found += ["triton"] if _triton_unavailable(op, device_type, dtype) is None else []
    return [*found, "reference"]


def call_fastest(
    op: str,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    shape_class: Callable[[], tuple[Any, ...]],
    unmeasured: str | None = None,
) -> Any:
    """Return ``call(*arguments)``, under the backend that is quickest at it where calls are measured.

    Args:
        call, arguments: as for :func:`call_fastest_of`.
        shape_class: gives what :func:`call_fastest_of` takes.
        unmeasured: what serves where nothing may be measured, if it can.
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
    """Return ``call(*arguments)`` under the backend that is quickest at it.

    Args:
        names: candidates, for :func:`use_backend`; the first serves where nothing may be measured.
        shape_class: calls that are alike in it are served alike.
        call: obeys :func:`use_backend`; the first of its arguments is a tensor on the device, what it returns a tensor
            to differentiate or several, of which that is the first.
        trial: what to call it with to measure, where ``arguments`` would have effects; stand-ins are made of both.

    Notes:
        A class is measured at its first call, forward and, where gradients are wanted, backward; never while a CUDA
        graph is captured. GAN_FAST_TUNE=0 turns it off: then the first serves that runs and has the reference's values.
    """
    device = arguments[0].device
    wanted = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in arguments)
    at = (op, device, *names, *shape_class, wanted)
    name = _fastest.get(at)
    if name is None:
        key = f"{' '.join(map(str, shape_class))} {'with gradient' if wanted else 'alone'} of {' '.join(names)}"
        times = tuning.known(device, op, key) if tuning.enabled() else None
        if times is None and not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            fault = _fault(call, trial or arguments, wanted)
            if tuning.enabled():
                times = tuning.measure(device, op, key, names, _work(call, trial or arguments, wanted), fault)
            else:
                # One alone serves whatever it does.
                found = (name for name in names if len(names) == 1 or tuning.runs(device, op, key, name, fault))
                times = dict.fromkeys(itertools.islice(found, 1), 0.0)
        name = min(times, key=times.__getitem__) if times else names[0]
        if times is not None:
            _fastest[at] = name
    if name == "auto":
        return call(*arguments)
    with use_backend_in_thread(name):
        return call(*arguments)


def _work(call: Callable[..., Any], arguments: tuple[Any, ...], gradient: bool) -> Callable[[str], Callable[[], Any]]:
    def work(name: str) -> Callable[[], Any]:
        copies = tuple(map(tuning.stand_in, arguments))
        wanted = [t for t in copies if isinstance(t, torch.Tensor) and t.requires_grad]

        def run() -> None:
            with use_backend_in_thread(name), torch.set_grad_enabled(gradient):
                output = call(*copies)
            output = output[0] if isinstance(output, tuple) else output
            if gradient:
                torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)

        return run

    return work


def _fault(call: Callable[..., Any], arguments: tuple[Any, ...], gradient: bool) -> Callable[[str], str | None]:
    """As :func:`tuning.measure` takes it: what is wrong with a backend's results, beside those of the reference."""

    def results(name: str, moved: bool = False) -> tuple[list[Any], list[Any]]:
        copies = tuple(tuning.stand_in(argument, moved) for argument in arguments)
        with use_backend_in_thread(name), torch.set_grad_enabled(gradient):
            output = call(*copies)
        outputs = output if isinstance(output, tuple) else (output,)
        grads: tuple[torch.Tensor | None, ...] = ()
        if gradient:
            wanted = [t for t in copies if isinstance(t, torch.Tensor) and t.requires_grad]
            # Drawn: of gradients that are all the same a norm's sums vanish.
            grad = tuning.stand_in(outputs[0].detach())
            grads = torch.autograd.grad(outputs[0], wanted, grad, allow_unused=True)
        # What is written in place, such as running statistics.
        written = [t for t in copies if isinstance(t, torch.Tensor) and not t.requires_grad]
        return [t.detach() if isinstance(t, torch.Tensor) else None for t in outputs], [*grads, *written]

    @functools.cache
    def expected() -> tuple[tuple[list[Any], list[Any]], tuple[list[Any], list[Any]]] | None:
        try:
            return results("reference"), results("reference", moved=True)
        except Exception as error:
            first_line = (str(error).splitlines() or [""])[0]
            logger.warning("values of kernels are not compared with the reference's, which failed: %s", first_line)
            return None

    def fault(name: str) -> str | None:
        # For a convolution "auto" is ATen's.
        if name in ("reference", "auto"):
            return None
        outputs, others = results(name)
        if (want := expected()) is None:
            return None
        # A kernel leaves out a second output that is not wanted.
        there = [index for index, t in enumerate(outputs) if t is not None]
        compared = [[own[index] for index in there] + rest for own, rest in ((outputs, others), *want)]
        return tuning.disagreement(*compared)

    return fault


def _explain(op: str, device_type: str) -> str:
    asked = requested()
    if asked == "reference":
        return "reference: asked for by name"
    small = f"; ATen's own op for tensors of up to {SMALL} values" if op in _aten_when_small else ""
    if asked == "auto" and op in _random_ops:
        return "Triton kernel" if _default_backend(op, device_type, torch.float32) == "triton" else "ATen's ops"
    if asked == "auto":
        names = candidates(op, device_type, torch.float32)
        if device_type in _MEASURED_ON and len(names) > 2:
            return f"the quickest of {', '.join(names)}, measured for each class of shapes{small}"
        served = _default_backend(op, device_type, torch.float32)
        if served == "native" and _native_ops[op] is None:
            kernels = "the quicker kernel, ATen's or ours" if extension.available() else "ATen's kernels"
            return f"our autograd nodes around {kernels}{small}"
        if served == "native":
            return f"{device_type} kernel: native kernel registered{small}"
        return "Triton kernel" if served == "triton" else f"reference: {_unavailable(op, device_type)}"
    try:
        uses_kernel(op, device_type)
    except RuntimeError as error:
        return f"error: {error}"
    return f"{'Triton' if asked == 'triton' else device_type} kernel: asked for by name"


def _measurements(device: torch.device) -> list[str]:
    lines = [f"measured on {device}:"] if (found := tuning.described(device)) else []
    for call, times in found:
        shown = ", ".join(f"{name} {ms:.4f} ms" for name, ms in sorted(times.items(), key=lambda item: item[1]))
        lines.append(f"  {call}: {shown or 'all candidates failed'}")
    return lines


def devices() -> list[str]:
    """The kinds of devices that are here."""
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def op_names() -> list[str]:
    """The ops that more than ATen may serve."""
    return sorted(_native_ops)


def _triton_version() -> str:
    if not _triton_is_installed():
        return _TRITON_MISSING
    # Not imported for it: Triton reads its settings from the environment then. A torch may bring its own build.
    for distribution in ("triton", "pytorch-triton", "triton-windows"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"Triton {importlib.metadata.version(distribution)}"
    return "Triton of an unknown version"


def _nvcc_version() -> str:
    """Of the compiler that a build would take, as torch.utils.cpp_extension looks for it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    nvcc = nvcc or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return "nvcc not found (a build without it has no CUDA C++ kernels)"
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvcc does not run: {error}"
    release = re.search(r"release ([\d.]+)", said)
    return f"nvcc {release[1] if release else 'of an unknown version'}"


def _machine() -> list[str]:
    """What the kernels stand on."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    # A container or a scheduler may grant fewer than the machine has, and torch count them all.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"gan_fast {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"torch {torch.__version__}, {cuda}; {_triton_version()}; {_nvcc_version()}",
        f"{torch.get_num_threads()} CPU threads on {cpus} CPUs",
    ]
    if build := extension.build_info():
        have, best = build["instruction_set"], build["best_instruction_set"]
        which = "the best here" if have == best else f"lowered by GAN_FAST_ISA; the best here is {best}"
        lines.append(
            f"native module: {build['compiler']}, built with torch {build['torch']}, "
            f"CPU instruction set {have} ({which}), CUDA {build['cuda_architectures'] or 'not built'}"
        )
    else:
        lines.append(f"native module: not loaded: {extension.load_error} (build: {extension.BUILD_COMMAND})")
    return lines


def info() -> str:
    """Tell what serves each op on this machine and why, as text; also ``gan-fast info``, which checks the ops too."""
    lines = _machine()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    lines += [f"GPU {index}: {torch.cuda.get_device_name(index)}" for index in gpus]
    lines.append(f"backend asked for: {requested()}")
    width = max(len(op) for op in _native_ops)
    for op in op_names():
        for device in devices():
            lines.append(f"  {op:<{width}}  {device:<4}  {_explain(op, device)}")
    for index in gpus:
        lines += _measurements(torch.device("cuda", index))
    return "\n".join(lines)
