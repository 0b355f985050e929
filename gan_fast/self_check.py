"""Check that every op computes correct results on this machine, on every device and backend.

The reference in float64 gives the exact results. In float32 an op's results (outputs with and without autograd, tensors
written in place, gradients, and gradients of gradients) may be off by at most twice the error of the reference in
float32, which is eager PyTorch. For an op that draws random numbers, one call reveals the numbers. They must have the
right distribution, and must reproduce the results of another call with the same seed.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gan_fast import backends, fp32_precision, ops

Arguments = dict[str, Any]

# Eager's error counts as at least this many roundings of the result's largest value, since it may happen to be exact.
_FLOOR = 16 * torch.finfo(torch.float32).eps / 2
# Rounding in a sum of a thousand float32 products stays below this, so a larger eager error is itself a fault.
_LARGEST_EAGER_ERROR = 1e-4


class Draw:
    """Draws normal numbers in float64 that float32 represents exactly; the same numbers in every run."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(
        self, *shape: int, mean: float = 0.0, std: float = 1.0, grad: bool = True, channels_last: bool = False
    ) -> Tensor:
        values = torch.randn(shape, generator=self._generator, dtype=torch.float64) * std + mean
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return values.float().double().contiguous(memory_format=memory_format).requires_grad_(grad)


def _statistics(draw: Draw, channels: int) -> Arguments:
    return {
        "running_mean": draw(channels, mean=0.5, std=0.3, grad=False),
        "running_var": draw(channels, grad=False).tanh().mul(0.5).add(1.0).float().double(),
    }


def _norm(draw: Draw, *shape: int, channels_last: bool = False, **options: Any) -> Arguments:
    channels = shape[1]
    return {
        "input": draw(*shape, mean=0.5, std=2.0, channels_last=channels_last),
        **_statistics(draw, channels),
        "weight": draw(channels, mean=1.0, std=0.3),
        "bias": draw(channels, mean=0.5, std=0.3),
        **options,
    }


@dataclass(frozen=True)
class _Shapes:
    input: tuple[int, ...]
    weight: tuple[int, ...]
    c_out: int


def _conv(
    draw: Draw, shapes: _Shapes, *, bias: bool = True, norm: bool = False, channels_last: bool = False, **options: Any
) -> Arguments:
    input, weight, c_out = shapes.input, shapes.weight, shapes.c_out
    arguments = {
        "input": draw(*input, channels_last=channels_last),
        "weight": draw(*weight, std=(math.prod(weight) / c_out) ** -0.5),
        "bias": draw(c_out, mean=1.0, std=0.3) if bias else None,
        **options,
    }
    if norm:
        arguments |= {"bn_weight": draw(c_out, mean=1.0, std=0.3), "bn_bias": draw(c_out, mean=0.5, std=0.3)}
        arguments |= _statistics(draw, c_out)
    return arguments


def _convs(dims: int, transposed: bool, norm: bool, activated: bool) -> Iterator[Callable[[Draw], Arguments]]:
    """Yield arguments of a convolution op that together reach each of its kernels."""
    # No bias before a norm with batch statistics: its exact gradient is zero, so the computed one is rounding noise.
    curved: Arguments = {"activation": "tanh"} if activated else {}
    rectified: Arguments = {"activation": "leaky_relu", "negative_slope": 0.2} if activated else {}
    by_batch: Arguments = {"norm": True, "training": True, "bias": False} if norm else {}
    given: Arguments = {"norm": True, "training": False} if norm else {}
    down: Arguments = {"stride": 2, "padding": 1}
    space, kernel = (7, 6, 5)[:dims], (3, 4, 3)[:dims]
    # Triton's kernels, which are 2-d, do not support groups.
    groups = 1 if dims == 2 else 2
    weight = (4, 6 // groups, *kernel) if transposed else (6, 4 // groups, *kernel)
    shapes = _Shapes((3, 4, *space), weight, 6)
    yield lambda draw: _conv(draw, shapes, groups=groups, **down, **rectified, **by_batch)
    yield lambda draw: _conv(draw, shapes, groups=groups, **down, **curved, **given)
    if dims != 2:
        return
    # The weight is large compared to the feature maps, so a CPU uses a matrix product.
    plain, other = _Shapes((4, 64, 8, 8), (128, 64, 4, 4), 128), _Shapes((4, 128, 4, 4), (128, 64, 4, 4), 64)
    wide = other if transposed else plain
    yield lambda draw: _conv(draw, wide, channels_last=True, **down, **rectified, **by_batch)
    if transposed:
        # The last layer of a generator, which has a special kernel.
        last = _Shapes((6, 64, 16, 16), (64, 3, 4, 4), 3)
        yield lambda draw: _conv(draw, last, **down, **curved, **given)
    elif norm:
        # The input has more values than the weight: without autograd the norm is folded into the weight.
        large = _Shapes((4, 16, 16, 16), (8, 16, 3, 3), 8)
        yield lambda draw: _conv(draw, large, padding=1, **rectified, **given)


def _spectral_norm(draw: Draw, n_power_iterations: int, dim: int) -> Arguments:
    weight = draw(12, 10, 4, 4, std=0.1)
    matrix = weight.detach().movedim(dim, 0).flatten(1)
    v = torch.nn.functional.normalize(draw(matrix.size(1), grad=False), dim=0)
    u = torch.nn.functional.normalize(matrix @ v, dim=0)
    vectors = {"u": u.float().double(), "v": v.float().double()}
    return {"weight": weight, **vectors, "n_power_iterations": n_power_iterations, "dim": dim}


def _logits(draw: Draw, real: int = 700, fake: int = 500, **options: Any) -> Arguments:
    # The means differ, so that the loss is not a difference of two almost equal terms.
    return {"real_logits": draw(real, mean=1.0, std=2.0), "fake_logits": draw(fake, mean=-1.0, std=2.0), **options}


def _fake_logits(draw: Draw, **options: Any) -> Arguments:
    return {"fake_logits": draw(700, mean=-1.0, std=2.0), **options}


def _cases() -> dict[str, list[Callable[[Draw], Arguments]]]:
    """Return the arguments on which each op is checked."""
    cases: dict[str, list[Callable[[Draw], Arguments]]] = {
        "batch_norm_act": [
            lambda draw: _norm(draw, 6, 12, 13, 11, training=True, activation="leaky_relu", negative_slope=0.2),
            lambda draw: _norm(draw, 6, 12, 7, 9, training=True, activation="tanh", channels_last=True),
            lambda draw: _norm(draw, 5, 10, 33, training=False, activation="sigmoid"),
        ],
        "instance_norm_act": [
            lambda draw: _norm(draw, 4, 6, 13, 11, activation="leaky_relu", negative_slope=0.2),
            lambda draw: _norm(draw, 4, 6, 9, 7, use_input_stats=False, activation="tanh"),
        ],
        "leaky_relu": [lambda draw: {"input": draw(5, 3, 17, 13), "negative_slope": 0.2}],
        "relu": [lambda draw: {"input": draw(5, 3, 17, 13)}],
        "linear": [lambda draw: {"input": draw(37, 24), "weight": draw(10, 24, std=0.2), "bias": draw(10)}],
        "minibatch_discrimination": [lambda draw: {"input": draw(9, 12), "weight": draw(12, 10, 4, std=0.05)}],
        "sample_norm_penalty": [
            lambda draw: {
                "input": draw(7, 3, 11, 9, std=0.1), "coefficients": draw(7, mean=2.0, std=0.3),
                "center": 1.0, "scale": 10.0,
            },
            lambda draw: {"input": draw(7, 3, 11, 9, std=0.1, channels_last=True), "center": 0.0, "scale": 0.5},
        ],
        "spectral_norm": [lambda draw: _spectral_norm(draw, 1, 0), lambda draw: _spectral_norm(draw, 0, 1)],
        "relativistic_d_loss": [
            lambda draw: _logits(draw, 600, 600, real_target=0.9),
            lambda draw: _logits(draw, average=True, kind="least_squares"),
        ],
        "relativistic_g_loss": [
            lambda draw: _logits(draw, 600, 600, kind="hinge"),
            lambda draw: _logits(draw, average=True),
        ],
        "interpolate_samples": [lambda draw: {"real": draw(64, 3, 5, 4), "fake": draw(64, 3, 5, 4)}],
        "perturb": [lambda draw: {"real": draw(64, 3, 5, 4, grad=False), "scale": 0.5}],
        "add_noise": [lambda draw: {"input": draw(64, 3, 7, 5), "std": 0.25}],
    }  # fmt: skip
    for loss in ("minimax", "hinge", "wasserstein", "least_squares"):
        cases[f"{loss}_d_loss"] = [lambda draw: _logits(draw, real_target=0.9, fake_target=0.1)]
        cases[f"{loss}_g_loss"] = [_fake_logits]
    cases["minimax_g_loss"].append(lambda draw: _fake_logits(draw, saturating=True))
    for transposed in (False, True):
        for dims in (1, 2, 3):
            op = f"conv{'_transpose' if transposed else ''}{dims}d"
            cases[op] = list(_convs(dims, transposed, norm=False, activated=False))
            cases[f"{op}_act"] = list(_convs(dims, transposed, norm=False, activated=True))
            cases[f"{op}_bn_act"] = list(_convs(dims, transposed, norm=True, activated=True))
    return cases


CASES = _cases()


@dataclass(frozen=True)
class Law:
    """How an op uses random numbers."""

    numbers: Callable[[Callable[..., Tensor], Arguments], Tensor]
    """Calls the op with arguments of the same shapes that reveal the random numbers, and returns these."""
    holds: Callable[[Tensor], bool]
    """Whether some thousand numbers drawn from a fixed seed have the right distribution."""
    result: Callable[..., Tensor]
    """The op's result as a function of the numbers and its arguments."""


def _signs(like: Tensor) -> Tensor:
    """Return a tensor of alternating 1 and -1."""
    signs = torch.ones_like(like).flatten()
    signs[::2] = -1
    return signs.view(like.shape)


def _are_uniform_per_sample(u: Tensor) -> bool:
    """Whether u has one number of U[0, 1) for each sample."""
    per_sample = u.flatten(1)
    return bool((u >= 0).all() and (u < 1).all() and (per_sample == per_sample[:, :1]).all() and u.std() > 0.2)


def _are_uniform_products(w: Tensor) -> bool:
    """Whether each w is a product of one U[0, 1) per sample and one U[0, 1) per element, up to rounding."""
    of_samples = w.flatten(1).mean(1)
    in_range = bool((w > -1e-6).all() and (w < 1 + 1e-6).all())
    return in_range and bool((of_samples.mean() - 0.25).abs() < 0.1 and of_samples.std() > 0.1 and w.std() > 0.15)


def _are_normal(z: Tensor) -> bool:
    return bool(z.mean().abs() < 0.1 and (z.std() - 1).abs() < 0.1 and (z.abs() > 2).double().mean() > 0.02)


LAWS = {
    "interpolate_samples": Law(
        lambda op, a: op(real=torch.zeros_like(a["real"]), fake=torch.ones_like(a["real"])),
        _are_uniform_per_sample,
        lambda u, real, fake: real + u * (fake - real),
    ),
    "perturb": Law(
        lambda op, a: (op(real=_signs(a["real"]), scale=1.0).double() - _signs(a["real"])) / _signs(a["real"]).std(),
        _are_uniform_products,
        lambda w, real, scale: real + w * (scale * real.std()),
    ),
    "add_noise": Law(
        lambda op, a: op(input=torch.zeros_like(a["input"]), std=1.0),
        _are_normal,
        lambda z, input, std: input + std * z,
    ),
}


@dataclass(frozen=True)
class Finding:
    """The check of an op on one device and backend: the result whose error is nearest its bound."""

    op: str
    device: str
    backend: str
    result: str = ""
    error: float = 0.0
    """This and the next two are relative to the largest value of the result."""
    eager_error: float = 0.0
    bound: float = 0.0
    raised: str | None = None
    """The error, if the op raised one."""

    @property
    def ok(self) -> bool:
        return self.raised is None and self.error <= self.bound

    @property
    def badness(self) -> float:
        return math.inf if self.raised is not None else self.error / self.bound

    def __str__(self) -> str:
        place = self.device if self.backend == self.device else f"{self.backend} on {self.device}"
        if self.raised is not None:
            return f"{place}: {self.raised}"
        if not self.ok:
            return (
                f"{place}: {self.result}: error {self.error:.1e}, eager's {self.eager_error:.1e}, "
                f"bound {self.bound:.1e}"
            )
        return f"{place} {self.error:.1e} (eager {self.eager_error:.1e}, bound {self.bound:.1e})"


@dataclass(frozen=True)
class Report:
    """The findings of :func:`check`; ``str(report)`` has a line for each op."""

    ops: tuple[str, ...]
    findings: tuple[Finding, ...]
    backend: str
    """The requested backend; "auto" checks all that can run an op."""
    time_s: float

    @property
    def failed(self) -> list[str]:
        """The ops that failed on some device and backend."""
        return sorted({finding.op for finding in self.findings if not finding.ok})

    @property
    def ok(self) -> bool:
        return bool(self.findings) and not self.failed

    def __str__(self) -> str:
        which = "every backend that can run an op" if self.backend == "auto" else f"backend {self.backend}"
        lines = [
            f"self-check of {which}: float32 results, gradients and second gradients against float64",
            "(worst result's error, as a fraction of its largest value; in parentheses, eager PyTorch's error, and the",
            f"bound: twice eager's error, and at least {2 * _FLOOR:.1e})",
        ]
        width = max(map(len, self.ops))
        for op in self.ops:
            found = [finding for finding in self.findings if finding.op == op]
            if not found:
                lines.append(f"  {op:<{width}}  not checked: backend {self.backend} cannot run it here")
                continue
            # The reference is worth showing only if it failed or is the only backend.
            shown = [f for f in found if not f.ok] or [f for f in found if f.backend != "reference"] or found
            verdict = "FAILED" if op in self.failed else "ok"
            lines.append(f"  {op:<{width}}  {verdict:<6}  {'; '.join(map(str, shown))}")
        checked = len({finding.op for finding in self.findings})
        lines.append(f"{checked - len(self.failed)} of {checked} ops ok in {self.time_s:.1f} s")
        return "\n".join(lines)


def check(names: Sequence[str] | None = None) -> Report:
    """Run ops on every device and backend that can run them, and compare the results with the reference in float64.

    Args:
        names: the ops; None checks all.

    Returns:
        A report. ``report.ok`` says whether all results agree; ``str(report)`` has a line for each op.

    Notes:
        Inside ``use_backend``, or with GAN_FAST_BACKEND set, only that backend is checked.
        An op that raises is reported as failed.
        The check requests backends for the whole process while it runs.
    """
    begin = time.perf_counter()
    names = backends.op_names() if names is None else names
    # TF32 would increase eager's error, which determines the bound for the kernels.
    with torch.enable_grad(), fp32_precision.full():
        findings = tuple(finding for op in names for finding in _check(op))
    return Report(tuple(names), findings, backends.requested(), time.perf_counter() - begin)


def _check(op: str) -> list[Finding]:
    """Check one op: return the worst finding of its cases for each device and backend."""
    requested, found = backends.requested(), []
    for device in backends.devices():
        names = [name for name in backends.candidates(op, device, torch.float32) if requested in ("auto", name)]
        if requested == "auto" and device == "cpu":
            # On a CPU Triton is an interpreter that takes minutes and that "auto" never uses.
            names = [name for name in names if name != "triton"]
        by_case = [_check_case(op, device, names, case(Draw())) for case in CASES[op]]
        found += [max(findings, key=lambda finding: finding.badness) for findings in zip(*by_case)]
    return found


def _check_case(op: str, device: str, names: Sequence[str], arguments: Arguments) -> list[Finding]:
    """Return the finding of each backend for one case."""
    function = getattr(ops, op)
    double, single = (
        functools.partial(_converted, arguments, torch.float64, "cpu"),
        functools.partial(_converted, arguments, torch.float32, device),
    )

    def measures(reference: Callable[..., Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with backends.use_backend("reference"):
            return _results(reference, double()), _results(reference, single())

    # All backends share these results, except for an op whose random numbers depend on the backend.
    shared = functools.cache(lambda: measures(function))

    def find(name: str) -> Finding:
        finding = functools.partial(Finding, op, device, name)
        try:
            if op in LAWS:
                call, reference = _with_known_numbers(LAWS[op], function, arguments, device, name)
                exact, eager = measures(reference)
            else:
                call, (exact, eager) = function, shared()
            if name == "reference" and call is function:
                actual = eager
            else:
                with backends.use_backend(name):
                    actual = _results(call, single())
            compared = (finding(**_compare(*item)) for item in _aligned(actual, eager, exact))
            return max(compared, key=lambda f: f.badness)
        except Exception as error:  # of any type: the report shows it
            return finding(raised=f"{type(error).__name__}: {' '.join(str(error).split())}")

    return [find(name) for name in names]


def _with_known_numbers(
    law: Law, op: Callable[..., Tensor], arguments: Arguments, device: str, name: str
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return the op with a fixed seed, and a function that computes its exact result from that seed's numbers."""

    def seeded(seed: int, **arguments: Any) -> Tensor:
        return op(**arguments, generator=torch.Generator(device).manual_seed(seed))

    single = _converted(arguments, torch.float32, device)
    with backends.use_backend(name), torch.no_grad():
        numbers, others = (law.numbers(functools.partial(seeded, seed), single).double().cpu() for seed in (0, 1))
    if not law.holds(numbers):
        raise ValueError("the random numbers have the wrong distribution")
    if torch.equal(numbers, others):
        raise ValueError("two seeds give the same random numbers")

    def result(**arguments: Any) -> Tensor:
        like = next(value for value in arguments.values() if isinstance(value, Tensor))
        return law.result(numbers.to(like), **arguments)

    return functools.partial(seeded, 0), result


def _converted(arguments: Arguments, dtype: torch.dtype, device: str) -> Arguments:
    """Return copies, since an op may write to its arguments."""
    return {
        name: value.detach().to(device, dtype, copy=True).requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }


def _results(function: Callable[..., Any], arguments: Arguments) -> dict[str, Tensor]:
    """Return all results of an op by name: outputs, tensors written in place, gradients and second gradients."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    named = {name: t for name, t in tensors.items() if t.requires_grad}
    written = {name: t for name, t in tensors.items() if not t.requires_grad}
    with torch.no_grad():
        alone = function(**arguments | {name: t.clone() for name, t in written.items()})
    outputs = function(**arguments)
    results = written | {"output without autograd": alone[0] if isinstance(alone, tuple) else alone}
    if isinstance(outputs, tuple):
        results |= {f"output {index}": t for index, t in enumerate(outputs)}
    output = outputs[0] if isinstance(outputs, tuple) else outputs
    results["output"] = output
    if not named:
        return results
    draw = Draw(1)

    def direction(like: Tensor) -> Tensor:
        return draw(*like.shape, mean=1.0, grad=False).to(like)

    # A loss gets the output gradient 1, with which backward() begins.
    grad_output = direction(output) if output.dim() else torch.ones_like(output)
    first = torch.autograd.grad(output, list(named.values()), grad_output, retain_graph=True)
    results |= {f"gradient wrt {name}": g for name, g in zip(named, first)}
    grad_output = direction(output).requires_grad_()
    recorded = torch.autograd.grad(output, list(named.values()), grad_output, create_graph=True)
    results |= {f"differentiable gradient wrt {name}": g for name, g in zip(named, recorded)}
    along = torch.stack([(g * direction(g)).sum() for g in recorded]).sum()
    by = {"the output's gradient": grad_output, **named}
    second = torch.autograd.grad(along, list(by.values()), allow_unused=True)
    # autograd returns None for a tensor that the gradient does not depend on.
    results |= {
        f"second gradient wrt {name}": torch.zeros_like(t) if g is None else g
        for (name, t), g in zip(by.items(), second)
    }
    return results


def _aligned(
    actual: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    for name in exact:
        have, want = actual[name], eager[name]
        if have.shape != want.shape or have.dtype != want.dtype or have.device != want.device:
            described = (f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in (want, have))
            raise ValueError("{}: expected {}, got {}".format(name, *described))
        yield name, have, want, exact[name]


def _compare(result: str, actual: Tensor, eager: Tensor, exact: Tensor) -> Arguments:
    """Return the errors and the bound of one result, as arguments of :class:`Finding`."""
    actual, eager, exact = (t.detach().double().cpu() for t in (actual, eager, exact))
    largest = exact.abs().max().item() or 1.0
    error, eager_error = (_largest(t - exact) / largest for t in (actual, eager))
    bound = 2 * min(max(eager_error, _FLOOR), _LARGEST_EAGER_ERROR)
    return {"result": result, "error": error, "eager_error": eager_error, "bound": bound}


def _largest(difference: Tensor) -> float:
    value = difference.abs().max().item()
    return math.inf if math.isnan(value) else value
